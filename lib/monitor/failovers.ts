/** The failovers of a formation, read from its events. */
import { type Failover, failoversOf, phasesOf } from "../group/failovers.ts";
import type { EventRow } from "../shapes.ts";
import type { MonitorClient } from "./client.ts";

/** A failover that began before these is not told. */
const EVENTS_MAX = 20_000;

export type FormationFailover = { readonly groupId: number; readonly failover: Failover };

/** Oldest first, of all groups. */
export function failoversOfRows(rows: readonly EventRow[]): FormationFailover[] {
  const groups = [...new Set(rows.map(({ groupid }) => groupid))];
  const found = groups.flatMap((groupId) => {
    const events = rows
      .filter(({ groupid }) => groupid === groupId)
      .map((row) => ({
        atMs: row.eventtime.getTime(),
        nodeId: row.nodeid,
        nodeName: row.nodename,
        reported: row.reportedstate,
        goal: row.goalstate,
        rule: row.rule,
        description: row.description,
      }));
    return failoversOf(events).map((failover) => ({ groupId, failover }));
  });
  return found.toSorted((a, b) => a.failover.decidedMs - b.failover.decidedMs);
}

/** The last ones of a formation, oldest first. */
export async function readFailovers(
  monitor: MonitorClient,
  formation: string,
  count: number,
): Promise<FormationFailover[]> {
  return failoversOfRows(await monitor.events(formation, EVENTS_MAX)).slice(-count);
}

const iso = (ms: number | null): string | null => (ms === null ? null : new Date(ms).toISOString());

/** For programs: moments as timestamps, durations in milliseconds. */
export function failoverJson({ groupId, failover }: FormationFailover): Record<string, unknown> {
  const { kind, status, from, to, lostBytes, notes } = failover;
  return {
    ...{ groupId, kind, status, from, to, lostBytes, notes },
    at: {
      noticed: iso(failover.noticedMs),
      decided: iso(failover.decidedMs),
      closed: iso(failover.closedMs),
      disconnected: iso(failover.disconnectedMs),
      promoted: iso(failover.promotedMs),
      open: iso(failover.openMs),
      redundant: iso(failover.redundantMs),
    },
    ms: phasesOf(failover),
  };
}
