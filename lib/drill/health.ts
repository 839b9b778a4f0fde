/** Whether a group is as it should be: nothing is broken on purpose where something is broken already. */
import { isHealthy } from "../group/election.ts";
import type { GroupView, NodeView } from "../group/view.ts";

/** With what the monitor says of failovers that it may not carry out. */
type Group = GroupView & { readonly blocked?: string | undefined };

const named = ({ nodeId, name }: NodeView): string => `node ${nodeId} "${name}"`;

const isPrimary = ({ reported, goal }: NodeView): boolean =>
  reported === "primary" && goal === "primary";

function troubleOfNode(node: NodeView, view: GroupView): string | undefined {
  if (node.maintenance) return `${named(node)} is in maintenance`;
  if (!isHealthy(node, view.policy)) {
    return node.pgRunning
      ? `nothing was heard of ${named(node)} for ${Math.round(node.reportAgeMs / 1000)} s`
      : `PostgreSQL of ${named(node)} doesn't run`;
  }
  if (isPrimary(node)) return undefined;
  const { reported, goal } = node;
  if (reported !== "secondary" || goal !== "secondary")
    return `${named(node)} is ${reported}${goal === reported ? "" : `, and is to be ${goal}`}`;
  return node.streaming ? undefined : `${named(node)} doesn't stream from the primary`;
}

/** What keeps a group from perfect health, a sentence each: one primary, all others synchronous where they may be, no failover under way. */
export function troublesOf(view: Group): string[] {
  const { nodes, sync, inForce } = view;
  const primaries = nodes.filter(isPrimary).length;
  const isSynchronous = sync.number > 0;
  const isInForce = inForce?.version === sync.version && inForce.primaryId === sync.primaryId;
  return [
    ...(view.blocked === undefined ? [] : [view.blocked]),
    ...(view.request === undefined ? [] : ["a failover or switchover was asked for"]),
    ...(primaries === 1 ? [] : ["no node is primary"]),
    ...nodes.flatMap((node) => troubleOfNode(node, view) ?? []),
    ...(nodes.length > 1 ? [] : ["there is no standby"]),
    ...(isSynchronous ? [] : ["commits wait for no standby, so some may be lost"]),
    ...(isSynchronous && !isInForce ? ["the set of synchronous standbys is not in force yet"] : []),
  ];
}
