/** The monitor's loop: wake (a report, a deadline, a probe) → read → decide → write → wake the keepers. */
import type { NodeState } from "../fsm.ts";
import type { GroupRow, NodeRow } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import { logger } from "../sys/log.ts";
import { type Notifier, OVERDUE_MS } from "../sys/notify.ts";
import { type Db, openDb, type Target, type TlsParams } from "../sys/sql.ts";
import { probe } from "./health.ts";
import type { Overview } from "./http.ts";
import { decideAndWrite, type GroupKey, groups, recordHealth, recoveryReason } from "./store.ts";

const log = logger("monitor");

const TICK_MS = 500;
/** A tick that comes this late means that this process, or its host, was frozen. */
const FROZEN_MS = 2000;
/** The database's clock and the monotonic one may differ by this much between two looks. */
const CLOCK_JUMP_MS = 500;
const PROBE_TIMEOUT_MS = 1000;
const PROBE_EVERY_MS = 10_000;
const PROBE_LATE_EVERY_MS = 450;
/** Nobody heard of for so many heartbeats: it is the monitor that is cut off, or about to be. */
const DEAF_HEARTBEATS = 2;
const NOT_PROBED: readonly NodeState[] = ["init", "wait_standby", "dropped"];

type GroupWatch = {
  readonly key: GroupKey;
  running: boolean;
  again: boolean;
  timer: ReturnType<typeof setTimeout> | undefined;
  row: GroupRow | undefined;
  seen: { readonly clockMs: number; readonly monotonicMs: number } | undefined;
  /** Since when some node or other has been heard of, without a gap; and when that was last. */
  hearingSince: number;
  lastHeard: number;
};

/** For how long the monitor has not been deaf: who was silent while nobody was heard is not judged by that. */
function heardMs(watch: GroupWatch, row: GroupRow): number {
  const now = monotonicMs();
  const deafMs = DEAF_HEARTBEATS * row.policy.heartbeatMs;
  const lastHeard = now - Math.min(...row.nodes.map(({ reportAgeMs }) => reportAgeMs));
  if (lastHeard - watch.lastHeard > deafMs) watch.hearingSince = now;
  watch.lastHeard = lastHeard;
  return now - lastHeard > deafMs ? 0 : now - watch.hearingSince;
}

const keyText = ({ formation, groupId }: GroupKey): string => `${formation}/${groupId}`;

/**
 * Serves all groups until `signal` aborts or the connection to the database is lost.
 *
 * @param target the monitor's own database, as its owner
 * @param overview where what was read last is left for others
 * @param tls how nodes are connected to
 * @param notifier hears that it serves, and that a look at a group ends, with or without a decision: however slow the
 *   database is, its queries have deadlines
 */
export async function watchGroups(
  target: Target,
  signal: AbortSignal,
  overview: Overview,
  tls: TlsParams,
  notifier: Notifier,
): Promise<void> {
  const lost = Promise.withResolvers<void>();
  await using db: Db = openDb(target, { onClose: () => lost.resolve() });
  await using listener: Db = openDb(target, { onClose: () => lost.resolve() });
  const watches = new Map<string, GroupWatch>();
  const probed = new Map<number, number>();
  const probing = new Set<number>();
  let watchingSince = monotonicMs();
  let lastTick = watchingSince;
  let lastReason: string | undefined;

  const startOver = (why: string): void => {
    watchingSince = monotonicMs();
    log.warn(`${why}: every node gets a full node_timeout before it is judged`);
  };

  const isLate = (node: NodeRow, row: GroupRow): boolean =>
    node.reportAgeMs > 1.5 * row.policy.heartbeatMs;

  async function probeNode(watch: GroupWatch, node: NodeRow): Promise<void> {
    const begun = monotonicMs();
    probing.add(node.nodeId);
    probed.set(node.nodeId, begun);
    try {
      const health = await probe(node, PROBE_TIMEOUT_MS, tls);
      await recordHealth(db, node.nodeId, health, monotonicMs() - begun);
      if (health !== node.health) {
        log.info(
          `Node ${node.nodeId} "${node.name}" (${node.host}:${node.port}) answers the health check: ${health}`,
        );
      }
      wake(watch);
    } catch (error) {
      log.debug(`health check not recorded: ${errorText(error)}`);
    } finally {
      probing.delete(node.nodeId);
    }
  }

  function probeDue(watch: GroupWatch): void {
    const { row, seen } = watch;
    if (row === undefined || seen === undefined) return;
    const sinceMs = monotonicMs() - seen.monotonicMs;
    for (const node of row.nodes) {
      if (NOT_PROBED.includes(node.goal) || NOT_PROBED.includes(node.reported)) continue;
      if (probing.has(node.nodeId)) continue;
      const late =
        isLate({ ...node, reportAgeMs: node.reportAgeMs + sinceMs }, row) || node.health === "bad";
      const age = monotonicMs() - (probed.get(node.nodeId) ?? Number.NEGATIVE_INFINITY);
      if (age >= (late ? PROBE_LATE_EVERY_MS : PROBE_EVERY_MS)) void probeNode(watch, node);
    }
  }

  /** Before anything is decided: ages that a jump of the database's clock has made condemn nobody. */
  function noticeClock(watch: GroupWatch, row: GroupRow): void {
    const now = monotonicMs();
    const drift = watch.seen
      ? row.clockMs - watch.seen.clockMs - (now - watch.seen.monotonicMs)
      : 0;
    if (Math.abs(drift) > CLOCK_JUMP_MS) startOver(`The clock jumped by ${Math.round(drift)} ms`);
    watch.seen = { clockMs: row.clockMs, monotonicMs: now };
  }

  async function sayWhyNothingIsDecided(): Promise<void> {
    const reason = await recoveryReason(db);
    if (reason !== undefined && reason !== lastReason)
      log.error(`Nothing is decided before roles/monitor.ts recover: ${reason}`);
    lastReason = reason;
  }

  async function look(watch: GroupWatch): Promise<void> {
    const outcome = await decideAndWrite(db, watch.key, monotonicMs() - watchingSince, (row) => {
      noticeClock(watch, row);
      return Math.min(monotonicMs() - watchingSince, heardMs(watch, row));
    });
    if (outcome === undefined) {
      overview.groups.delete(keyText(watch.key));
      watches.delete(keyText(watch.key)); // its formation was dropped
      return sayWhyNothingIsDecided();
    }
    const { row, decisions } = outcome;
    const now = monotonicMs();
    overview.groups.set(keyText(watch.key), { row, readAtMs: now });
    watch.row = row;
    watch.seen = { clockMs: row.clockMs, monotonicMs: now };
    for (const { rule, selfId, goals, sync } of decisions) {
      const assigned = [...goals].map(([nodeId, goal]) => `node ${nodeId} to "${goal}"`).join(", ");
      const names = sync ? `; synchronous standbys: ${sync.members.join(", ") || "none"}` : "";
      log.info(`${rule.id} (node ${selfId}): ${rule.why}: ${assigned || "removed"}${names}`);
    }
    probeDue(watch);
    const untilLate = row.nodes
      .map((node) => 1.5 * row.policy.heartbeatMs - node.reportAgeMs)
      .filter((wait) => wait > 0);
    watch.timer = setTimeout(
      () => wake(watch),
      Math.max(1, Math.min(outcome.nextMs, ...untilLate) + 1),
    );
  }

  function wake(watch: GroupWatch): void {
    if (watch.running) {
      watch.again = true;
      return;
    }
    if (signal.aborted) return;
    watch.running = true;
    watch.again = false;
    const looking = `the look at group ${keyText(watch.key)}`;
    notifier.expect(looking, OVERDUE_MS);
    clearTimeout(watch.timer);
    look(watch)
      .catch((error: unknown) => log.error(`group ${keyText(watch.key)}: ${errorText(error)}`))
      .finally(() => {
        watch.running = false;
        notifier.met(looking);
        if (watch.again) wake(watch);
      });
  }

  function watchOf(key: GroupKey): GroupWatch {
    const found = watches.get(keyText(key));
    if (found) return found;
    const made: GroupWatch = {
      key,
      running: false,
      again: false,
      timer: undefined,
      row: undefined,
      seen: undefined,
      hearingSince: Number.NEGATIVE_INFINITY,
      lastHeard: Number.POSITIVE_INFINITY,
    };
    watches.set(keyText(key), made);
    return made;
  }

  const wakeAll = async (): Promise<void> => {
    for (const key of await groups(db)) wake(watchOf(key));
  };

  const tick = setInterval(() => {
    const now = monotonicMs();
    if (now - lastTick > FROZEN_MS)
      startOver(`This process stood still for ${Math.round(now - lastTick)} ms`);
    lastTick = now;
    for (const watch of watches.values()) {
      probeDue(watch);
      // a decision that failed has no timer: look again
      if (!watch.running && watch.seen && now - watch.seen.monotonicMs > FROZEN_MS) wake(watch);
    }
  }, TICK_MS);
  const stop = (): void => lost.resolve();
  signal.addEventListener("abort", stop, { once: true });
  try {
    await listener.listen(
      "report",
      (payload) => {
        const at = payload.lastIndexOf("/");
        wake(watchOf({ formation: payload.slice(0, at), groupId: Number(payload.slice(at + 1)) }));
      },
      () => void wakeAll().catch((error: unknown) => log.error(errorText(error))),
    );
    overview.isServing = true;
    notifier.ready();
    if (!signal.aborted) await lost.promise;
  } finally {
    overview.isServing = false;
    signal.removeEventListener("abort", stop);
    clearInterval(tick);
    for (const { timer } of watches.values()) clearTimeout(timer);
  }
}
