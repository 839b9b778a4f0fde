/** What a settled node keeps in order: settings, pg_hba.conf, slots, the synchronous set. */
import { canTakeWrites, type NodeState, PROMISED } from "../fsm.ts";
import {
  advanceSync,
  isInForce,
  look,
  maintainSlots,
  type Node,
  ownId,
  peers,
  recallProof,
  reloadSettings,
  writeFollowing,
  writeHba,
  writeSettings,
} from "./node.ts";

const FOLLOWING: readonly NodeState[] = ["secondary", "catchingup"];

/** The node that this one follows may have another address by now. @returns whether a file has changed */
function followMoved(node: Node): boolean {
  if (node.observation?.inRecovery !== true) return false;
  const upstream = peers(node).find(({ nodeId }) => nodeId === node.state.following);
  return upstream !== undefined && writeFollowing(node, upstream);
}

/** Changes only what is not as it must be; may be cut off and run again at any time. */
export async function chores(node: Node, signal: AbortSignal): Promise<void> {
  const { state, goal, syncVersion } = node.state;
  const writes = canTakeWrites(state);
  if (node.db === undefined) await look(node);
  const set = node.answer?.sync;
  const ours = writes && set?.primaryId === ownId(node) ? set : undefined;
  if (node.written === undefined && ours) {
    // a keeper that has adopted a server takes over the names that are in its settings
    if (ours.version === syncVersion) {
      node.written = ours;
      recallProof(node, ours);
    } else await advanceSync(node, ours, signal);
  }
  // what an attempt to fetch WAL has left behind when its keeper died
  const left = PROMISED.includes(state) && writeFollowing(node, undefined);
  const moved = FOLLOWING.includes(state) && followMoved(node);
  const hba = writeHba(node);
  // read-only also where it says nothing new: a standby promoted by hand draws no clients
  const settings = writeSettings(node, { readOnly: !writes });
  if (hba || settings || left || moved) await reloadSettings(node);
  if (writes || state === "secondary") await maintainSlots(node);
  if (ours && state === goal && !isInForce(node, ours)) await advanceSync(node, ours, signal);
}
