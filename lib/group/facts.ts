/** GroupView → the facts that the rules read. Thresholds are compared here, and in election.ts. */
import type { Decision, Fact, GroupRule, NodeState, Subject } from "../fsm.ts";
import { canTakeWrites, decide, GROUP_RULES, PROMISED, RECEIVING } from "../fsm.ts";
import {
  chosenOf,
  ELECTION_PATIENCE_MS,
  elect,
  hasFailedToFetch,
  hasFetched,
  hasPromised,
  isElectable,
  isHealthy,
  isReporting,
  isSafe,
} from "./election.ts";
import { handOverOf, hasBeenHandedAll, isGoingOn, isReadyToHandOver } from "./handover.ts";
import { isAccepted, isOnLineage } from "./history.ts";
import { desiredSet, isAsynchronous, overlaps, possibleSets, sameMembers } from "./quorum.ts";
import type { GroupView, NodeView, Policy, SyncSet } from "./view.ts";

const BEING_DEMOTED: readonly NodeState[] = ["draining", "demote_timeout", "prepare_maintenance"];
const STOPPED_BY_GOAL: readonly NodeState[] = ["draining", "demote_timeout", "demoted"];
const TAKES_PART: readonly NodeState[] = [...RECEIVING, ...PROMISED];

/**
 * The node that the group's standbys look to: the one that is to take writes, else the one that is
 * being demoted, else the one that was.
 */
export function primaryOf(nodes: readonly NodeView[]): NodeView | undefined {
  return (
    nodes.find((node) => canTakeWrites(node.goal)) ??
    nodes.find((node) => BEING_DEMOTED.includes(node.goal)) ??
    nodes.find((node) => node.goal === "demoted" || canTakeWrites(node.reported))
  );
}

/** No report for node_timeout, and a connection tried after the last report failed. */
function isGone(node: NodeView, policy: Policy): boolean {
  return (
    !isReporting(node, policy) &&
    node.health === "bad" &&
    node.healthAgeMs !== undefined &&
    node.healthAgeMs < node.reportAgeMs
  );
}

/** Healthy by a word that isn't late: one that is may be dead as well, and who has its commits must stay one of its set. */
const isPresent = (node: NodeView, policy: Policy): boolean =>
  isHealthy(node, policy) && node.reportAgeMs < 2 * policy.heartbeatMs;

/** Not the complement of healthy: a node may be neither. */
function isUnhealthy(node: NodeView, policy: Policy): boolean {
  return isReporting(node, policy) ? !node.pgRunning : isGone(node, policy);
}

/** It receives nothing, by its own word or, where there is none, by the primary's: commits would wait for it for ever. */
function isStalled(node: NodeView, policy: Policy): boolean {
  if (!isReporting(node, policy)) return node.notSentToMs >= policy.nodeTimeoutMs;
  return node.pgRunning && node.stalledMs >= policy.nodeTimeoutMs;
}

/** By its own word, which it gave while it was to be stopped; none from before, after which it may have gone on. */
const isStopped = ({ reported, confirmed, pgRunning }: NodeView): boolean =>
  STOPPED_BY_GOAL.includes(reported) && confirmed && !pgRunning;

/** Told to go on, a primary has stopped in one of these, and is about to start again. */
const RESUMES: readonly NodeState[] = ["draining", "demote_timeout"];

/**
 * A primary is dead when its living keeper says that PostgreSQL is down (a fenced one only when it
 * can't be started again), or when nothing at all is heard of it and no standby receives anything;
 * one that goes on receiving holds this back for unreachable_primary_timeout at most.
 */
export function isPrimaryDown(primary: NodeView, view: GroupView): boolean {
  const { policy, nodes } = view;
  if (isReporting(primary, policy)) {
    return !primary.pgRunning && (!RESUMES.includes(primary.reported) || primary.startFailures > 0);
  }
  const isHeard = nodes.some(
    (node) => node.nodeId !== primary.nodeId && isHealthy(node, policy) && node.streaming,
  );
  return (
    isGone(primary, policy) &&
    (!isHeard || primary.reportAgeMs >= policy.unreachablePrimaryTimeoutMs)
  );
}

const takesPart = ({ reported, goal }: NodeView): boolean =>
  TAKES_PART.includes(reported) && TAKES_PART.includes(goal);

/**
 * Nobody but the candidate acknowledges anything any more: the old primary can't gather the
 * acknowledgements that a commit needs; or, where commits wait for nobody or the operator wants it so,
 * it has had the time to notice that nobody replies, and to stop.
 */
function isWritesFenced(self: NodeView, view: GroupView, primary: NodeView | undefined): boolean {
  const disconnected = view.nodes.filter((node) => hasPromised(node) || node === self);
  const ids = new Set(disconnected.map(({ nodeId }) => nodeId));
  if (!view.settings.strictFencing && overlaps(possibleSets(view), ids)) return true;
  return (self.promisedMs ?? 0) >= fencedAfterMs(view.policy, primary);
}

/** An isolated primary has stopped after this time, also one that hasn't heard of a shorter timeout yet. */
const fencedAfterMs = (policy: Policy, primary: NodeView | undefined): number =>
  Math.max(policy.networkPartitionTimeoutMs + policy.fenceStopTimeoutMs, primary?.fenceMs ?? 0);

/** A primary that nothing is heard of for this long counts as dead, and has stopped itself by the timers that it knows. */
const silentAfterMs = (policy: Policy, primary: NodeView | undefined): number =>
  Math.max(policy.nodeTimeoutMs, fencedAfterMs(policy, primary));

/** It has become a primary, or taken another turn, without the monitor's word. */
export function isForked(node: NodeView, view: GroupView): boolean {
  return (
    RECEIVING.includes(node.reported) &&
    isHealthy(node, view.policy) &&
    node.timeline > 0 &&
    !isAccepted(node, view) &&
    (!node.inRecovery || !isOnLineage(node, view))
  );
}

/** A server has left the history while there was no primary to say that the history goes on. */
export function isDisputed(view: GroupView): boolean {
  const primary = primaryOf(view.nodes);
  const goesOn = primary !== undefined && isHealthy(primary, view.policy);
  const isDecided = view.nodes.some((node) => isAccepted(node, view));
  // a standby that went on where the history has left its timeline is just late: that is decided already
  const isLate = ({ inRecovery, timeline }: NodeView): boolean =>
    inRecovery && view.history.some((known) => known.timeline === timeline);
  return !goesOn && !isDecided && view.nodes.some((node) => isForked(node, view) && !isLate(node));
}

const currentGoal = ({ goal }: NodeView): NodeState => goal;

/** Facts about the set of the node that takes writes. */
function setFacts(self: NodeView, view: GroupView): [Fact, boolean][] {
  if (!canTakeWrites(self.goal)) return [];
  const { sync, inForce, nodes } = view;
  const others = nodes.filter((node) => node.nodeId !== self.nodeId);
  const desired = desiredSet(view, self.nodeId, currentGoal);
  const hasSecondary = others.some(({ goal }) => goal === "secondary");
  return [
    ["setDiffers", sync.primaryId !== self.nodeId || !sameMembers(desired, sync)],
    [
      "withoutStandby",
      desired.members.length === 0 && (hasQuorumStandby(others, view) || !hasSecondary),
    ],
    ["setInForce", inForce?.version === sync.version && inForce.primaryId === self.nodeId],
  ];
}

/** No commit can be waiting for it, by any set that may be in force. */
const isExpendable = (self: NodeView, view: GroupView): boolean =>
  isAsynchronous(view) ||
  (possibleSets(view)?.every(({ members }) => !members.includes(self.nodeId)) ?? false);

/** Commits of this group wait for somebody, when there is somebody. */
const hasQuorumStandby = (standbys: readonly NodeView[], { settings }: GroupView): boolean =>
  settings.durability !== "performance" &&
  standbys.some((node) => node.replicationQuorum && takesPart(node));

type Shared = {
  readonly primary: NodeView | undefined;
  readonly electable: boolean;
  readonly election: ReturnType<typeof elect>;
  readonly handOver: ReturnType<typeof handOverOf>;
};

function factsOf(self: NodeView, view: GroupView, shared: Shared): Set<Fact> {
  const { policy, nodes } = view;
  const primary = shared.primary?.nodeId === self.nodeId ? undefined : shared.primary;
  const others = nodes.filter((node) => node.nodeId !== self.nodeId);
  const standbys = nodes.filter((node) => node.nodeId !== shared.primary?.nodeId);
  const { winner, source } = shared.election ?? {};
  const chosen = chosenOf(others);
  const { stage, heir } = shared.handOver;
  const facts: [Fact, boolean][] = [
    ["alone", others.every((node) => node.goal === "init" && node.nodeId > self.nodeId)],
    ["pair", standbys.filter(takesPart).length === 1],
    ["protected", view.settings.durability === "protection"],
    ["quorumStandby", hasQuorumStandby(standbys, view)],
    ["requested", view.request !== undefined],
    ["planned", view.request?.planned === true],
    ["readyToHandOver", view.request?.planned === true && isReadyToHandOver(view, self)],
    ["handingOver", stage !== "none" && stage !== "taken"],
    ["handOverFailed", stage === "failed"],
    ["handedOver", hasBeenHandedAll(self, view, shared.primary)],
    ["lossAllowed", view.request?.allowDataLoss === true],
    ["disputed", view.disputed],
    ["electable", shared.electable],
    ["chosen", chosen !== undefined],
    ["selfHealthy", isHealthy(self, policy)],
    ["selfUnhealthy", isUnhealthy(self, policy)],
    ["selfGone", isGone(self, policy)],
    ["selfReporting", isReporting(self, policy)],
    ["selfStartable", self.startFailures === 0],
    ["selfDown", isPrimaryDown(self, view)],
    ["selfStreaming", self.streaming],
    ["selfStalled", isStalled(self, policy)],
    ["selfForked", isForked(self, view)],
    ["selfQuorum", self.replicationQuorum],
    ["selfElected", winner === self && source === undefined],
    ["selfMustFetch", winner === self && source !== undefined],
    ["selfFetched", hasFetched(self, view, shared.primary)],
    ["fetchFailed", hasFailedToFetch(self, view, shared.primary)],
    ["selfHeir", stage === "stopped" && heir === self],
    ["selfInMaintenance", self.maintenance],
    ["selfExpendable", isExpendable(self, view)],
    ["writesFenced", isWritesFenced(self, view, shared.primary)],
    ...setFacts(self, view),
  ];
  if (primary) {
    facts.push(
      ["selfSafe", isSafe(self, view, primary)],
      ["sameTimeline", self.timeline > 0 && self.timeline === primary.timeline],
      ["caughtUp", self.lsn > 0n && primary.lsn - self.lsn <= policy.caughtUpBytes],
      ["primaryHealthy", isHealthy(primary, policy)],
      ["primaryPresent", isPresent(primary, policy)],
      ["primaryDown", isPrimaryDown(primary, view)],
      ["primaryStopped", isStopped(primary)],
      ["primarySilent", primary.reportAgeMs >= silentAfterMs(policy, primary)],
      ["primaryReporting", isReporting(primary, policy)],
      ["primaryStartable", primary.startFailures === 0],
    );
  }
  return new Set(facts.filter(([, holds]) => holds).map(([fact]) => fact));
}

/** The set that the group's primary is to have, were these goals assigned now. */
export function assignedSet(goals: ReadonlyMap<number, NodeState>, view: GroupView): SyncSet {
  const goalOf = (node: NodeView): NodeState => goals.get(node.nodeId) ?? node.goal;
  const primaryId =
    view.nodes.find((node) => canTakeWrites(goalOf(node)))?.nodeId ?? view.sync.primaryId;
  const version = view.sync.version + 1;
  return { version, primaryId, ...desiredSet(view, primaryId, goalOf) };
}

export type GroupDecision = Decision & {
  readonly sync: SyncSet | undefined;
  /** From which node the elected one is to fetch the WAL that it lacks. */
  readonly fetchFrom: number | undefined;
  /** What the event says beside the rule's own words. */
  readonly note: string | undefined;
};

/** A promotion by which commits may be gone says how much. */
function noteOf(
  view: GroupView,
  primary: NodeView | undefined,
  goals: Decision["goals"],
): string | undefined {
  const [promoted] = [...goals].find(([, goal]) => goal === "prepare_promotion") ?? [];
  const candidate = view.nodes.find(({ nodeId }) => nodeId === promoted);
  if (candidate && primary?.shutdown) {
    return `the old primary took ${primary.shutdown.tookMs} ms to stop`;
  }
  const mayLose = isAsynchronous(view) || view.request?.allowDataLoss === true;
  if (!candidate || !primary || !mayLose) return undefined;
  const bytes = primary.lsn > candidate.lsn ? primary.lsn - candidate.lsn : 0n;
  return `the old primary's last known position is ${bytes} bytes ahead: commits in them are lost`;
}

/** What the rules make of a group: goals, and the new synchronous set when it changes. */
export function decideGroup(
  view: GroupView,
  rules: readonly GroupRule[] = GROUP_RULES,
): GroupDecision | undefined {
  const primary = primaryOf(view.nodes);
  const handOver = handOverOf(view, primary);
  const shared: Shared = {
    primary,
    electable: isElectable(view, primary) || isGoingOn(handOver),
    election: elect(view, primary),
    handOver,
  };
  const subjects = view.nodes.map(
    (self): Subject => ({
      self,
      primary: primary?.nodeId === self.nodeId ? undefined : primary,
      facts: factsOf(self, view, shared),
    }),
  );
  const decision = decide(subjects, rules);
  if (decision === undefined) return undefined;
  const note = noteOf(view, primary, decision.goals);
  const isFetching = [...decision.goals.values()].includes("fast_forward");
  const fetchFrom = isFetching ? shared.election?.source?.nodeId : undefined;
  if (decision.rule.sync === undefined) return { ...decision, sync: undefined, fetchFrom, note };
  const sync = assignedSet(decision.goals, view);
  const isSame = sync.primaryId === view.sync.primaryId && sameMembers(sync, view.sync);
  return { ...decision, sync: isSame ? undefined : sync, fetchFrom, note };
}

/** Milliseconds until a threshold that the rules compare with is crossed; the next time to look. */
export function nextDeadlineMs(view: GroupView): number {
  const { policy } = view;
  const { nodeTimeoutMs, unreachablePrimaryTimeoutMs } = policy;
  const primary = primaryOf(view.nodes);
  const fenceMs = fencedAfterMs(policy, primary);
  const silentMs = silentAfterMs(policy, primary);
  const waits = view.nodes.flatMap((node) => [
    nodeTimeoutMs - node.reportAgeMs,
    silentMs - node.reportAgeMs,
    unreachablePrimaryTimeoutMs - node.reportAgeMs,
    ...(node.stalledMs > 0 ? [nodeTimeoutMs - node.stalledMs] : []),
    ...(node.notSentToMs > 0 ? [nodeTimeoutMs - node.notSentToMs] : []),
    ...(node.promisedMs === undefined
      ? []
      : [ELECTION_PATIENCE_MS - node.promisedMs, fenceMs - node.promisedMs]),
    ...(node.goal === "draining" ? [policy.switchoverTimeoutMs - node.goalAgeMs] : []),
    ...(node.goal === "fast_forward" ? [policy.fastForwardTimeoutMs - node.goalAgeMs] : []),
  ]);
  return Math.min(...waits.filter((wait) => wait > 0), 10_000);
}
