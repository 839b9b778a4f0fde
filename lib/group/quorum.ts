/** `synchronous_standby_names`, and the arithmetic that keeps acknowledged commits (design: the in-sync set). */
import type { NodeState } from "../fsm.ts";
import type { GroupView, NodeView, SyncSet } from "./view.ts";

/** Slot and application name of a standby: what the primary's names list. */
export const standbyName = (nodeId: number): string => `pgautofailover_standby_${nodeId}`;

/** The node that a slot or an application is named after; undefined: none of ours. */
export function standbyId(name: string): number | undefined {
  const [, id] = /^pgautofailover_standby_(\d+)$/.exec(name) ?? [];
  return id === undefined ? undefined : Number(id);
}

/**
 * The primary's `synchronous_standby_names`. ANY also where all members must flush: a walsender that hangs keeps
 * the place in the list that it had, and with FIRST commits would wait for it after its standby was left out.
 *
 * @returns e.g. `ANY 1 (pgautofailover_standby_2)`; "" makes commits asynchronous
 * @throws {RangeError} more standbys are required than there are members
 * @see PostgreSQL 15 docs, "synchronous_standby_names"
 */
export function synchronousStandbyNames(set: Pick<SyncSet, "members" | "number">): string {
  if (set.number === 0) return "";
  if (set.number < 1 || set.number > set.members.length) {
    throw new RangeError(`${set.number} of ${set.members.length} standbys can't be synchronous`);
  }
  return `ANY ${set.number} (${set.members.map(standbyName).join(", ")})`;
}

/** Nobody of the group may hold commits up: its nodes are all asynchronous by choice. */
export const isAsynchronous = ({ settings, nodes }: GroupView): boolean =>
  settings.durability === "performance" || nodes.every((node) => !node.replicationQuorum);

/**
 * Every set by which the primary may have acknowledged commits: what it last reported to be in force,
 * and whatever it was told since. What was in force before is no matter: a set counts as in force only
 * when enough of its members have flushed all that was committed before (`isBinding`).
 *
 * @returns undefined when that isn't known
 */
export function possibleSets({ sync, pending, inForce }: GroupView): SyncSet[] | undefined {
  if (inForce === undefined || inForce.primaryId !== sync.primaryId) return undefined;
  if (inForce.version > sync.version) return undefined;
  const since = [...pending, sync].filter(
    ({ version, primaryId }) => version > inForce.version && primaryId === sync.primaryId,
  );
  return [inForce, ...since];
}

/** What stays possible beside the next assignment: all that may have been in force since it last was told. */
export const pendingAfter = (
  { pending, sync, inForce }: Pick<GroupView, "pending" | "sync" | "inForce">,
  next: SyncSet,
): SyncSet[] =>
  [...pending, sync].filter(
    ({ primaryId, version }) => primaryId === next.primaryId && version >= (inForce?.version ?? 0),
  );

/**
 * Whether a set binds what was committed before it, too: as many members as a commit waits for have
 * flushed that. Any |members| − number + 1 of them, as an election asks for, then include one that has.
 */
export const isBinding = (
  { members, number }: Pick<SyncSet, "members" | "number">,
  hasFlushed: (nodeId: number) => boolean,
): boolean => members.filter(hasFlushed).length >= number;

/** How many members of a set must have stopped receiving so that no commit is acknowledged without them. */
const needed = ({ members, number }: SyncSet): number => members.length - Math.max(1, number) + 1;

/**
 * Whether these nodes, once they receive nothing more, have every acknowledged commit among them, and
 * the primary can acknowledge no more: |members| − number + 1 of each set, so that any that many
 * include one that has flushed the commit.
 *
 * @param asynchronous the group has chosen that commits wait for nobody: its sets then only tell who
 *   might still reply to the primary
 */
export function overlaps(
  sets: readonly SyncSet[] | undefined,
  nodeIds: ReadonlySet<number>,
  asynchronous = false,
): boolean {
  return (
    sets?.every(
      (set) =>
        set.members.length > 0 &&
        (set.number > 0 || asynchronous) &&
        set.members.filter((id) => nodeIds.has(id)).length >= needed(set),
    ) ?? false
  );
}

/** Those members of the sets that are not among these nodes, where more of a set are needed. */
export function missingFrom(sets: readonly SyncSet[], nodeIds: ReadonlySet<number>): number[] {
  const missing = sets
    .filter((set) => !overlaps([set], nodeIds, true))
    .flatMap(({ members }) => members.filter((id) => !nodeIds.has(id)));
  return [...new Set(missing)].toSorted((a, b) => a - b);
}

/** Places in the life of a node where it holds no data of the group yet, or no more. */
const WITHOUT_DATA: readonly NodeState[] = ["init", "wait_standby", "dropped"];

/**
 * The set that a primary is to have: the healthy secondaries of the quorum. Under `protection`, once
 * commits have waited for standbys, too few of those are filled up with all others, whoever comes
 * back first.
 *
 * @param goalOf the goals that the nodes are to have
 */
export function desiredSet(
  view: GroupView,
  primaryId: number,
  goalOf: (node: NodeView) => NodeState,
): Pick<SyncSet, "members" | "number"> {
  const { settings, sync, nodes } = view;
  const others = nodes.filter((node) => node.nodeId !== primaryId);
  const ids = (chosen: readonly NodeView[]): number[] =>
    chosen.map(({ nodeId }) => nodeId).toSorted((a, b) => a - b);
  const secondaries = others.filter(
    (node) => node.reported === "secondary" && goalOf(node) === "secondary",
  );
  if (isAsynchronous(view)) return { members: ids(secondaries), number: 0 };
  const wanted = Math.max(1, settings.numberSyncStandbys);
  const healthy = secondaries.filter((node) => node.replicationQuorum);
  const waited = sync.number > 0;
  if (settings.durability === "protection" && healthy.length < wanted && waited) {
    const present = others.filter(
      (node) => node.replicationQuorum && !WITHOUT_DATA.includes(goalOf(node)),
    );
    const cared = present.filter((node) => goalOf(node) !== "maintenance" && !node.maintenance);
    const all = cared.length > 0 ? cared : present;
    return { members: ids(all), number: Math.min(wanted, all.length) };
  }
  return { members: ids(healthy), number: Math.min(wanted, healthy.length) };
}

export const sameMembers = (
  a: Pick<SyncSet, "members" | "number">,
  b: Pick<SyncSet, "members" | "number">,
): boolean => a.number === b.number && a.members.join() === b.members.join();
