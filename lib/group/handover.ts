/** A switchover: the primary writes everything out and stops, and a standby that has it all takes over. */
import { byPreference, chosenOf, hasFetched, isHealthy, isReporting } from "./election.ts";
import { isOnLineage } from "./history.ts";
import type { GroupView, NodeView } from "./view.ts";

/** The healthy secondaries to which this primary could hand over, the preferred one first. */
function heirsOf(view: GroupView, primary: NodeView): NodeView[] {
  const target = view.request?.target;
  return view.nodes
    .filter(
      (node) =>
        node.nodeId !== primary.nodeId &&
        node.reported === "secondary" &&
        node.goal === "secondary" &&
        node.inRecovery &&
        node.timeline === primary.timeline &&
        isHealthy(node, view.policy) &&
        isOnLineage(node, view) &&
        (target === undefined ? node.candidatePriority > 0 : node.nodeId === target),
    )
    .toSorted(byPreference);
}

/** Whether the primary may be asked to stop: somebody streams from it who has about all of it. */
export function isReadyToHandOver(view: GroupView, primary: NodeView): boolean {
  const { policy } = view;
  return (
    isHealthy(primary, policy) &&
    heirsOf(view, primary).some(
      (node) =>
        node.streaming && !node.maintenance && primary.lsn - node.lsn <= policy.caughtUpBytes,
    )
  );
}

/**
 * Whether the one that is to be promoted has every acknowledged commit: it was elected, or has all
 * that the primary had when it stopped.
 */
export function hasBeenHandedAll(
  node: NodeView,
  view: GroupView,
  primary: NodeView | undefined,
): boolean {
  if (view.request?.planned !== true) return true;
  const end = primary?.shutdown?.lsn;
  return (end !== undefined && node.lsn >= end) || hasFetched(node, view, primary);
}

export type HandOver = {
  /**
   * `none`: none is under way, or it has become a failover. `stopping`: the primary is about to stop.
   * `stopped`: it has, and the heir is to take over. `taken`: the heir does. `failed`: the primary goes on.
   */
  readonly stage: "none" | "stopping" | "stopped" | "taken" | "failed";
  readonly heir: NodeView | undefined;
};

/** Somebody is about to take over. */
export const isGoingOn = ({ stage }: HandOver): boolean => stage !== "none" && stage !== "failed";

/** How far a switchover has got. */
export function handOverOf(view: GroupView, primary: NodeView | undefined): HandOver {
  const at = (stage: HandOver["stage"], heir?: NodeView): HandOver => ({ stage, heir });
  const { policy, request } = view;
  if (!request?.planned || primary?.goal !== "draining") return at("none");
  // one that can't go on either is replaced as in any failover
  if (!isReporting(primary, policy) || primary.startFailures > 0) return at("none");
  const hasStopped = primary.reported === "draining" && !primary.pgRunning;
  const chosen = chosenOf(view.nodes);
  if (chosen) {
    const isThere = chosen.goal === "prepare_promotion" && chosen.reported === chosen.goal;
    const hasAll = hasBeenHandedAll(chosen, view, primary);
    if ((isThere && !hasAll) || (hasStopped && !isHealthy(chosen, policy))) return at("failed");
    return at(hasAll ? "taken" : "none", chosen);
  }
  const isCrashed = hasStopped && primary.shutdown === undefined;
  if (isCrashed) return at("none");
  const [heir] = heirsOf(view, primary);
  if (heir === undefined || primary.goalAgeMs >= policy.switchoverTimeoutMs) return at("failed");
  return hasStopped ? at("stopped", heir) : at("stopping");
}
