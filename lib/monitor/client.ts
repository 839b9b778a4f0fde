/** All that a keeper or an operator may ask the monitor: SQL calls and their shapes, no policy. */
import {
  type Answer,
  type EventRow,
  parseAnswer,
  parseEventRow,
  parseStateRow,
  type Report,
  type StateRow,
} from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import {
  type Db,
  openDb,
  parseUri,
  passwordFor,
  type Row,
  sqlState,
  type Target,
} from "../sys/sql.ts";

export type Registration = {
  readonly formation: string;
  readonly group: number;
  readonly host: string;
  readonly port: number;
  readonly name: string | undefined;
  readonly identity: string;
  readonly systemIdentifier: string | undefined;
  readonly dbname: string | undefined;
  readonly candidatePriority: number;
  readonly replicationQuorum: boolean;
};

export type MonitorClient = AsyncDisposable & {
  register(registration: Registration): Promise<Answer>;
  /** One report; `timeoutMs` bounds it, connecting included. */
  nodeActive(formation: string, nodeId: number, report: Report, timeoutMs: number): Promise<Answer>;
  removeNode(nodeId: number, force: boolean): Promise<boolean>;
  state(formation: string): Promise<StateRow[]>;
  events(formation: string, count: number): Promise<EventRow[]>;
  /** The client's database name of a formation; undefined when there is no such formation. */
  databaseOf(formation: string): Promise<string | undefined>;
  /** Calls back whenever something about a node may have changed, and after each (re)subscription. */
  watch(onWake: (payload: string) => void): Promise<void>;
};

/** How to connect as an operator's or keeper's login; the password comes from a file, never a flag. */
export function monitorTarget(uri: string): Target {
  const { host, port, user, database, password } = parseUri(uri);
  const target: Target = {
    host,
    port,
    user,
    database,
    applicationName: "pg_auto_failover keeper",
    connectTimeoutMs: 1000,
    settings: {
      lock_timeout: "1000",
      idle_in_transaction_session_timeout: "5000",
      tcp_keepalives_idle: "2",
      tcp_keepalives_interval: "1",
      tcp_keepalives_count: "3",
    },
  };
  const found = password ?? passwordFor(target);
  return found === undefined ? target : { ...target, password: found };
}

const CONFLICTS = new Set(["PA002", "PA003", "PA004", "PA005", "PA006", "PA007", "PA020"]);
const HINTS: Readonly<Record<string, string>> = {
  PA001: "Give the name of an existing formation with --formation.",
  PA002:
    "Give the same --formation, --nodename and --pgport as the first time, or drop the node first.",
  PA003: "Choose another --pgport or --nodename, or drop the other node first.",
  PA004:
    "This PGDATA belongs to another cluster: give an empty or missing directory with --pgdata, or another --formation.",
  PA005: "Drop a node of the group first, or create the node in another --formation.",
  PA006: "Leave --dbname out, or give the formation's.",
  PA007: "Choose another --name.",
  PA010:
    "The node was removed from the monitor: create it again, or remove what is left with keeper.ts drop.",
  PA020: "Drop the standby, or let it take over first by stopping this node's keeper.",
};

/** One line for what went wrong between us and the monitor, with the next step. */
export function monitorError(error: unknown, target: Target): AppError {
  const state = sqlState(error);
  if (state === undefined && error instanceof AppError) return error; // one of our own, said well
  const where = { host: target.host, port: target.port };
  const fail = (kind: AppError["kind"], message: string, hint: string) =>
    new AppError(kind, message, { detail: where, hint, cause: error });
  const text =
    error instanceof AppError ? String(error.detail["reason"] ?? error.message) : errorText(error);
  if (state === undefined)
    return fail("monitor", `could not ask the monitor: ${text}`, "Check the monitor's log.");
  if (state === "PA010") return fail("dropped", text, HINTS["PA010"] ?? "");
  if (state.startsWith("PA")) {
    return fail(CONFLICTS.has(state) ? "conflict" : "monitor", text, HINTS[state] ?? "");
  }
  if (state === "28P01" || state === "28000") {
    return fail(
      "monitor",
      `the monitor refused the login: ${text}`,
      "Put the password of autoctl_node into PGPASSFILE or ~/.pgpass (mode 0600), and check the monitor's pg_hba.conf.",
    );
  }
  if (["42883", "3F000", "42P01", "3D000", "42501"].includes(state)) {
    return fail(
      "monitor",
      `this server is not a monitor: ${text}`,
      "Give the URI that roles/monitor.ts create has printed.",
    );
  }
  return fail(
    "monitor",
    `could not reach the monitor: ${text}`,
    "Check that roles/monitor.ts runs there, and that host and port of the URI are right.",
  );
}

/** @param onClose called when an established connection ends */
export function openMonitor(uri: string, onClose?: () => void): MonitorClient {
  const target = monitorTarget(uri);
  const db: Db = openDb(target, onClose ? { onClose } : {});
  const ask = async (
    text: string,
    params: readonly unknown[],
    timeoutMs = 5000,
  ): Promise<Row[]> => {
    try {
      return await db.query(text, params, { timeoutMs });
    } catch (error) {
      throw monitorError(error, target);
    }
  };
  const single = (rows: Row[]): unknown => rows[0]?.["value"];
  return {
    async register(r) {
      const rows = await ask(
        "select pgautofailover.register_node($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) as value",
        [
          r.formation,
          r.host,
          r.port,
          r.identity,
          r.name ?? null,
          r.systemIdentifier ?? null,
          r.group,
          r.dbname ?? null,
          r.candidatePriority,
          r.replicationQuorum,
        ],
      );
      return parseAnswer(single(rows));
    },
    async nodeActive(formation, nodeId, report, timeoutMs) {
      const payload = JSON.stringify({ ...report, reportNo: String(report.reportNo) });
      const rows = await ask(
        "select pgautofailover.node_active($1, $2, $3::text::jsonb) as value",
        [formation, nodeId, payload],
        timeoutMs,
      );
      return parseAnswer(single(rows));
    },
    async removeNode(nodeId, force) {
      return (
        single(await ask("select pgautofailover.remove_node($1, $2) as value", [nodeId, force])) ===
        true
      );
    },
    async state(formation) {
      const rows = await ask(
        "select *, reported_lsn::text as reported_lsn, extract(epoch from report_age)::float8 as report_age from pgautofailover.current_state($1)",
        [formation],
      );
      return rows.map(parseStateRow);
    },
    async events(formation, count) {
      const rows = await ask(
        "select *, reportedlsn::text as reportedlsn from pgautofailover.last_events($1, $2)",
        [formation, count],
      );
      return rows.map(parseEventRow);
    },
    async databaseOf(formation) {
      const rows = await ask(
        "select dbname as value from pgautofailover.formation where formationid = $1",
        [formation],
      );
      const name = single(rows);
      return typeof name === "string" ? name : undefined;
    },
    watch: (onWake) => db.listen("state", onWake, () => onWake("")),
    [Symbol.asyncDispose]: () => db.close(),
  };
}
