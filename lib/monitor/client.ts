/** All that a keeper or an operator may ask the monitor: SQL calls and their shapes, no policy. */
import {
  type Answer,
  type EventRow,
  type GroupRow,
  parseAnswer,
  parseEventRow,
  parseGroupRow,
  parseStateRow,
  type Report,
  type StateRow,
} from "../shapes.ts";
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import {
  type Db,
  openDb,
  parseUri,
  queryOnce,
  type Row,
  sqlState,
  sslOf,
  type Target,
  tlsProblem,
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

/** What of a report isn't the same as in the full one with the number `fullReport`. */
export type Heartbeat = Pick<Report, "identity" | "reportNo" | "lsn"> & {
  readonly fullReport: bigint;
};

/** A timeline of a group, and whose promotion began it. */
export type TimelineRow = {
  readonly timeline: number;
  /** 0: the group's first. */
  readonly parent: number;
  readonly forkLsn: string;
  readonly nodeId: number;
  readonly nodeName: string;
  readonly promotedAt: Date;
};

export type FormationRow = {
  readonly formation: string;
  readonly dbname: string;
  readonly durability: string;
  readonly numberSyncStandbys: number;
  /** Those that have nodes. */
  readonly groups: number;
  readonly nodes: number;
};

export type NewFormation = {
  readonly dbname: string;
  readonly durability: string;
  readonly numberSyncStandbys: number;
};

/** What is left out stays as it is. */
export type NodeMetadata = {
  readonly name?: string;
  readonly host?: string;
  readonly port?: number;
};

export type MonitorClient = AsyncDisposable & {
  /** As `Db`'s: the monitor is there, and too busy to take up a new session in time. */
  readonly isSlow: boolean;
  register(registration: Registration): Promise<Answer>;
  /** One report; `timeoutMs` bounds it, connecting included. */
  nodeActive(formation: string, nodeId: number, report: Report, timeoutMs: number): Promise<Answer>;
  /** The same report as the last full one. @returns false: say it in full, something is new; nothing was recorded */
  heartbeat(nodeId: number, beat: Heartbeat, token: string, timeoutMs: number): Promise<boolean>;
  /** A sentence about the node for the group's events; over a connection of its own, so that no report waits for it. */
  reportEvent(
    formation: string,
    nodeId: number,
    identity: string,
    description: string,
  ): Promise<void>;
  /** What to keep of the monitor's memory, as JSON; undefined: nothing is newer than `knownVersion`. */
  memory(formation: string, group: number, knownVersion: number): Promise<string | undefined>;
  /** Tells a monitor that waits to be recovered what this keeper knows. */
  testify(identity: string, testimony: string): Promise<void>;
  /** Whether the monitor has this node, or waits to hear of it and all others. */
  standingOf(identity: string): Promise<"known" | "recovering" | "unknown">;
  /** @returns whether there was such a node */
  removeNode(nodeId: number, force: boolean): Promise<boolean>;
  /** Whether a node of this identity was removed, and not registered again. */
  wasRemoved(identity: string): Promise<boolean>;
  updateNode(nodeId: number, metadata: NodeMetadata): Promise<void>;
  formations(): Promise<FormationRow[]>;
  createFormation(formation: string, made: NewFormation): Promise<void>;
  dropFormation(formation: string): Promise<void>;
  state(formation: string): Promise<StateRow[]>;
  /** @throws {AppError} monitor: the formation has no such node */
  node(formation: string, name: string): Promise<StateRow>;
  events(formation: string, count: number): Promise<EventRow[]>;
  /** Oldest first, those with a greater id. @param sinceMs not older than this; undefined: however old */
  eventsAfter(formation: string, id: number, sinceMs?: number): Promise<EventRow[]>;
  /** Why groups can't promote anybody, by group; those that could are left out. */
  blocked(formation: string): Promise<string[]>;
  /** The client's database name of a formation; undefined when there is no such formation. */
  databaseOf(formation: string): Promise<string | undefined>;
  /** The groups of a formation, at least one. */
  groups(formation: string): Promise<number[]>;
  /** A group as the rules see it. */
  groupView(formation: string, group: number): Promise<GroupRow>;
  timelines(formation: string, group: number): Promise<TimelineRow[]>;
  /** Asks for a failover, which is carried out as soon as a standby can take over. */
  failover(formation: string, group: number, allowDataLoss: boolean): Promise<void>;
  /** The same, to this node. */
  promote(formation: string, node: string, allowDataLoss: boolean): Promise<void>;
  /** Asks for a switchover: the primary hands over to this node, or to whom the monitor prefers. */
  switchover(formation: string, group: number, node: string | undefined): Promise<void>;
  /** Has a node left alone; a primary hands over first, where that is allowed. */
  startMaintenance(nodeId: number, allowFailover: boolean): Promise<void>;
  /** @returns false: it wasn't in maintenance */
  stopMaintenance(nodeId: number): Promise<boolean>;
  setCandidatePriority(formation: string, node: string, priority: number): Promise<void>;
  setReplicationQuorum(formation: string, node: string, quorum: boolean): Promise<void>;
  /** By column. */
  formationSettings(formation: string): Promise<Readonly<Record<string, unknown>>>;
  /** All of them or none. @param columns values by column */
  setFormation(formation: string, columns: Readonly<Record<string, string>>): Promise<void>;
  /** Says that this node's timeline is the group's. */
  acceptTimeline(formation: string, group: number, node: string): Promise<void>;
  /** Gives the nodes of a group another password to replicate with; undefined: a generated one. */
  setReplicationPassword(
    formation: string,
    group: number,
    password: string | undefined,
  ): Promise<void>;
  /** Calls back whenever something about a node may have changed, and after each (re)subscription. */
  watch(onWake: (payload: string) => void): Promise<void>;
  /** The same over the connection of the reports, for a keeper: a monitor of many nodes has one connection for each. */
  hear(onWake: (payload: string) => void): Promise<void>;
};

/** An answer of this many events is small, and quick. */
const EVENTS_PAGE = 5000;

/** How to connect as an operator's or keeper's login; the password comes from a file, never a flag. */
export function monitorTarget(uri: string): Target {
  const { host, port, user, database, password, params } = parseUri(uri);
  return {
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
    password,
    passfile: params["passfile"],
    ssl: sslOf(params),
  };
}

/** What kind of error each refusal is; one that isn't named here is the monitor's. */
const KINDS: Readonly<Record<string, AppError["kind"]>> = {
  PA002: "conflict",
  PA003: "conflict",
  PA004: "conflict",
  PA006: "conflict",
  PA007: "conflict",
  PA009: "usage",
  PA010: "dropped",
  PA013: "usage",
  PA014: "conflict",
  PA015: "conflict",
  PA016: "state",
  PA020: "conflict",
  PA021: "conflict",
  PA030: "conflict",
  PA031: "conflict",
  PA032: "conflict",
  PA033: "conflict",
  PA034: "conflict",
  PA035: "conflict",
  PA036: "conflict",
  PA037: "conflict",
};
const HINTS: Readonly<Record<string, string>> = {
  PA001: "Give an existing formation with --formation, and one of its groups with --group.",
  PA002:
    "Give the same --formation, --nodename and --pgport as the first time, or drop the node first.",
  PA003: "Choose another --pgport or --nodename, or drop the other node first.",
  PA004:
    "This PGDATA belongs to another cluster: give an empty or missing directory with --pgdata, or another --formation.",
  PA006: "Leave --dbname out, or give the formation's.",
  PA007: "Choose another --name.",
  PA008: "roles/state.ts show lists the nodes of the formation.",
  PA009: "roles/formation.ts get and roles/node.ts get show the settings as they are.",
  PA010:
    "The node was removed from the monitor: create it again, or remove what is left with keeper.ts drop.",
  PA012:
    "This monitor was made anew, or restored from an older backup: run roles/monitor.ts recover there. Or was the node meant for another monitor?",
  PA013: "Give another one; letters, digits, - and _ always do.",
  PA014: "roles/formation.ts list shows those that exist.",
  PA015:
    "Drop them first, the primary last: roles/node.ts drop, or roles/keeper.ts drop on their hosts.",
  PA016:
    "Run roles/monitor.ts recover on the monitor's host: it goes on from what the keepers know.",
  PA020:
    "Drop its standbys first, or let one take over with roles/formation.ts failover and then drop this one; --force makes no difference here.",
  PA021: "Wait until the failover is over (roles/state.ts explain), or add --force.",
  PA030: "roles/state.ts explain says what each node waits for.",
  PA031: "Wait until it is over: roles/state.ts explain says what it waits for.",
  PA032: "Name another node: roles/state.ts show lists them.",
  PA034: "roles/state.ts explain says what the primary waits for.",
  PA035: "Add --allow-failover: another node takes over first.",
  PA036: "roles/state.ts explain says what it waits for.",
  PA037:
    "Add another standby, or set durability to availability meanwhile (roles/formation.ts set).",
  PA033:
    "roles/state.ts timeline shows which timeline each node is on, roles/state.ts explain what is in the way.",
};

/** Lock timeout, deadlock, serialization: nothing was done, and the same again may do. */
const CONTENDED = ["55P03", "40P01", "40001"];
/** How long a change waits for others of the same group, and how soon it tries again where that was refused at once. */
const CONTENTION_MS = 10_000;
const RETRY_MS = 50;

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
  const tls = tlsProblem(error);
  if (tls) return fail("monitor", `could not reach the monitor: ${tls.says}`, tls.hint);
  if (state.startsWith("PA")) return fail(KINDS[state] ?? "monitor", text, HINTS[state] ?? "");
  if (CONTENDED.includes(state)) {
    return fail(
      "conflict",
      `another change of this group is under way: ${text}`,
      "Nothing was done: try again; roles/state.ts events says what goes on.",
    );
  }
  if (state === "28P01" || state === "28000") {
    return fail(
      "monitor",
      `the monitor refused the login: ${text}`,
      "Put the line of the monitor's autoctl_node.pgpass into PGPASSFILE or ~/.pgpass (mode 0600); TLS, and an address that its pg_hba.conf lets in, may be wanted too.",
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

/** The monitor records no report: it waits to hear what the keepers know. */
export const waitsForTestimony = (error: unknown): boolean =>
  error instanceof AppError && sqlState(error.cause) === "PA016";

const unknownFormation = (formation: string): AppError =>
  new AppError("monitor", `formation "${formation}" does not exist`, { hint: HINTS["PA001"] });
const unknownGroup = (formation: string, group?: number): AppError =>
  new AppError(
    "monitor",
    group === undefined
      ? `formation "${formation}" has no nodes, or does not exist`
      : `formation "${formation}" has no group ${group}`,
    { hint: HINTS["PA001"] },
  );

/**
 * @param options onClose: called when an established connection ends; connectTimeoutMs: until a session is ready, where
 *   that is more than a second
 */
export function openMonitor(
  uri: string,
  options: { readonly onClose?: () => void; readonly connectTimeoutMs?: number } = {},
): MonitorClient {
  const { onClose, connectTimeoutMs } = options;
  const target = { ...monitorTarget(uri), ...(connectTimeoutMs && { connectTimeoutMs }) };
  const db: Db = openDb(target, { onClose });
  const ask = async (
    text: string,
    params: readonly unknown[],
    { timeoutMs = 5000, prepare = false } = {},
  ): Promise<Row[]> => {
    try {
      return await db.query(text, params, { timeoutMs, prepare });
    } catch (error) {
      throw monitorError(error, target);
    }
  };
  /** A change that waits for others, ours among them; each attempt waits for as long as a lock may be waited for. */
  const change = async (text: string, params: readonly unknown[]): Promise<Row[]> => {
    const giveUp = monotonicMs() + CONTENTION_MS;
    for (;;) {
      try {
        return await ask(text, params);
      } catch (error) {
        if (!CONTENDED.includes(sqlState(error) ?? "") || monotonicMs() >= giveUp) throw error;
        await delay(RETRY_MS);
      }
    }
  };
  const single = (rows: Row[]): unknown => rows[0]?.["value"];
  return {
    get isSlow() {
      return db.isSlow;
    },
    async register(r) {
      const rows = await change(
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
        { timeoutMs, prepare: true },
      );
      return parseAnswer(single(rows));
    },
    async heartbeat(nodeId, { identity, reportNo, fullReport, lsn }, token, timeoutMs) {
      const rows = await ask(
        "select pgautofailover.heartbeat($1::bigint, $2::uuid, $3::bigint, $4::bigint, $5, $6::text::pg_lsn) as value",
        [nodeId, identity, String(reportNo), String(fullReport), token, lsn],
        { timeoutMs, prepare: true },
      );
      return single(rows) === true;
    },
    async reportEvent(formation, nodeId, identity, description) {
      const params = [formation, nodeId, identity, description];
      await queryOnce(target, "select pgautofailover.report_event($1, $2, $3, $4)", params, {
        timeoutMs: 2000,
      });
    },
    async memory(formation, group, knownVersion) {
      const rows = await ask(
        "select pgautofailover.group_memory($1, $2, $3)::text as value",
        [formation, group, knownVersion],
        { prepare: true },
      );
      const text = single(rows);
      return typeof text === "string" ? text : undefined;
    },
    async testify(identity, testimony) {
      await ask("select pgautofailover.testify($1, $2::text::jsonb)", [identity, testimony]);
    },
    async standingOf(identity) {
      const rows = await ask(
        `select case when exists (select from pgautofailover.recovery) then 'recovering'
           when exists (select from pgautofailover.node where identity = sha256(uuid_send($1::uuid))) then 'known' else 'unknown' end as value`,
        [identity],
      );
      return single(rows) as "known" | "recovering" | "unknown";
    },
    async removeNode(nodeId, force) {
      const call = "select pgautofailover.remove_node($1::bigint, $2::boolean) as value";
      return single(await change(call, [nodeId, force])) === true;
    },
    async wasRemoved(identity) {
      const rows = await ask(
        `select from pgautofailover.removed_node r where r.identity = sha256(uuid_send($1::uuid))
           and not exists (select from pgautofailover.node n where n.identity = r.identity)`,
        [identity],
      );
      return rows.length > 0;
    },
    async updateNode(nodeId, { name, host, port }) {
      const params = [nodeId, name ?? null, host ?? null, port ?? null];
      await change("select pgautofailover.update_node_metadata($1, $2, $3, $4)", params);
    },
    async formations() {
      const rows = await ask(
        `select f.formationid, f.dbname, f.durability, f.number_sync_standbys,
           count(distinct n.groupid)::int as groups, count(n.nodeid)::int as nodes
         from pgautofailover.formation f left join pgautofailover.node n using (formationid)
         group by f.formationid order by 1`,
        [],
      );
      return rows.map((row) => ({
        formation: String(row["formationid"]),
        dbname: String(row["dbname"]),
        durability: String(row["durability"]),
        numberSyncStandbys: Number(row["number_sync_standbys"]),
        groups: Number(row["groups"]),
        nodes: Number(row["nodes"]),
      }));
    },
    async createFormation(formation, { dbname, durability, numberSyncStandbys }) {
      await change(
        `select pgautofailover.create_formation($1, dbname => $2, number_sync_standbys => $3, durability => $4)`,
        [formation, dbname, numberSyncStandbys, durability],
      );
    },
    async dropFormation(formation) {
      await change("select pgautofailover.drop_formation($1)", [formation]);
    },
    async state(formation) {
      const rows = await ask(
        "select *, reported_lsn::text as reported_lsn, extract(epoch from report_age)::float8 as report_age from pgautofailover.current_state($1)",
        [formation],
      );
      return rows.map(parseStateRow);
    },
    async node(formation, name) {
      const found = (await this.state(formation)).find(({ nodename }) => nodename === name);
      if (found) return found;
      throw new AppError("monitor", `formation "${formation}" has no node "${name}"`, {
        hint: HINTS["PA008"],
      });
    },
    async events(formation, count) {
      const rows = await ask(
        "select *, reportedlsn::text as reportedlsn from pgautofailover.last_events($1, $2)",
        [formation, count],
      );
      return rows.map(parseEventRow);
    },
    async eventsAfter(formation, id, sinceMs) {
      const found: EventRow[] = [];
      for (;;) {
        const rows = await ask(
          `select *, reportedlsn::text as reportedlsn from pgautofailover.event
           where formationid = $1 and eventid > $2
             and ($3::float8 is null or eventtime >= clock_timestamp() - $3::float8 * interval '1 ms')
           order by eventid limit $4`,
          [formation, found.at(-1)?.eventid ?? id, sinceMs, EVENTS_PAGE],
        );
        found.push(...rows.map(parseEventRow));
        if (rows.length < EVENTS_PAGE) return found;
      }
    },
    async blocked(formation) {
      const rows = await ask(
        `select blocked as value from pgautofailover."group" where formationid = $1 and blocked is not null order by groupid`,
        [formation],
      );
      return rows.map(({ value }) => String(value));
    },
    async databaseOf(formation) {
      const rows = await ask(
        "select dbname as value from pgautofailover.formation where formationid = $1",
        [formation],
      );
      const name = single(rows);
      return typeof name === "string" ? name : undefined;
    },
    async groups(formation) {
      const rows = await ask(
        `select groupid as value from pgautofailover."group" where formationid = $1 order by 1`,
        [formation],
      );
      if (rows.length === 0) throw unknownGroup(formation);
      return rows.map(({ value }) => Number(value));
    },
    async groupView(formation, group) {
      const rows = await ask("select pgautofailover.group_view($1, $2) as value", [
        formation,
        group,
      ]);
      if (!single(rows)) throw unknownGroup(formation, group);
      return parseGroupRow(single(rows));
    },
    async timelines(formation, group) {
      const rows = await ask(
        `select timeline, parent, forklsn::text, nodeid, nodename, promotedat from pgautofailover.timeline_history
         where formationid = $1 and groupid = $2 order by timeline`,
        [formation, group],
      );
      return rows.map((row) => ({
        timeline: Number(row["timeline"]),
        parent: Number(row["parent"]),
        forkLsn: String(row["forklsn"]),
        nodeId: Number(row["nodeid"]),
        nodeName: String(row["nodename"]),
        promotedAt: row["promotedat"] as Date,
      }));
    },
    async failover(formation, group, allowDataLoss) {
      await change("select pgautofailover.perform_failover($1, $2, $3)", [
        formation,
        group,
        allowDataLoss,
      ]);
    },
    async promote(formation, node, allowDataLoss) {
      await change("select pgautofailover.perform_promotion($1, $2, $3)", [
        formation,
        node,
        allowDataLoss,
      ]);
    },
    async switchover(formation, group, node) {
      await change("select pgautofailover.perform_switchover($1, $2, $3)", [
        formation,
        group,
        node ?? null,
      ]);
    },
    async startMaintenance(nodeId, allowFailover) {
      await change("select pgautofailover.start_maintenance($1, $2)", [nodeId, allowFailover]);
    },
    async stopMaintenance(nodeId) {
      return (
        single(await change("select pgautofailover.stop_maintenance($1) as value", [nodeId])) ===
        true
      );
    },
    async setCandidatePriority(formation, node, priority) {
      await change("select pgautofailover.set_node_candidate_priority($1, $2, $3)", [
        formation,
        node,
        priority,
      ]);
    },
    async setReplicationQuorum(formation, node, quorum) {
      await change("select pgautofailover.set_node_replication_quorum($1, $2, $3)", [
        formation,
        node,
        quorum,
      ]);
    },
    async formationSettings(formation) {
      const rows = await ask(
        "select to_jsonb(f) as value from pgautofailover.formation f where formationid = $1",
        [formation],
      );
      if (!single(rows)) throw unknownFormation(formation);
      return single(rows) as Readonly<Record<string, unknown>>;
    },
    async setFormation(formation, columns) {
      const call = "select pgautofailover.set_formation($1, $2::text::jsonb)";
      await change(call, [formation, JSON.stringify(columns)]);
    },
    async acceptTimeline(formation, group, node) {
      await change("select pgautofailover.accept_timeline($1, $2, $3)", [formation, group, node]);
    },
    async setReplicationPassword(formation, group, password) {
      await change("select pgautofailover.set_replication_password($1, $2, $3)", [
        formation,
        group,
        password ?? null,
      ]);
    },
    watch: (onWake) => db.listen("state", onWake, () => onWake("")),
    hear: (onWake) => db.hear("state", onWake),
    [Symbol.asyncDispose]: () => db.close(),
  };
}
