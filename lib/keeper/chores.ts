/** What a settled node keeps in order: settings, pg_hba.conf, slots, the synchronous set. */
import { canTakeWrites, type NodeState, PROMISED } from "../fsm.ts";
import { ensureRoles } from "../pg/local.ts";
import { monotonicMs } from "../sys/clock.ts";
import { parseUri } from "../sys/sql.ts";
import {
  advanceSync,
  isInForce,
  localDb,
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
import { readSecret, writeSecret } from "./passfile.ts";

const FOLLOWING: readonly NodeState[] = ["secondary", "catchingup"];
/** Nothing has shown yet that this node can be what its data is: a server that is there stays as it is. */
const JOINING: readonly NodeState[] = ["init", "wait_standby"];

/** The node that this one follows may have another address by now. @returns whether a file has changed */
function followMoved(node: Node): boolean {
  if (node.observation?.inRecovery !== true) return false;
  const upstream = peers(node).find(({ nodeId }) => nodeId === node.state.following);
  return upstream !== undefined && writeFollowing(node, upstream);
}

/** Changes only what is not as it must be; may be cut off and run again at any time. */
export async function chores(node: Node, signal: AbortSignal): Promise<void> {
  const { state, goal, syncVersion } = node.state;
  if (JOINING.includes(state)) return;
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
  // what it finds is written the next time: nothing waits for DNS
  const hosts = peers(node).map(({ host }) => host);
  void node.hosts.refresh([...hosts, parseUri(node.config.monitor).host]);
  // somebody may have taken it away, or opened it to others: then libpq doesn't use it
  if (node.secret && readSecret(node.paths)?.id !== node.secret.id) {
    writeSecret(node.paths, node.secret);
  }
  const hba = writeHba(node);
  // read-only also where it says nothing new: a standby promoted by hand draws no clients
  const settings = writeSettings(node, { readOnly: !writes });
  if (hba || settings || left || moved) await reloadSettings(node);
  if (writes || state === "secondary") await maintainSlots(node);
  if (ours && state === goal && !isInForce(node, ours)) await advanceSync(node, ours, signal);
  if (writes) await keepLogins(node);
}

const LOGINS_EVERY_MS = 10_000;

/** What nodes log in with here, and they alone: mended too where somebody has changed it. */
async function keepLogins(node: Node): Promise<void> {
  const { secret, logins } = node;
  const now = monotonicMs();
  if (!secret || (logins?.secret === secret && now - logins.atMs < LOGINS_EVERY_MS)) return;
  await ensureRoles(localDb(node), { replicator: secret.password });
  node.logins = { secret, atMs: now };
}
