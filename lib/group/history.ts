/** The group's timelines: which servers are part of them, and how they go on. */
import { canTakeWrites } from "../fsm.ts";
import type { GroupView, NodeView, Timeline } from "./view.ts";

/**
 * Whether a node's WAL is part of the group's history: on its current timeline, or on an older one
 * and not beyond the point where the history left that. An unknown timeline proves nothing.
 */
export function isOnLineage(
  node: Pick<NodeView, "timeline" | "lsn">,
  { history }: Pick<GroupView, "history">,
): boolean {
  if (node.timeline === 0) return false;
  const last = history.at(-1);
  if (last === undefined || node.timeline === last.timeline) return true;
  for (let at = last; at.parent !== 0; ) {
    if (node.timeline === at.parent) return node.lsn <= at.forkLsn;
    const next = history.find(({ timeline }) => timeline === at.parent);
    if (next === undefined) return false;
    at = next;
  }
  return false;
}

/** The operator has said that the group goes on with this node, on the timeline that the history ends with. */
export const isAccepted = (
  node: Pick<NodeView, "nodeId" | "timeline">,
  { request, history }: Pick<GroupView, "request" | "history">,
): boolean =>
  request?.target === node.nodeId &&
  request.allowDataLoss &&
  node.timeline > 0 &&
  node.timeline === history.at(-1)?.timeline;

/** The timeline that begins when this node takes writes; undefined: the history has it already. */
export function nextTimeline(
  node: Pick<NodeView, "timeline" | "promotion">,
  { history }: Pick<GroupView, "history">,
): Timeline | undefined {
  const parent = history.at(-1)?.timeline ?? 0;
  const { promotion } = node;
  const known = promotion && promotion.timeline >= node.timeline ? promotion : undefined;
  const timeline = known?.timeline ?? node.timeline;
  if (timeline <= parent) return undefined;
  return { timeline, parent, forkLsn: parent === 0 ? 0n : (known?.forkLsn ?? 0n) };
}

/**
 * The primary, when it takes writes on a timeline that the history doesn't have: the group's first,
 * or one that it was restored to by hand. Where that left the one before need not be known: standbys
 * that don't follow by themselves are then rewound.
 */
export function primaryAhead(view: GroupView): NodeView | undefined {
  // the operator has just decided against one
  if (view.nodes.some((node) => isAccepted(node, view))) return undefined;
  return view.nodes.find(
    (node) =>
      node.reportAgeMs < view.policy.nodeTimeoutMs &&
      canTakeWrites(node.goal) &&
      canTakeWrites(node.reported) &&
      node.pgRunning &&
      !node.inRecovery &&
      nextTimeline(node, view) !== undefined,
  );
}
