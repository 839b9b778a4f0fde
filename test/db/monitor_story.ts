/** The monitor's database on a server of its own, with keepers that say what they are told to. */
import { randomUUID } from "node:crypto";
import { migrate } from "../../lib/monitor/instance.ts";
import { decideAndWrite, readGroup } from "../../lib/monitor/store.ts";
import { localTarget } from "../../lib/pg/local.ts";
import { livePostmaster } from "../../lib/pg/server.ts";
import { type Answer, type GroupRow, parseAnswer, type Report } from "../../lib/shapes.ts";
import { type Db, openDb, queryOnce, sqlState, type Target } from "../../lib/sys/sql.ts";
import { currentUser } from "../../lib/sys/user.ts";
import type { World } from "./pg_story.ts";

export type Monitor = {
  /** As the monitor's own process, which owns everything. */
  readonly target: Target;
  open(user?: string): Db;
  close(): Promise<void>;
};

export async function monitorOf({ primary }: World): Promise<Monitor> {
  const node = await primary("monitor");
  const postmaster = livePostmaster(node.pgdata);
  if (!postmaster) throw new Error("the monitor's server doesn't run");
  const login = { user: currentUser(), database: "postgres", applicationName: "monitor" };
  return monitorOn(localTarget(postmaster, login), node.port);
}

/** @param target a server without anything in it, as superuser; it trusts everybody who comes over TCP */
export async function monitorOn(target: Target, port: number): Promise<Monitor> {
  await queryOnce(target, "create role autoctl_node login");
  await migrate(target);
  const opened: Db[] = [];
  return {
    target,
    open: (user) => {
      const db = openDb({ ...target, ...(user ? { user, host: "127.0.0.1", port } : {}) });
      opened.push(db);
      return db;
    },
    close: async () => {
      await Promise.all(opened.map((db) => db.close()));
    },
  };
}

export const NODE_A = randomUUID();
export const NODE_B = randomUUID();

/** Node 1 is NODE_A and so on. */
const IDENTITIES = [NODE_A, NODE_B, randomUUID(), randomUUID()];
export const identityOf = (nodeId: number): string => IDENTITIES[nodeId - 1] ?? "";

export type Registration = {
  formation?: string;
  host?: string;
  port?: number;
  identity?: string;
  name?: string | null;
  system?: string | null;
  dbname?: string | null;
};

export async function register(db: Db, r: Registration): Promise<Answer> {
  const rows = await db.query(
    "select pgautofailover.register_node($1, $2, $3, $4, $5, $6::text::numeric, 0, $7) as value",
    [
      r.formation ?? "default",
      r.host ?? "localhost",
      r.port ?? 5001,
      r.identity ?? NODE_A,
      r.name ?? null,
      r.system ?? null,
      r.dbname ?? null,
    ],
  );
  return parseAnswer(rows[0]?.["value"]);
}

const REPORT: Omit<Report, "goalVersion"> = {
  identity: NODE_A,
  reportNo: 1n,
  state: "init",
  pgIsRunning: false,
  timeline: 1,
  lsn: "0/3000000",
  syncState: "",
  streaming: false,
  startFailures: 0,
  promotion: null,
  shutdown: null,
  fenceMs: 3700,
  systemIdentifier: null,
};

export async function report(db: Db, nodeId: number, change: Partial<Report>): Promise<Answer> {
  const payload = { ...REPORT, ...change };
  const rows = await db.query(
    // of a keeper that has heard of every goal it was ever given, unless it says otherwise
    `select pgautofailover.node_active('default', n.nodeid,
       jsonb_build_object('goalVersion', n.goalversion) || $2::text::jsonb) as value
     from (select $1::bigint as nodeid, (select goalversion from pgautofailover.node where nodeid = $1)) n`,
    [nodeId, JSON.stringify({ ...payload, reportNo: String(payload.reportNo) })],
  );
  return parseAnswer(rows[0]?.["value"]);
}

/** The SQLSTATE that something is refused with; "" when it's not. */
export async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    return sqlState(error) ?? "unknown";
  }
}

export const KEY = { formation: "default", groupId: 0 };
const FOR_EVER_MS = 1e9;

/** The SQLSTATE and the sentence that something is refused with; "" when it's not. */
export async function refused(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "";
  } catch (error) {
    return `${sqlState(error)}: ${(error as Error).message}`;
  }
}

export type Scene = {
  readonly monitor: Monitor;
  /** As a keeper or an operator. */
  readonly keeper: Db;
  /** As the monitor's own process. */
  readonly own: Db;
  /** The next report of a node: running, on timeline 1, and what is said here. */
  says(nodeId: number, change: Partial<Report>): Promise<Answer>;
  /** The rules that fired. */
  decide(): Promise<string>;
  row(): Promise<GroupRow>;
  goals(): Promise<Record<number, string>>;
  /** Descriptions of the events that no rule wrote, since the last call. */
  news(): Promise<string[]>;
};

/** A group whose nodes are registered: 1, 2, … */
export const scene = async (world: World, nodes: number): Promise<Scene> =>
  sceneOn(await monitorOf(world), nodes);

export async function sceneOn(monitor: Monitor, nodes: number): Promise<Scene> {
  const keeper = monitor.open("autoctl_node");
  const own = monitor.open();
  for (let id = 1; id <= nodes; id += 1) {
    await register(keeper, { port: 5000 + id, identity: identityOf(id) });
  }
  let reportNo = 0n;
  let lastEvent = 0;
  const row = async (): Promise<GroupRow> => {
    const found = await readGroup(own, KEY);
    if (found === undefined) throw new Error("there is no such group");
    return found;
  };
  return {
    monitor,
    keeper,
    own,
    says: (nodeId, change) => {
      reportNo += 1n;
      const identity = identityOf(nodeId);
      return report(keeper, nodeId, { reportNo, identity, pgIsRunning: true, ...change });
    },
    decide: async () => {
      const outcome = await decideAndWrite(own, KEY, FOR_EVER_MS);
      return outcome?.decisions.map(({ rule }) => rule.id).join(" ") ?? "no group";
    },
    row,
    goals: async () =>
      Object.fromEntries((await row()).nodes.map(({ nodeId, goal }) => [nodeId, goal])),
    news: async () => {
      const rows = await own.query<{ id: number; description: string }>(
        "select eventid::int as id, description from pgautofailover.event where rule is null and eventid > $1 order by eventid",
        [lastEvent],
      );
      lastEvent = rows.at(-1)?.id ?? lastEvent;
      return rows.map(({ description }) => description);
    },
  };
}

/** Node 1 is the primary, the others are its secondaries, and one of them must have each commit. */
export const healthyGroup = async (world: World, nodes: number): Promise<Scene> =>
  healthyOn(await monitorOf(world), nodes);

export async function healthyOn(monitor: Monitor, nodes: number): Promise<Scene> {
  const made = await sceneOn(monitor, nodes);
  const { own } = made;
  await own.query(
    `update pgautofailover.node set goalstate = case nodeid when 1 then 'primary' else 'secondary' end,
       reportedstate = case nodeid when 1 then 'primary' else 'secondary' end, reportedpgisrunning = true,
       inrecovery = nodeid > 1, streaming = nodeid > 1, reportedtli = 1, reportedlsn = '0/3000000', health = 1`,
  );
  const members = Array.from({ length: nodes - 1 }, (_, index) => index + 2);
  const set = { version: 1, primaryId: 1, members, number: members.length > 0 ? 1 : 0 };
  await own.query(
    `update pgautofailover."group" set syncversion = 1, syncprimary = 1, syncmembers = $1::text::bigint[],
       syncnumber = $2, syncinforce = $3::text::jsonb`,
    [`{${members.join()}}`, set.number, JSON.stringify(set)],
  );
  await own.query(
    `insert into pgautofailover.timeline_history (formationid, groupid, timeline, parent, forklsn, nodeid, nodename)
     values ('default', 0, 1, 0, '0/0', 1, 'node_1')`,
  );
  await made.news();
  return made;
}

export const PRIMARY: Partial<Report> = { state: "primary", inRecovery: false };
export const SECONDARY: Partial<Report> = {
  state: "secondary",
  inRecovery: true,
  streaming: true,
};
