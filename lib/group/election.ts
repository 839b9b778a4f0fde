/** Whom to promote when the primary is to be replaced. No goals are assigned here. */
import { type NodeState, PROMISED, RECEIVING } from "../fsm.ts";
import { isAccepted, isOnLineage } from "./history.ts";
import { isAsynchronous, overlaps, possibleSets } from "./quorum.ts";
import type { GroupView, NodeView, Policy } from "./view.ts";

/** Its keeper has been heard of within node_timeout. */
export const isReporting = (node: NodeView, policy: Policy): boolean =>
  node.reportAgeMs < policy.nodeTimeoutMs;

export const isHealthy = (node: NodeView, policy: Policy): boolean =>
  isReporting(node, policy) && node.pgRunning;

/** It has promised to receive nothing from the old primary, and was not told otherwise since. */
export const hasPromised = ({ reported, goal }: NodeView): boolean =>
  PROMISED.includes(reported) && PROMISED.includes(goal);

/** A standby that can promise, or has. */
const isVoter = (node: NodeView): boolean =>
  hasPromised(node) ||
  (RECEIVING.includes(node.reported) && [...RECEIVING, ...PROMISED].includes(node.goal));

export type Standbys = {
  /** Those that can take part in an election; on the group's history, alive or not. */
  readonly voters: readonly NodeView[];
  /** The healthy ones among them. */
  readonly healthy: readonly NodeView[];
};

export function standbysOf(view: GroupView, primary: NodeView | undefined): Standbys {
  const voters = view.nodes.filter(
    (node) =>
      node.nodeId !== primary?.nodeId &&
      isVoter(node) &&
      (node.inRecovery || isAccepted(node, view)),
  );
  const known = voters.filter((node) => isOnLineage(node, view));
  return { voters: known, healthy: known.filter((node) => isHealthy(node, view.policy)) };
}

const idsOf = (nodes: readonly NodeView[]): ReadonlySet<number> =>
  new Set(nodes.map(({ nodeId }) => nodeId));

/** What only the operator can allow: that commits may be lost. */
const lossIsAllowed = (view: GroupView): boolean => view.request?.allowDataLoss === true;

/** An asynchronous group takes a bounded loss by choice. */
function lagIsAllowed(view: GroupView, primary: NodeView | undefined, best: bigint): boolean {
  if (!isAsynchronous(view) || lossIsAllowed(view)) return true;
  return primary === undefined || primary.lsn - best <= view.settings.maximumLagBytes;
}

const mayBePromoted = (node: NodeView, view: GroupView): boolean =>
  view.request?.target === undefined || view.request.planned
    ? node.candidatePriority > 0
    : node.nodeId === view.request.target;

/**
 * Who is asked first: those that nobody wants left alone, of these the highest candidate priority, then the most
 * advanced, then the lowest id.
 */
export const byPreference = (a: NodeView, b: NodeView): number =>
  Number(a.maintenance) - Number(b.maintenance) ||
  b.candidatePriority - a.candidatePriority ||
  Number(b.lsn - a.lsn) ||
  a.nodeId - b.nodeId;

export function highest(nodes: readonly NodeView[]): bigint {
  let best = 0n;
  for (const { lsn } of nodes) if (lsn > best) best = lsn;
  return best;
}

/**
 * The nodes among which every acknowledged commit is, once they have promised; undefined: there are
 * none such. The healthy ones if they are enough, since only from them can WAL be fetched.
 */
function electorate(view: GroupView, nodes: Standbys): readonly NodeView[] | undefined {
  const { voters, healthy } = nodes;
  if (healthy.length === 0) return undefined;
  if (lossIsAllowed(view)) return healthy;
  const sets = possibleSets(view);
  const asynchronous = isAsynchronous(view);
  if (overlaps(sets, idsOf(healthy), asynchronous)) return healthy;
  // a dead one has promised too, and nobody needs it when others are as advanced
  const dead = voters.filter((node) => !healthy.includes(node) && hasPromised(node));
  const all = [...healthy, ...dead];
  return overlaps(sets, idsOf(all), asynchronous) && highest(healthy) >= highest(dead)
    ? all
    : undefined;
}

/** Whether one of the standbys that are there now could be promoted, once they have reported. */
export function isElectable(view: GroupView, primary: NodeView | undefined): boolean {
  const nodes = standbysOf(view, primary);
  const all = electorate(view, nodes);
  return (
    all !== undefined &&
    nodes.healthy.some((node) => mayBePromoted(node, view)) &&
    lagIsAllowed(view, primary, highest(nodes.healthy))
  );
}

/** Whether this node alone has every commit that the primary can have acknowledged. */
export function isSafe(node: NodeView, view: GroupView, primary: NodeView): boolean {
  if (
    !(node.inRecovery || isAccepted(node, view)) ||
    !isOnLineage(node, view) ||
    !mayBePromoted(node, view)
  )
    return false;
  if (!lagIsAllowed(view, primary, node.lsn)) return false;
  if (lossIsAllowed(view)) return true;
  return overlaps(possibleSets(view), new Set([node.nodeId]), isAsynchronous(view));
}

/** Standbys that are there and have not reported yet are waited for, but not for ever. */
export const ELECTION_PATIENCE_MS = 1000;

const BEING_PROMOTED: readonly NodeState[] = [
  "fast_forward",
  "prepare_promotion",
  "stop_replication",
];
/** Some node is being promoted, or fetches what it lacks before it is. */
export const chosenOf = (nodes: readonly NodeView[]): NodeView | undefined =>
  nodes.find(({ goal }) => BEING_PROMOTED.includes(goal));

export type Election = {
  readonly winner: NodeView;
  /** The node to fetch WAL from first; undefined: the winner has all that anyone has. */
  readonly source: NodeView | undefined;
};

/**
 * The outcome of an election among the nodes that have promised: ancestry before everything, then
 * the operator's target or the highest candidate priority, then position, then the lowest id. The
 * winner first fetches what another one has more.
 *
 * @returns undefined while nobody can be promoted: too few have reported, or who must isn't there
 */
export function elect(view: GroupView, primary: NodeView | undefined): Election | undefined {
  if (chosenOf(view.nodes) !== undefined) return undefined;
  const { voters, healthy } = standbysOf(view, primary);
  const promised: Standbys = {
    voters: voters.filter(hasPromised),
    healthy: healthy.filter(hasPromised),
  };
  const isWaiting = healthy.some((node) => !hasPromised(node));
  const longest = Math.max(0, ...promised.voters.map(({ promisedMs }) => promisedMs ?? 0));
  if (isWaiting && longest < ELECTION_PATIENCE_MS) return undefined;
  const all = electorate(view, promised);
  if (all === undefined) return undefined;
  const best = highest(all);
  if (!lagIsAllowed(view, primary, best)) return undefined;
  const candidates = promised.healthy
    .filter((node) => mayBePromoted(node, view))
    .toSorted(byPreference);
  const complete = (node: NodeView): boolean => node.lsn >= best;
  const source = promised.healthy.find(complete);
  const preferred = candidates.find((node) => complete(node) || (source && !node.passedOver));
  const winner = preferred ?? (source && candidates[0]);
  if (winner === undefined) return undefined;
  return { winner, source: complete(winner) ? undefined : source };
}

/** Whether the node that fetches has reached what any of the others has. */
export function hasFetched(
  node: NodeView,
  view: GroupView,
  primary: NodeView | undefined,
): boolean {
  const { voters, healthy } = standbysOf(view, primary);
  const others = (nodes: readonly NodeView[]) =>
    nodes.filter((each) => hasPromised(each) && each.nodeId !== node.nodeId);
  const all = electorate(view, {
    voters: [node, ...others(voters)],
    healthy: [node, ...others(healthy)],
  });
  return all !== undefined && isOnLineage(node, view) && node.lsn >= highest(all);
}

/** The node to fetch from is there no more, or it takes too long. */
export function hasFailedToFetch(
  node: NodeView,
  view: GroupView,
  primary: NodeView | undefined,
): boolean {
  const source = standbysOf(view, primary).healthy.find(({ nodeId }) => nodeId === node.fetchFrom);
  const isThere = source !== undefined && hasPromised(source);
  return !isThere || node.goalAgeMs >= view.policy.fastForwardTimeoutMs;
}
