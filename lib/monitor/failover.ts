/** What follows a request for a failover, seen from the monitor's database. */
import { canTakeWrites } from "../fsm.ts";
import { primaryOf } from "../group/facts.ts";
import { phasesOf } from "../group/failovers.ts";
import type { GroupRow, NodeRow } from "../shapes.ts";
import { AppError } from "../sys/errors.ts";
import { waitUntil } from "../sys/retry.ts";
import type { MonitorClient } from "./client.ts";
import { failoversOfRows } from "./failovers.ts";

const LOOK_EVERY_MS = 100;

export type Failover = {
  readonly primary: NodeRow;
  /** From the moment at which the old primary was told to stop to the new one's first report; undefined: it had been down before. */
  readonly outageMs: number | undefined;
};

export const failoverValues = ({ primary, outageMs }: Failover) => ({
  nodeId: primary.nodeId,
  name: primary.name,
  host: primary.host,
  port: primary.port,
  outageMs: outageMs === undefined ? null : Math.round(outageMs),
});

export function failoverText({ primary, outageMs }: Failover): string {
  const outage =
    outageMs === undefined ? "" : `; nobody took writes for ${Math.round(outageMs)} ms`;
  return `Node ${primary.nodeId} "${primary.name}" (${primary.host}:${primary.port}) is the primary${outage}`;
}

const isOpen = (node: NodeRow): boolean =>
  canTakeWrites(node.goal) && canTakeWrites(node.reported) && node.pgRunning;

/** By the monitor's clock, from its events. */
async function outageOf(
  monitor: MonitorClient,
  before: GroupRow,
  lastEvent: number,
): Promise<number | undefined> {
  if (!before.nodes.some(isOpen)) return undefined;
  const rows = await monitor.events(before.formation, 200);
  const events = rows.filter(
    ({ eventid, groupid }) => Number(eventid) > lastEvent && groupid === before.groupId,
  );
  const [last] = failoversOfRows(events).slice(-1);
  return last && (phasesOf(last.failover).outage ?? undefined);
}

/**
 * Waits until a node is left alone for maintenance, a primary after another one has taken over; or until it's back.
 *
 * @throws {AppError} state: it was promoted instead; timeout
 */
export async function waitForMaintenance(
  monitor: MonitorClient,
  { formation, groupId }: Pick<GroupRow, "formation" | "groupId">,
  nodeId: number,
  on: boolean,
  timeoutMs: number,
): Promise<NodeRow> {
  const look = async (): Promise<NodeRow | undefined> => {
    const row = await monitor.groupView(formation, groupId);
    const node = row.nodes.find((each) => each.nodeId === nodeId);
    if (node === undefined) {
      throw new AppError("dropped", "the node was removed meanwhile", { detail: { node: nodeId } });
    }
    if (!on) return node.reported === "secondary" && node.goal === "secondary" ? node : undefined;
    if (!node.maintenance && row.request === undefined) {
      throw new AppError("state", "the node is needed: it is not left alone", {
        detail: { node: node.name, state: node.reported },
        hint: "roles/state.ts events says why.",
      });
    }
    return node.reported === "maintenance" && node.goal === "maintenance" ? node : undefined;
  };
  return waitUntil(look, {
    timeoutMs,
    everyMs: LOOK_EVERY_MS,
    what: on ? "the node to be left alone" : "the node to be a secondary again",
  });
}

/**
 * Waits until another node takes writes.
 *
 * @param before the group as it was before the request
 * @param lastEvent id of the formation's last event before the request
 * @throws {AppError} state: the failover was called off, and the old primary goes on; timeout
 */
async function waitForFailover(
  monitor: MonitorClient,
  before: GroupRow,
  lastEvent: number,
  timeoutMs: number,
): Promise<Failover> {
  const old = primaryOf(before.nodes);
  let blocked: string | undefined;
  const look = async (): Promise<NodeRow | undefined> => {
    const row = await monitor.groupView(before.formation, before.groupId);
    blocked = row.blocked;
    const open = row.nodes.find(isOpen);
    if (row.request !== undefined || open === undefined) return undefined;
    if (open.nodeId !== old?.nodeId) return open;
    throw new AppError("state", "no failover took place: the old primary goes on", {
      detail: { node: open.name, blocked },
      hint: "roles/state.ts events says why.",
    });
  };
  try {
    const primary = await waitUntil(look, {
      timeoutMs,
      everyMs: LOOK_EVERY_MS,
      what: "a new primary",
    });
    return { primary, outageMs: await outageOf(monitor, before, lastEvent) };
  } catch (error) {
    if (!(error instanceof AppError) || error.kind !== "timeout" || blocked === undefined)
      throw error;
    throw new AppError("timeout", error.message, {
      detail: { ...error.detail, blocked },
      hint: "roles/state.ts explain says what it waits for.",
      cause: error,
    });
  }
}

/**
 * Asks, and waits until another node takes writes.
 *
 * @param ask is handed the group as it is before
 */
export async function failOver(
  monitor: MonitorClient,
  { formation, group }: { readonly formation: string; readonly group: number },
  ask: (before: GroupRow) => Promise<void>,
  timeoutMs: number,
): Promise<Failover> {
  const before = await monitor.groupView(formation, group);
  const [last] = await monitor.events(formation, 1);
  await ask(before);
  return waitForFailover(monitor, before, Number(last?.eventid ?? 0), timeoutMs);
}
