/** A monitor that goes on from what the keepers know; no PostgreSQL of a node is touched by it. */
import {
  type KeptRow,
  missingNodes,
  planRecovery,
  RecoveryConflict,
  type RecoveryPlan,
} from "../group/recovery.ts";
import { type MonitorConfig, parseTestimony, type Testimony } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { AppError } from "../sys/errors.ts";
import { logger } from "../sys/log.ts";
import { waitUntil } from "../sys/retry.ts";
import { type Db, openDb } from "../sys/sql.ts";
import { createMonitor, ownTarget } from "./instance.ts";
import { recoveryReason } from "./store.ts";

const log = logger("monitor");

/** A keeper that knows more than the monitor says so with its next report; heartbeats are up to 10 s. */
const HEARTBEAT_MAX_MS = 12_000;
/** So long must nobody else call before those that have are taken for all. */
const QUIET_MS = 2000;
const POLL_MS = 100;

export type RecoverOptions = {
  /** Names of nodes that are not waited for; what they say doesn't count. */
  readonly without: readonly string[];
  /** autoctl_node's, as the keepers know it; undefined: what the monitor here before has left. */
  readonly password: string | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
};

/**
 * @throws {AppError} conflict: nothing is to be recovered, or what the keepers know contradicts itself; timeout: nodes
 *   that are known have not called
 */
export async function recoverMonitor(
  config: MonitorConfig,
  options: RecoverOptions,
): Promise<RecoveryPlan> {
  await createMonitor(config, options.password);
  await using db = openDb(ownTarget(config));
  const why = await requireNeed(db, options.signal);
  await db.query("insert into pgautofailover.recovery (why) values ($1) on conflict do nothing", [
    why,
  ]);
  await db.query("delete from pgautofailover.testimony");
  log.info("Waiting for every keeper to say what it knows");
  const said = await hearAll(db, options);
  const [row] = await db.query<{ now: string }>("select clock_timestamp()::text as now");
  const plan = planOf(said, row?.now ?? "now");
  await install(db, plan);
  for (const note of plan.notes) log.warn(note);
  for (const node of plan.nodes) {
    log.info(
      `Recovered node ${node["nodeid"]} "${node["nodename"]}" (${node["nodehost"]}:${node["nodeport"]}), last known state "${node["reportedstate"]}", goal "${node["goalstate"]}"`,
    );
  }
  return plan;
}

/** @returns why this monitor is to be recovered @throws {AppError} conflict: it knows all that its keepers know */
async function requireNeed(db: Db, signal: AbortSignal): Promise<string> {
  const fine = new AppError("conflict", "no keeper knows more than this monitor", {
    hint: "There is nothing to recover: roles/state.ts show, and roles/state.ts explain.",
  });
  const [begun] = await db.query<{ at: string }>("select clock_timestamp()::text as at");
  const need = async (): Promise<string | undefined> => {
    const reason = await recoveryReason(db);
    if (reason !== undefined) return reason;
    const [nodes] = await db.query<{ known: number; silent: number }>(
      `select count(*)::int as known, (count(*) filter (where reporttime < $1::text::timestamptz))::int as silent
       from pgautofailover.node`,
      [begun?.at],
    );
    if (nodes?.known === 0) return "it was made anew";
    if (nodes?.silent === 0) throw fine;
    return undefined;
  };
  try {
    return await waitUntil(need, {
      timeoutMs: HEARTBEAT_MAX_MS,
      everyMs: POLL_MS,
      signal,
      what: "a keeper that knows more than this monitor",
    });
  } catch (error) {
    throw error instanceof AppError && error.kind === "timeout" ? fine : error;
  }
}

async function hearAll(
  db: Db,
  { without, timeoutMs, signal }: RecoverOptions,
): Promise<readonly Testimony[]> {
  let said: readonly Testimony[] = [];
  let missing: readonly string[] = [];
  let quietSince = monotonicMs();
  const hear = async (): Promise<readonly Testimony[] | undefined> => {
    const rows = await db.query(
      "select said from pgautofailover.testimony where at > clock_timestamp() - $1 * interval '1 ms' order by said->'nodeId'",
      [HEARTBEAT_MAX_MS],
    );
    const before = said.length;
    const all = rows.map((row) => parseTestimony(row["said"]));
    said = all.filter(({ name }) => !without.includes(name));
    missing = missingNodes(said).filter((name) => !without.includes(name));
    if (said.length !== before) {
      log.info(
        `${said.length} keepers have called${missing.length > 0 ? `, missing: ${missing.join(", ")}` : ""}`,
      );
    }
    if (said.length !== before || said.length === 0 || missing.length > 0)
      quietSince = monotonicMs();
    return monotonicMs() - quietSince >= QUIET_MS ? said : undefined;
  };
  try {
    return await waitUntil(hear, { timeoutMs, everyMs: POLL_MS, signal, what: "the keepers" });
  } catch (error) {
    if (signal.aborted)
      throw new AppError("state", "recover was interrupted: run it again to continue");
    if (!(error instanceof AppError) || error.kind !== "timeout") throw error;
    const detail = { waited_ms: timeoutMs };
    if (said.length > 0) {
      throw new AppError("timeout", `nodes have not called: ${missing.join(", ")}`, {
        detail,
        hint: `Start their keepers and run recover again, or go on without them: --without ${missing.join(",")}. Until then nothing is decided.`,
      });
    }
    await db.query("delete from pgautofailover.recovery");
    throw new AppError("timeout", "no keeper has called", {
      detail,
      hint: "The monitor must be reachable where the keepers look for it: give the former --nodename and --pgport, or tell each keeper with roles/keeper.ts monitor enable URI. Where logins need a password, give the former one with --password-file, or put the former autoctl_node.pgpass back beforehand.",
    });
  }
}

function planOf(said: readonly Testimony[], now: string): RecoveryPlan {
  try {
    return planRecovery(said, now);
  } catch (error) {
    if (!(error instanceof RecoveryConflict)) throw error;
    throw new AppError("conflict", `what the keepers know contradicts itself: ${error.message}`, {
      hint: `${error.hint} Until then nothing is decided.`,
    });
  }
}

/** All of it or nothing, while every report is refused; afterwards each keeper reports at once. */
async function install(db: Db, plan: RecoveryPlan): Promise<void> {
  await db.transaction(
    async (query) => {
      if ((await query("delete from pgautofailover.recovery returning one")).length === 0) {
        throw new AppError("conflict", "another recover has just finished");
      }
      const insert = async (table: string, rows: readonly KeptRow[]): Promise<void> => {
        for (const row of rows) {
          await query("select pgautofailover.install_row($1, $2::text::jsonb)", [
            table,
            JSON.stringify(row),
          ]);
        }
      };
      await query("delete from pgautofailover.node");
      await query(`delete from pgautofailover."group"`);
      for (const { formationid } of plan.formations)
        await query("delete from pgautofailover.formation where formationid = $1", [formationid]);
      for (const { identity } of [...plan.nodes, ...plan.removed])
        await query("delete from pgautofailover.removed_node where identity = $1", [identity]);
      await insert("formation", plan.formations);
      await insert("group", plan.groups);
      await insert("node", plan.nodes);
      await insert("timeline_history", plan.timelines);
      await insert("removed_node", plan.removed);
      await query("delete from pgautofailover.testimony");
      await query(
        `select setval(pg_get_serial_sequence('pgautofailover.node', 'nodeid'), greatest($1::text::bigint,
             (select max(nodeid) from pgautofailover.node))),
           setval(pg_get_serial_sequence('pgautofailover.event', 'eventid'), greatest($2::text::bigint + 1,
             (select max(eventid) from pgautofailover.event)))`,
        [plan.lastNodeId, plan.lastEvent],
      );
      await query(
        `select pgautofailover.log_event(n, null, format('The monitor was recovered: node %s "%s" is "%s", its goal "%s"',
             n.nodeid, n.nodename, n.reportedstate, n.goalstate)), pgautofailover.notify_state(n)
         from pgautofailover.node n order by n.nodeid`,
      );
      await query(
        `select pg_notify('report', g.formationid || '/' || g.groupid) from pgautofailover."group" g`,
      );
    },
    { timeoutMs: 30_000 },
  );
}
