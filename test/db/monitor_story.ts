/** The monitor's database on a server of its own, with keepers that say what they are told to. */
import { randomUUID } from "node:crypto";
import { migrate } from "../../lib/monitor/instance.ts";
import { localTarget } from "../../lib/pg/local.ts";
import { livePostmaster } from "../../lib/pg/server.ts";
import { type Answer, parseAnswer, type Report } from "../../lib/shapes.ts";
import { type Db, openDb, sqlState, type Target } from "../../lib/sys/sql.ts";
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
  await node.open().query("create role autoctl_node login");
  const postmaster = livePostmaster(node.pgdata);
  if (!postmaster) throw new Error("the monitor's server doesn't run");
  const login = { user: currentUser(), database: "postgres", applicationName: "monitor" };
  const target = localTarget(postmaster, login);
  await migrate(target);
  const opened: Db[] = [];
  return {
    target,
    open: (user) => {
      // the login of the keepers comes over TCP, where pg_hba.conf trusts it
      const other = user ? { user, host: "127.0.0.1", port: node.port } : {};
      const db = openDb({ ...target, ...other });
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

const REPORT: Report = {
  identity: NODE_A,
  reportNo: 1n,
  state: "init",
  pgIsRunning: false,
  timeline: 1,
  lsn: "0/3000000",
  syncState: "",
  streaming: false,
  startFailures: 0,
  syncInForce: null,
  systemIdentifier: null,
};

export async function report(db: Db, nodeId: number, change: Partial<Report>): Promise<Answer> {
  const payload = { ...REPORT, ...change };
  const rows = await db.query(
    "select pgautofailover.node_active('default', $1, $2::text::jsonb) as value",
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
