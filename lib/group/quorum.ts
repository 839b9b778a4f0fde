/** `synchronous_standby_names`, and the arithmetic that keeps acknowledged commits (design: the in-sync set). */
import type { SyncSet } from "./view.ts";

/** Slot and application name of a standby: what the primary's names list. */
export const standbyName = (nodeId: number): string => `pgautofailover_standby_${nodeId}`;

/**
 * The primary's `synchronous_standby_names`. When all members must flush, FIRST says the same as ANY,
 * and pg_stat_replication then calls them `sync`, which is what operators look for.
 *
 * @returns e.g. `FIRST 1 (pgautofailover_standby_2)`; "" makes commits asynchronous
 * @throws {RangeError} more standbys are required than there are members
 * @see PostgreSQL 15 docs, "synchronous_standby_names"
 */
export function synchronousStandbyNames(set: Pick<SyncSet, "members" | "number">): string {
  if (set.members.length === 0) return "";
  if (set.number < 1 || set.number > set.members.length) {
    throw new RangeError(`${set.number} of ${set.members.length} standbys can't be synchronous`);
  }
  const word = set.number === set.members.length ? "FIRST" : "ANY";
  return `${word} ${set.number} (${set.members.map(standbyName).join(", ")})`;
}

/**
 * How many members of the set must have stopped receiving, and reported, before one of them may be
 * promoted: any commit that was acknowledged is then on at least one of them.
 *
 * @param assigned what the monitor last told the primary to apply
 * @param inForce what the primary last reported to be in force
 * @returns |U| − k + 1; undefined when nothing guarantees a commit (no set, or versions differ:
 *   another assignment may have been in force in between)
 */
export function overlapNeeded(assigned: SyncSet, inForce: SyncSet | undefined): number | undefined {
  if (inForce === undefined || inForce.version !== assigned.version) return undefined;
  if (inForce.primaryId !== assigned.primaryId) return undefined;
  const union = new Set([...assigned.members, ...inForce.members]);
  const acknowledging = Math.min(
    assigned.members.length > 0 ? assigned.number : 0,
    inForce.members.length > 0 ? inForce.number : 0,
  );
  return acknowledging > 0 ? union.size - acknowledging + 1 : undefined;
}

/** Whether this standby alone has every commit that the primary can have acknowledged. */
export function isInSync(
  nodeId: number,
  primaryId: number,
  assigned: SyncSet,
  inForce: SyncSet | undefined,
): boolean {
  return (
    assigned.primaryId === primaryId &&
    overlapNeeded(assigned, inForce) === 1 &&
    assigned.members.includes(nodeId) &&
    (inForce?.members.includes(nodeId) ?? false)
  );
}
