/** http: whom a load balancer may send to this node, and when not. */
import { expect, test } from "bun:test";
import { NODE_STATES, type NodeState } from "../../../lib/fsm.ts";
import { type NodeHealth, nodeReply, parseSize } from "../../../lib/keeper/http.ts";
import { roleOf } from "../../../lib/keeper/report.ts";
import { newState } from "../../../lib/keeper/state_file.ts";
import type { Observation } from "../../../lib/pg/local.ts";

const MB = 1024n * 1024n;

const seen: Observation = {
  inRecovery: false,
  timeline: 3,
  lsn: 100n * MB,
  replayLsn: undefined,
  receiver: undefined,
  syncNames: "",
  readOnlyDefault: false,
  standbys: [],
  slots: [],
  slotKeepBytes: undefined,
  walWaits: false,
  systemIdentifier: "1",
};

const inState = (state: NodeState, goal = state) => ({
  ...newState(),
  nodeId: 1,
  groupId: 0,
  name: "node_1",
  state,
  goal,
});

const PRIMARY: NodeHealth = {
  formation: "default",
  host: "db1",
  port: 5432,
  state: inState("primary"),
  postgres: "up",
  underWay: undefined,
  fenced: false,
  closing: false,
  seen,
  streams: false,
  contactAgeMs: 300,
  primaryLsn: undefined,
  startFailures: 0,
  syncInForce: { version: 4, primaryId: 1, members: [2], number: 1 },
  reports: { answered: 7, failed: 1, tookMs: 21 },
};

const STANDBY: NodeHealth = {
  ...PRIMARY,
  state: inState("secondary"),
  seen: { ...seen, inRecovery: true, replayLsn: 90n * MB },
  streams: true,
  primaryLsn: 100n * MB,
  syncInForce: null,
};

const PATHS = ["/primary", "/replica", "/read-only", "/health", "/liveness"];
const statuses = (health: NodeHealth, paths = PATHS): (number | undefined)[] =>
  paths.map((path) => {
    const { pathname, searchParams } = new URL(path, "http://host");
    return nodeReply(health, pathname, searchParams)?.status;
  });

test("a primary, a standby, and one that is stopped", () => {
  expect(statuses(PRIMARY)).toEqual([200, 503, 200, 200, 200]);
  expect(statuses(STANDBY)).toEqual([503, 200, 200, 200, 200]);
  const stopped = { ...PRIMARY, state: inState("demoted"), postgres: "down" } as const;
  expect(statuses(stopped)).toEqual([503, 503, 503, 503, 200]);
  expect(statuses(PRIMARY, ["/", "/read-write", "/readiness", "/other", "/constructor"])).toEqual([
    200,
    200,
    200,
    undefined,
    undefined,
  ]);
});

test("/primary: only the states that take writes", () => {
  const open = NODE_STATES.filter(
    (state) => statuses({ ...PRIMARY, state: inState(state) })[0] === 200,
  );
  expect(open).toEqual(["single", "wait_primary", "primary", "apply_settings"]);
});

test.each<[string, Partial<NodeHealth>]>([
  ["whose fence has closed", { fenced: true }],
  ["that is to hand over", { state: inState("primary", "draining") }],
  ["that is being demoted", { underWay: "demote_timeout" }],
  ["whose keeper ends", { closing: true }],
  ["that is down", { postgres: "down" }],
  ["that hangs", { postgres: "hung" }],
  ["that is still a standby", { seen: { ...seen, inRecovery: true } }],
  ["that has not been looked at", { seen: undefined }],
])("/primary and /read-only: not for a primary %s", (_, change) => {
  expect(statuses({ ...PRIMARY, ...change }, ["/primary", "/read-only"])).toEqual([503, 503]);
});

test.each<[string, Partial<NodeHealth>]>([
  ["that still catches up", { state: inState("catchingup") }],
  ["that does not stream", { streams: false }],
  ["that was promoted behind our back", { seen }],
  ["that is down", { postgres: "down" }],
])("/replica: not for a standby %s", (_, change) => {
  expect(statuses({ ...STANDBY, ...change }, ["/replica"])).toEqual([503]);
});

test("/replica: stays through an election, in which nobody streams for a moment", () => {
  for (const state of ["report_lsn", "join_secondary", "prepare_promotion"] as const) {
    expect(statuses({ ...STANDBY, state: inState(state) }, ["/replica"])).toEqual([200]);
  }
});

test("/replica?lag: bytes, or sizes as PostgreSQL's; unknown is too far behind", () => {
  const lags = ["/replica?lag=10485760", "/replica?lag=10MB", "/replica?lag=9MB", "/replica?lag=0"];
  expect(statuses(STANDBY, lags)).toEqual([200, 200, 503, 503]);
  expect(statuses({ ...STANDBY, primaryLsn: 80n * MB }, lags)).toEqual([200, 200, 503, 503]);
  expect(statuses({ ...STANDBY, primaryLsn: undefined }, ["/replica?lag=1TB"])).toEqual([503]);
  expect(statuses(STANDBY, ["/replica?lag=much", "/read-only?lag=-1"])).toEqual([400, 400]);
  expect(["1024", "16 kB", "1GB", "2TB", "", "1PB"].map(parseSize)).toEqual([
    1024n,
    16_384n,
    1024n ** 3n,
    2n * 1024n ** 4n,
    undefined,
    undefined,
  ]);
});

test("people get JSON", () => {
  const body = nodeReply(STANDBY, "/replica", new URLSearchParams())?.body ?? "";
  expect(JSON.parse(body)).toEqual({
    name: "node_1",
    formation: "default",
    group: 0,
    host: "db1",
    port: 5432,
    state: "secondary",
    goal: "secondary",
    role: "standby",
    postgres: "up",
    timeline: 3,
    lsn: "0/6400000",
    lagBytes: String(10n * MB),
  });
});

test("/metrics: one state of all, lag of a standby, the set of a primary", () => {
  const page = (health: NodeHealth) =>
    nodeReply(health, "/metrics", new URLSearchParams())?.body ?? "";
  const node = 'formation="default",group="0",node="node_1"';
  const ones = page(PRIMARY).match(/^pg_auto_failover_node_state\{.*\} 1$/gm);
  expect(ones).toEqual([`pg_auto_failover_node_state{${node},state="primary"} 1`]);
  expect(page(PRIMARY)).toContain(`pg_auto_failover_node_is_primary{${node}} 1\n`);
  expect(page(PRIMARY)).toContain(`pg_auto_failover_sync_member{${node},node_id="2"} 1\n`);
  expect(page(PRIMARY)).not.toContain("pg_auto_failover_replay_lag_bytes{");
  expect(page(STANDBY)).toContain(`pg_auto_failover_replay_lag_bytes{${node}} 10485760\n`);
  expect(page(STANDBY)).toContain(`pg_auto_failover_report_seconds_total{${node}} 0.021\n`);
  expect(page(STANDBY)).not.toContain("NaN");
});

test("roleOf: who is promoted, but not open, is no primary yet", () => {
  expect((["primary", "stop_replication", "demoted", "maintenance"] as const).map(roleOf)).toEqual([
    "primary",
    "standby",
    "none",
    "none",
  ]);
});
