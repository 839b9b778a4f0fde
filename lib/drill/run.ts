/** The drill: breaks a healthy group on purpose, again and again, and measures what its clients see of it. */
import { type Phases, phasesOf } from "../group/failovers.ts";
import type { MonitorClient } from "../monitor/client.ts";
import { failoversOfRows } from "../monitor/failovers.ts";
import type { EventRow, GroupRow, NodeRow } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { logger } from "../sys/log.ts";
import { waitUntil } from "../sys/retry.ts";
import { parseUri, queryOnce, sslOf, type Target, tlsParamsOf } from "../sys/sql.ts";
import { currentUser } from "../sys/user.ts";
import { type Fault, prepareFault, type Scenario } from "./faults.ts";
import { troublesOf } from "./health.ts";
import { compare, type Gap, longestGap, timesOf } from "./outage.ts";
import { onPrimary, readRuns, startWorkload, type Workload } from "./workload.ts";

const log = logger("drill");

export type DrillOptions = {
  readonly monitor: MonitorClient;
  readonly monitorUri: string;
  readonly formation: string;
  readonly group: number;
  readonly scenario: Scenario;
  readonly rounds: number;
  readonly writers: number;
  /** Of all writers together. */
  readonly writesPerSecond: number;
  /** Undefined: libpq's default. */
  readonly username?: string | undefined;
  /** Undefined: the formation's. */
  readonly dbname?: string | undefined;
  /** Longest time after a fault until the group is whole again. */
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
};

/** A moment of a round, in milliseconds from its fault on. */
export type Mark = { readonly ms: number; readonly label: string };

export type Round = {
  readonly round: number;
  readonly what: string;
  readonly at: Date;
  readonly from: string;
  readonly to: string;
  /** As the monitor saw it; null: nobody had to take over. */
  readonly phases: Phases | null;
  /** Without an acknowledged write, in milliseconds from the fault on. */
  readonly gap: Gap;
  /** From the fault until the group was in perfect health again. */
  readonly redundancyMs: number;
  readonly marks: readonly Mark[];
  /** On each node, of all rounds so far. */
  readonly lost: Readonly<Record<string, number>>;
  readonly unexpected: number;
  /** Of unknown fate in this round, and there or not. */
  readonly found: number;
  readonly notFound: number;
  /** When writes were acknowledged, in milliseconds from the fault on. */
  readonly acknowledged: readonly number[];
};

export type Report = {
  readonly formation: string;
  readonly group: number;
  readonly scenario: Scenario;
  readonly at: Date;
  readonly writers: number;
  readonly writesPerSecond: number;
  readonly rounds: readonly Round[];
  readonly writes: {
    readonly acknowledged: number;
    readonly failed: number;
    readonly unknown: number;
  };
  /** How often writers saw each error, by its code. */
  readonly errors: Readonly<Record<string, number>>;
};

export type Plan = {
  readonly fault: Fault;
  readonly nodes: readonly NodeRow[];
  readonly database: string;
};

const SCHEMA = "pgautofailover_drill";
const TABLE = `${SCHEMA}.writes`;
/** Says that the schema is ours to drop. */
const COMMENT = "made and dropped by roles/drill.ts";
/** A row that is younger is another drill's, which runs. */
const OTHER_S = 60;

const CONNECT_TIMEOUT_MS = 500;
const PRIMARY_TIMEOUT_MS = 10_000;
const REPLAY_TIMEOUT_MS = 10_000;
const LOOK_EVERY_MS = 20;
/** Of synchronous_commit. */
const SAFE_LEVELS = ["on", "remote_apply"];

type Scene = Omit<DrillOptions, "signal"> & { readonly database: string; readonly user: string };

function targetOf({ host, port }: NodeRow, scene: Scene): Target {
  const { database, user, monitorUri } = scene;
  // clients verify what the one who asks the monitor does
  const params = tlsParamsOf(monitorUri);
  return {
    ...{ host, port, user, database, applicationName: "pg_auto_failover drill" },
    ...{ connectTimeoutMs: CONNECT_TIMEOUT_MS, passfile: parseUri(monitorUri).params["passfile"] },
    ssl: sslOf(params),
  };
}

/** @throws {AppError} state: the group is not in perfect health */
function requireHealth(view: GroupRow): void {
  const troubles = troublesOf(view);
  if (troubles.length === 0) return;
  throw new AppError("state", `the group is not in perfect health: ${troubles.join("; ")}`, {
    detail: { formation: view.formation, group: view.groupId },
    hint: "A drill begins on a group that works; roles/state.ts explain says what it waits for.",
  });
}

/** @throws {AppError} permission, state: the drill's login can't write, or its commits are not to be kept */
async function requireLogin(target: Target): Promise<void> {
  const [row] = await queryOnce(
    target,
    `select current_setting('synchronous_commit') as level,
            has_database_privilege(current_database(), 'create') as may_create`,
  );
  const detail = { user: target.user, database: target.database };
  if (row?.["may_create"] !== true) {
    throw new AppError("permission", "the drill's login may not make a schema", {
      detail,
      hint: "Give another one with --username, or grant it CREATE on the database.",
    });
  }
  if (SAFE_LEVELS.includes(String(row["level"]))) return;
  throw new AppError("state", "commits of the drill's login don't wait for a standby", {
    detail: { ...detail, synchronous_commit: String(row["level"]) },
    hint: "Give a login with --username whose synchronous_commit is on.",
  });
}

const formationScene = async (options: Omit<DrillOptions, "signal">): Promise<Scene> => {
  const { monitor, formation, username, dbname } = options;
  const database = dbname ?? (await monitor.databaseOf(formation)) ?? "postgres";
  return { ...options, database, user: username ?? currentUser() };
};

/** What the next round would do, to a group that is healthy; changes nothing. */
async function plan(scene: Scene): Promise<Plan & { readonly view: GroupRow }> {
  const { monitor, formation, group, scenario, monitorUri, database } = scene;
  const view = await monitor.groupView(formation, group);
  requireHealth(view);
  const targets = (node: NodeRow) => targetOf(node, scene);
  const fault = await prepareFault(scenario, { monitor, monitorUri, view, targetOf: targets });
  return { fault, nodes: view.nodes, database, view };
}

/** @throws {AppError} state, permission, config: the drill can't be run */
export async function planDrill(options: Omit<DrillOptions, "signal">): Promise<Plan> {
  const scene = await formationScene(options);
  const { fault, nodes, database } = await plan(scene);
  const primary = nodes.find(({ reported }) => reported === "primary");
  if (primary) await requireLogin(targetOf(primary, scene));
  return { fault, nodes, database };
}

/** @throws {AppError} conflict: another drill runs, or the schema is somebody else's */
async function makeTable(targets: readonly Target[]): Promise<void> {
  await onPrimary(targets, PRIMARY_TIMEOUT_MS, async (query) => {
    const [there] = await query(
      `select obj_description(oid, 'pg_namespace') as comment, to_regclass($2) is not null as has_table
         from pg_namespace where nspname = $1`,
      [SCHEMA, TABLE],
    );
    if (there !== undefined && there["comment"] !== COMMENT) {
      throw new AppError("conflict", `there is a schema ${SCHEMA} that no drill has made`, {
        hint: "Rename it, or give another database with --dbname.",
      });
    }
    if (there?.["has_table"] === true) {
      const [row] = await query(
        `select max(at) > clock_timestamp() - interval '${OTHER_S} s' as runs from ${TABLE}`,
      );
      if (row?.["runs"] === true) {
        throw new AppError("conflict", "another drill writes into this database", {
          hint: `Wait for its end; one that was killed is forgotten after ${OTHER_S} s.`,
        });
      }
    }
    await query(`drop schema if exists ${SCHEMA} cascade`);
    await query(`create schema ${SCHEMA}`);
    await query(`comment on schema ${SCHEMA} is '${COMMENT}'`);
    await query(
      `create table ${TABLE} (id bigint primary key, at timestamptz not null default clock_timestamp())`,
    );
  });
}

async function dropTable(targets: readonly Target[]): Promise<void> {
  try {
    await onPrimary(targets, PRIMARY_TIMEOUT_MS, (query) =>
      query(`drop schema if exists ${SCHEMA} cascade`),
    );
  } catch (error) {
    const reason = errorText(error);
    log.warn(`schema ${SCHEMA} is still there: the next drill drops it`, { reason });
  }
}

/** Waits until a standby has replayed what its primary has now. */
async function replayed(primary: Target, standby: Target, name: string): Promise<void> {
  const [row] = await queryOnce(primary, "select pg_current_wal_flush_lsn()::text as lsn");
  const look = async () => {
    const [now] = await queryOnce(
      standby,
      "select not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= $1::pg_lsn as done",
      [row?.["lsn"]],
    );
    return now?.["done"] === true ? true : undefined;
  };
  const what = `node "${name}" to replay all WAL`;
  await waitUntil(look, { timeoutMs: REPLAY_TIMEOUT_MS, everyMs: LOOK_EVERY_MS, what });
}

/** What each node holds of what was acknowledged, and of the rows of unknown fate of the last round. */
async function compareNodes(
  workload: Workload,
  nodes: readonly NodeRow[],
  scene: Scene,
  sinceIndex: number,
): Promise<Pick<Round, "lost" | "unexpected" | "found" | "notFound">> {
  const primary = nodes.find(({ reported }) => reported === "primary");
  const lost: Record<string, number> = {};
  let onThePrimary: ReturnType<typeof compare> | undefined;
  for (const node of nodes) {
    const attempts = [...workload.attempts];
    const target = targetOf(node, scene);
    if (primary && node !== primary) await replayed(targetOf(primary, scene), target, node.name);
    const runs = await readRuns(target, TABLE);
    const told = compare(attempts, runs, workload.begun());
    lost[node.name] = told.lost.length;
    if (node === primary)
      onThePrimary = {
        ...compare(attempts.slice(sinceIndex), runs, workload.begun()),
        unexpected: told.unexpected,
      };
  }
  return {
    lost,
    unexpected: onThePrimary?.unexpected.length ?? 0,
    found: onThePrimary?.found.length ?? 0,
    notFound: onThePrimary?.notFound.length ?? 0,
  };
}

/** Waits until the group is in perfect health again. @throws {AppError} timeout, with what is missing */
async function settle(scene: Scene, fault: Fault, lastEvent: number, signal: AbortSignal) {
  const { monitor, formation, group, timeoutMs } = scene;
  let missing = ["the monitor has noticed nothing"];
  let isNoticed = !fault.isNoticed;
  const look = async (): Promise<GroupRow | undefined> => {
    isNoticed ||= (await monitor.eventsAfter(formation, lastEvent)).some(
      ({ groupid }) => groupid === group,
    );
    if (!isNoticed) return undefined;
    const view = await monitor.groupView(formation, group);
    missing = troublesOf(view);
    return missing.length === 0 ? view : undefined;
  };
  const what = "the group to be whole again";
  try {
    return await waitUntil(look, { timeoutMs, everyMs: LOOK_EVERY_MS, what, signal });
  } catch (error) {
    if (!(error instanceof AppError) || error.kind !== "timeout") throw error;
    throw new AppError("timeout", `${error.message}: ${missing.join("; ")}`, {
      detail: error.detail,
      hint: "roles/state.ts explain says what it waits for; the drill is over.",
    });
  }
}

const LABELS = {
  noticedMs: "noticed",
  decidedMs: "decided",
  disconnectedMs: "disconnected",
  promotedMs: "promoted",
  openMs: "open for writes",
  redundantMs: "synchronous again",
} as const;

/** What the monitor's events tell of a round. @param faultMs of the fault, by the monitor's clock */
export function storyOf(
  events: readonly EventRow[],
  faultMs: number,
): { readonly phases: Phases | null; readonly marks: readonly Mark[] } {
  const failover = failoversOfRows(events).at(-1)?.failover;
  if (failover === undefined) {
    const changes = events.filter(({ description }) => description.startsWith("New state"));
    const marks = changes.map(({ eventtime, nodename, reportedstate }) => ({
      ms: tenths(eventtime.getTime() - faultMs),
      label: `${nodename} ${reportedstate}`,
    }));
    return { phases: null, marks };
  }
  const marks = (Object.keys(LABELS) as (keyof typeof LABELS)[]).flatMap((key) => {
    const ms = failover[key];
    return ms === null ? [] : [{ ms: tenths(ms - faultMs), label: LABELS[key] }];
  });
  return { phases: phasesOf(failover), marks };
}

/** Finer is noise. */
const tenths = (ms: number): number => Math.round(10 * ms) / 10;

const nameOfPrimary = ({ nodes }: GroupRow): string =>
  nodes.find(({ reported }) => reported === "primary")?.name ?? "";

/** One fault, and what follows until the group is whole again. */
async function playRound(
  scene: Scene,
  round: number,
  workload: Workload,
  signal: AbortSignal,
): Promise<Round> {
  const { monitor, formation, group, scenario, writesPerSecond, writers, timeoutMs } = scene;
  const enough = Math.max(2 * writers, Math.ceil(writesPerSecond / 2));
  await workload.waitForWrites(enough, timeoutMs, signal);
  const askedMs = monotonicMs();
  const { fault, view: before } = await plan(scene);
  const offsetMs = before.clockMs - (askedMs + monotonicMs()) / 2;
  const [last] = await monitor.events(formation, 1);
  const lastEvent = Number(last?.eventid ?? 0);
  const sinceIndex = workload.attempts.length;
  log.info(`Round ${round}: ${fault.what}`);
  const faultMs = monotonicMs();
  const at = new Date();
  await fault.strike(signal);
  const after = await settle(scene, fault, lastEvent, signal);
  const redundancyMs = tenths(monotonicMs() - faultMs);
  const [from, to] = [nameOfPrimary(before), nameOfPrimary(after)];
  if (scenario === "switchover" && from === to) {
    throw new AppError("state", "the switchover was called off: the old primary goes on", {
      detail: { node: from },
      hint: "roles/state.ts events says why.",
    });
  }
  await workload.waitForWrites(enough, timeoutMs, signal);
  const endMs = monotonicMs();
  const compared = await compareNodes(workload, after.nodes, scene, sinceIndex);
  const events = (await monitor.eventsAfter(formation, lastEvent)).filter(
    ({ groupid }) => groupid === group,
  );
  const { phases, marks } = storyOf(events, faultMs + offsetMs);
  const times = timesOf(workload.attempts);
  const gap = longestGap(times, faultMs, endMs);
  const shown = times.filter((ms) => ms >= faultMs - 1000 && ms <= endMs);
  return {
    ...{ round, what: fault.what, at, from, to },
    ...{ phases, redundancyMs, marks, ...compared },
    gap: { fromMs: tenths(gap.fromMs - faultMs), toMs: tenths(gap.toMs - faultMs) },
    acknowledged: shown.map((ms) => tenths(ms - faultMs)),
  };
}

/** @throws {AppError} conflict: acknowledged rows are missing, or rows are there that were refused */
function requireNothingLost({ lost, unexpected }: Round): void {
  const missing = Object.entries(lost).filter(([, count]) => count > 0);
  if (missing.length > 0) {
    throw new AppError("conflict", "acknowledged rows are missing", {
      detail: Object.fromEntries(missing),
      hint: "The drill is over. Keep the logs of all nodes and roles/state.ts events.",
    });
  }
  if (unexpected === 0) return;
  throw new AppError("conflict", "rows are there whose writers were refused", {
    detail: { rows: unexpected },
    hint: "The drill is over. Keep the logs of all nodes and roles/state.ts events.",
  });
}

/**
 * Plays the rounds. What ends them early stands beside the report of those that were complete.
 *
 * @returns failure: undefined, or an AppError: conflict, rows were lost; timeout, a round didn't come back to perfect
 *   health; state, the next one can't be played from here; or the signal's reason
 */
export async function runDrill(
  options: DrillOptions,
): Promise<{ readonly report: Report; readonly failure: unknown }> {
  const { formation, group, scenario, writers, writesPerSecond, monitor, signal } = options;
  const scene = await formationScene(options);
  const { nodes } = await monitor.groupView(formation, group);
  const targets = nodes.map((node) => targetOf(node, scene));
  const at = new Date();
  const rounds: Round[] = [];
  let failure: unknown;
  await makeTable(targets);
  const workload = startWorkload({ targets, table: TABLE, writers, writesPerSecond });
  try {
    for (let round = 1; round <= options.rounds; round += 1) {
      rounds.push(await playRound(scene, round, workload, signal));
      requireNothingLost(rounds[round - 1] as Round);
    }
  } catch (error) {
    failure = signal.aborted ? new AppError("state", "the drill was interrupted") : error;
  } finally {
    await workload.stop();
    await dropTable(targets);
  }
  const count = (wanted: string) =>
    workload.attempts.filter(({ outcome }) => outcome === wanted).length;
  const writes = { acknowledged: count("ok"), failed: count("failed"), unknown: count("unknown") };
  const errors = Object.fromEntries(workload.failures);
  return {
    report: { formation, group, scenario, at, writers, writesPerSecond, rounds, writes, errors },
    failure,
  };
}
