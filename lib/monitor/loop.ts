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
import {
  decideAndWrite,
  type GroupKey,
  groups,
  latestReports,
  nextLookMs,
  recordHealth,
  recoveryReason,
  refreshed,
} from "./store.ts";

const log = logger("monitor");

/** The ages of all reports are read this often, together; only where that matters a group is looked at by itself. */
const TICK_MS = 250;
/** Each group is looked at this often although nothing has been heard that would matter. */
const LOOK_EVERY_MS = 10_000;
/** A tick that comes this late means that this process, or its host, was frozen. */
const FROZEN_MS = 2000;
/** The database's clock and the monotonic one may differ by this much between two looks. */
const CLOCK_JUMP_MS = 500;
/** Or half a node_timeout, if that is shorter: who is late is probed, and the outcome known, before he may be dead. */
const PROBE_TIMEOUT_MS = 1000;
const PROBE_EVERY_MS = 10_000;
const PROBE_LATE_EVERY_MS = 450;
/** Nobody heard of for so many heartbeats: it is the monitor that is cut off, or about to be. */
const DEAF_HEARTBEATS = 2;
const NOT_PROBED: readonly NodeState[] = ["init", "wait_standby", "dropped"];

type GroupWatch = {
  readonly key: GroupKey;
  timer: ReturnType<typeof setTimeout> | undefined;
  row: GroupRow | undefined;
  /** When `row` was true; when the group was looked at last, and when that failed. */
  readMs: number;
  lookedMs: number;
  failedMs: number | undefined;
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
  let clock:
    | { readonly clockMs: number; readonly askedMs: number; readonly answeredMs: number }
    | undefined;
  let refreshing = false;
  /** Groups that are to be looked at, and the one that is. */
  const line = new Set<GroupWatch>();
  let lookedAt: GroupWatch | undefined;

  const startOver = (why: string): void => {
    watchingSince = monotonicMs();
    log.warn(`${why}: every node gets a full node_timeout before it is judged`);
  };

  const lateMs = ({ policy }: GroupRow): number => 1.5 * policy.heartbeatMs;

  const isLate = (node: NodeRow, row: GroupRow): boolean => node.reportAgeMs > lateMs(row);

  /** Late, or about to be called dead: each probe of it is news. */
  const isDoubtful = (watch: GroupWatch, nodeId: number): boolean => {
    const { row, readMs } = watch;
    const node = row?.nodes.find((each) => each.nodeId === nodeId);
    return (
      node === undefined || node.health !== "good" || isLate(agedBy(node, readMs), row as GroupRow)
    );
  };

  const agedBy = (node: NodeRow, readMs: number): NodeRow => ({
    ...node,
    reportAgeMs: node.reportAgeMs + monotonicMs() - readMs,
  });

  async function probeNode(watch: GroupWatch, node: NodeRow): Promise<void> {
    const begun = monotonicMs();
    probing.add(node.nodeId);
    probed.set(node.nodeId, begun);
    try {
      const patienceMs = Math.min(PROBE_TIMEOUT_MS, (watch.row?.policy.nodeTimeoutMs ?? 0) / 2);
      const health = await probe(node, patienceMs, tls);
      await recordHealth(db, node.nodeId, health, monotonicMs() - begun);
      if (health !== node.health) {
        log.info(
          `Node ${node.nodeId} "${node.name}" (${node.host}:${node.port}) answers the health check: ${health}`,
        );
      }
      if (health !== "good" || isDoubtful(watch, node.nodeId)) wake(watch);
    } catch (error) {
      log.debug(`health check not recorded: ${errorText(error)}`);
    } finally {
      probing.delete(node.nodeId);
    }
  }

  function probeDue(watch: GroupWatch): void {
    const { row, readMs } = watch;
    if (row === undefined) return;
    for (const node of row.nodes) {
      if (NOT_PROBED.includes(node.goal) || NOT_PROBED.includes(node.reported)) continue;
      if (probing.has(node.nodeId)) continue;
      const late = isLate(agedBy(node, readMs), row) || node.health === "bad";
      const age = monotonicMs() - (probed.get(node.nodeId) ?? Number.NEGATIVE_INFINITY);
      if (age >= (late ? PROBE_LATE_EVERY_MS : PROBE_EVERY_MS)) void probeNode(watch, node);
    }
  }

  /**
   * Before anything is decided: ages that a jump of the database's clock has made condemn nobody. An answer that was long
   * on its way is no jump.
   */
  function noticeClock(clockMs: number, askedMs: number): void {
    const answeredMs = monotonicMs();
    if (clock) {
      const passedMs = clockMs - clock.clockMs;
      const leastMs = askedMs - clock.answeredMs;
      const mostMs = answeredMs - clock.askedMs;
      const drift = passedMs - Math.min(Math.max(passedMs, leastMs), mostMs);
      if (Math.abs(drift) > CLOCK_JUMP_MS) startOver(`The clock jumped by ${Math.round(drift)} ms`);
    }
    clock = { clockMs, askedMs, answeredMs };
  }

  const judgedMs = (watch: GroupWatch, row: GroupRow): number =>
    Math.min(monotonicMs() - watchingSince, heardMs(watch, row));

  async function sayWhyNothingIsDecided(): Promise<void> {
    const reason = await recoveryReason(db);
    if (reason !== undefined && reason !== lastReason)
      log.error(`Nothing is decided before roles/monitor.ts recover: ${reason}`);
    lastReason = reason;
  }

  async function look(watch: GroupWatch): Promise<void> {
    const begun = monotonicMs();
    const outcome = await decideAndWrite(db, watch.key, begun - watchingSince, (row) => {
      noticeClock(row.clockMs, begun);
      return judgedMs(watch, row);
    });
    if (outcome === undefined) {
      overview.groups.delete(keyText(watch.key));
      watches.delete(keyText(watch.key)); // its formation was dropped
      return sayWhyNothingIsDecided();
    }
    const { row, decisions } = outcome;
    watch.lookedMs = monotonicMs();
    watch.failedMs = undefined;
    keep(watch, row, watch.lookedMs);
    for (const { rule, selfId, goals, sync } of decisions) {
      const assigned = [...goals].map(([nodeId, goal]) => `node ${nodeId} to "${goal}"`).join(", ");
      const names = sync ? `; synchronous standbys: ${sync.members.join(", ") || "none"}` : "";
      log.info(`${rule.id} (node ${selfId}): ${rule.why}: ${assigned || "removed"}${names}`);
    }
    probeDue(watch);
    schedule(watch, row, outcome.judgedMs);
  }

  function keep(watch: GroupWatch, row: GroupRow, readMs: number): void {
    watch.row = row;
    watch.readMs = readMs;
    overview.groups.set(keyText(watch.key), { row, readAtMs: readMs });
  }

  function schedule(watch: GroupWatch, row: GroupRow, judged: number): void {
    const waits = row.nodes
      .map(({ reportAgeMs }) => lateMs(row) - reportAgeMs)
      .filter((wait) => wait > 0);
    const lookMs = watch.lookedMs + LOOK_EVERY_MS - watch.readMs;
    const dueMs = watch.readMs + Math.min(nextLookMs(row, judged), lookMs, ...waits);
    clearTimeout(watch.timer);
    watch.timer = setTimeout(() => wake(watch), Math.max(1, dueMs - monotonicMs() + 1));
  }

  /** Most reports change nothing but their own age: of those the group hears here, and looks no further. */
  async function refresh(): Promise<void> {
    const begun = monotonicMs();
    const { clockMs, seen } = await latestReports(db);
    noticeClock(clockMs, begun);
    for (const watch of watches.values()) {
      const before = watch.row;
      if (before === undefined || watch === lookedAt || watch.readMs > begun) continue;
      const row = refreshed(before, begun - watch.readMs, seen);
      keep(watch, row, begun);
      const comesOrGoes = row.nodes.some(
        (node, index) => isLate(node, row) !== isLate(before.nodes[index] ?? node, row),
      );
      const judged = judgedMs(watch, row);
      if (comesOrGoes) wake(watch);
      else schedule(watch, row, judged);
    }
  }

  function wake(watch: GroupWatch): void {
    if (signal.aborted) return;
    clearTimeout(watch.timer);
    line.add(watch);
    if (lookedAt === undefined) void lookAlongLine();
  }

  /** One after the other, since they have one connection: who waits in line, even behind a thousand, has no deadline yet. */
  async function lookAlongLine(): Promise<void> {
    for (const watch of line) {
      line.delete(watch);
      if (signal.aborted) break;
      lookedAt = watch;
      const looking = `the look at group ${keyText(watch.key)}`;
      notifier.expect(looking, OVERDUE_MS);
      try {
        await look(watch);
      } catch (error) {
        watch.failedMs = monotonicMs();
        log.error(`group ${keyText(watch.key)}: ${errorText(error)}`);
      }
      notifier.met(looking);
    }
    lookedAt = undefined;
  }

  function watchOf(key: GroupKey): GroupWatch {
    const found = watches.get(keyText(key));
    if (found) return found;
    const made: GroupWatch = {
      key,
      timer: undefined,
      row: undefined,
      readMs: Number.NEGATIVE_INFINITY,
      lookedMs: Number.NEGATIVE_INFINITY,
      failedMs: undefined,
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
      if (watch.failedMs !== undefined && now - watch.failedMs > FROZEN_MS) wake(watch);
    }
    if (refreshing) return;
    refreshing = true;
    refresh()
      .catch((error: unknown) => log.debug(`reports not read: ${errorText(error)}`))
      .finally(() => {
        refreshing = false;
      });
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
