/** GroupView → the facts that the rules read. The only place where thresholds are compared. */
import type { Decision, Fact, GroupRule, NodeState, Subject } from "../fsm.ts";
import { canTakeWrites, decide, GROUP_RULES } from "../fsm.ts";
import { isInSync } from "./quorum.ts";
import type { GroupView, NodeView, Policy, SyncSet } from "./view.ts";

const BEING_DEMOTED: readonly NodeState[] = ["draining", "demote_timeout", "prepare_maintenance"];
/** Places in the life of a node where it holds no data of the group yet, or no more. */
const NOT_A_STANDBY: readonly NodeState[] = ["init", "wait_standby", "dropped"];
const STOPPED_BY_GOAL: readonly NodeState[] = ["draining", "demote_timeout", "demoted"];

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

/** Its keeper has been heard of within node_timeout. */
function isReporting(node: NodeView, policy: Policy): boolean {
  return node.reportAgeMs < policy.nodeTimeoutMs;
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

function isHealthy(node: NodeView, policy: Policy): boolean {
  return isReporting(node, policy) && node.pgRunning;
}

/** Not the complement of healthy: a node may be neither. */
function isUnhealthy(node: NodeView, policy: Policy): boolean {
  return isReporting(node, policy) ? !node.pgRunning : isGone(node, policy);
}

/**
 * A primary is dead when its living keeper says that PostgreSQL is down (a fenced one only when it
 * can't be started again), or when nothing at all is heard of it and `standby` receives nothing;
 * a standby that goes on receiving holds this back for unreachable_primary_timeout at most.
 */
function isPrimaryDown(primary: NodeView, standby: NodeView, policy: Policy): boolean {
  if (isReporting(primary, policy)) {
    return (
      !primary.pgRunning && (primary.reported !== "demote_timeout" || primary.startFailures > 0)
    );
  }
  return (
    isGone(primary, policy) &&
    (!standby.streaming || primary.reportAgeMs >= policy.unreachablePrimaryTimeoutMs)
  );
}

function factsOf(self: NodeView, view: GroupView, primary: NodeView | undefined): Set<Fact> {
  const { policy, sync } = view;
  const others = view.nodes.filter((node) => node.nodeId !== self.nodeId);
  const facts: [Fact, boolean][] = [
    ["alone", others.every((node) => node.goal === "init" && node.nodeId > self.nodeId)],
    ["noStandby", others.every((node) => NOT_A_STANDBY.includes(node.goal))],
    ["selfHealthy", isHealthy(self, policy)],
    ["selfUnhealthy", isUnhealthy(self, policy)],
    ["selfStreaming", self.streaming],
    ["selfStalled", isHealthy(self, policy) && self.stalledMs >= policy.nodeTimeoutMs],
    ["selfCandidate", self.candidatePriority > 0],
    ["selfQuorum", self.replicationQuorum],
  ];
  if (primary) {
    facts.push(
      ["selfInSync", isInSync(self.nodeId, primary.nodeId, sync, primary.syncInForce)],
      ["sameTimeline", self.timeline > 0 && self.timeline === primary.timeline],
      ["caughtUp", self.lsn > 0n && primary.lsn - self.lsn <= policy.caughtUpBytes],
      ["primaryHealthy", isHealthy(primary, policy)],
      ["primaryDown", isPrimaryDown(primary, self, policy)],
      ["primaryStopped", STOPPED_BY_GOAL.includes(primary.reported) && !primary.pgRunning],
      ["primarySilent", !isReporting(primary, policy)],
      ["primaryReporting", isReporting(primary, policy)],
    );
  }
  return new Set(facts.filter(([, holds]) => holds).map(([fact]) => fact));
}

/** The set that a rule's `sync` asks for, were it assigned now. */
export function assignedSet(
  rule: GroupRule,
  selfId: number,
  goals: ReadonlyMap<number, NodeState>,
  view: GroupView,
): SyncSet {
  const members = rule.sync === "self" ? [selfId] : [];
  const writer =
    [...goals].find(([, goal]) => canTakeWrites(goal))?.[0] ??
    view.nodes.find((node) => canTakeWrites(node.goal))?.nodeId ??
    view.sync.primaryId;
  return { version: view.sync.version + 1, primaryId: writer, members, number: members.length };
}

const sameSet = (a: SyncSet, b: SyncSet): boolean =>
  a.primaryId === b.primaryId && a.number === b.number && a.members.join() === b.members.join();

export type GroupDecision = Decision & { readonly sync: SyncSet | undefined };

/** What the rules make of a group: goals, and the new synchronous set when it changes. */
export function decideGroup(
  view: GroupView,
  rules: readonly GroupRule[] = GROUP_RULES,
): GroupDecision | undefined {
  const current = primaryOf(view.nodes);
  const subjects = view.nodes.map((self): Subject => {
    const primary = current?.nodeId === self.nodeId ? undefined : current;
    return { self, primary, facts: factsOf(self, view, primary) };
  });
  const decision = decide(subjects, rules);
  if (decision === undefined) return undefined;
  const { rule, selfId, goals } = decision;
  if (rule.sync === undefined) return { ...decision, sync: undefined };
  const sync = assignedSet(rule, selfId, goals, view);
  return { ...decision, sync: sameSet(sync, view.sync) ? undefined : sync };
}

/** Milliseconds until a threshold that the rules compare with is crossed; the next time to look. */
export function nextDeadlineMs(view: GroupView): number {
  const { nodeTimeoutMs, unreachablePrimaryTimeoutMs } = view.policy;
  const waits = view.nodes.flatMap((node) => [
    nodeTimeoutMs - node.reportAgeMs,
    unreachablePrimaryTimeoutMs - node.reportAgeMs,
    ...(node.stalledMs > 0 ? [nodeTimeoutMs - node.stalledMs] : []),
  ]);
  return Math.min(...waits.filter((wait) => wait > 0), 10_000);
}
