/** report: what the monitor is told, and which notifications are worth a look. */
import { expect, test } from "bun:test";
import { type NodeState, PROMISED } from "../../../lib/fsm.ts";
import { countsAsRunning, isNews, reportOf, sentenceOf } from "../../../lib/keeper/report.ts";
import { newState } from "../../../lib/keeper/state_file.ts";
import type { Observation } from "../../../lib/pg/local.ts";

const state = {
  ...newState(),
  nodeId: 1,
  groupId: 0,
  state: "primary" as const,
  goalVersion: 7,
  incarnation: 2,
};
const standby = {
  applicationName: "pgautofailover_standby_2",
  state: "streaming",
  syncState: "sync",
  flushLsn: 100n,
  replyTime: undefined,
};
const seen: Observation = {
  inRecovery: false,
  timeline: 3,
  lsn: 140n,
  replayLsn: undefined,
  receiver: undefined,
  syncNames: "",
  readOnlyDefault: false,
  standbys: [standby],
  slots: [],
  slotKeepBytes: undefined,
  walWaits: false,
  systemIdentifier: "1",
};
const set = { version: 4, primaryId: 1, members: [2], number: 1 };
const input = {
  state,
  seen,
  running: true,
  sequence: 5n,
  startFailures: 0,
  syncInForce: set,
  shutdown: undefined,
  fenceMs: 3700,
};

test("countsAsRunning: a frozen server is down, but not where a stopped one was promised", () => {
  expect(countsAsRunning("primary", "hung", false)).toBe(false);
  expect(countsAsRunning("demote_timeout", "hung", false)).toBe(true);
  expect(countsAsRunning("demote_timeout", "down", true)).toBe(true);
  expect(countsAsRunning("demote_timeout", "down", false)).toBe(false);
});

test("reportOf: numbers grow over restarts of the keeper", () => {
  const before = reportOf({ ...input, sequence: 4_000_000n }).reportNo;
  const after = reportOf({ ...input, state: { ...state, incarnation: 3 }, sequence: 1n }).reportNo;
  expect(after > before).toBe(true);
});

test("reportOf: the set in force is a primary's to tell, a fenced one's too, and nobody else's", () => {
  const told = (name: NodeState, syncInForce: typeof set | null = set) =>
    reportOf({ ...input, state: { ...state, state: name }, syncInForce });
  expect(told("primary").syncInForce).toEqual(set);
  expect(told("demote_timeout").syncInForce).toEqual(set);
  expect(told("primary", null).syncInForce).toBeNull();
  expect(told("demoted")).not.toContainKey("syncInForce");
  expect(told("secondary")).not.toContainKey("syncInForce");
});

test("reportOf: who takes part in an election says what it can replay, anybody else what it may have at most", () => {
  const standing = { ...seen, inRecovery: true, replayLsn: 130n };
  const lsnIn = (name: NodeState, looked: Observation | undefined = standing) =>
    reportOf({ ...input, state: { ...state, state: name }, seen: looked }).lsn;
  expect(lsnIn("secondary")).toBe("0/8C");
  // a candidate has been chosen already: what counts is that nobody thinks less of it than it has
  expect(lsnIn("prepare_promotion")).toBe("0/8C");
  const voters = PROMISED.filter((name) => name !== "prepare_promotion");
  for (const name of voters) expect({ name, lsn: lsnIn(name) }).toEqual({ name, lsn: "0/82" });
  expect(lsnIn("report_lsn", seen)).toBe("0/8C");
});

test("reportOf: what hasn't been seen is left out, or 0", () => {
  const report = reportOf({ ...input, seen: undefined });
  expect(report).toMatchObject({ timeline: 0, lsn: "0/0", streaming: false });
  expect(report).not.toContainKey("inRecovery");
  expect(reportOf(input).inRecovery).toBe(false);
});

test("reportOf: the node's last promotion is told for as long as it's remembered", () => {
  const promotion = { timeline: 3, forkLsn: "0/80" };
  expect(reportOf(input).promotion).toBeNull();
  expect(reportOf({ ...input, state: { ...state, promotion } }).promotion).toEqual(promotion);
});

test("reportOf: a primary names the nodes that it sends to, and nobody else does", () => {
  const standby = { syncState: "async", flushLsn: 1n, replyTime: undefined };
  const standbys = [
    { ...standby, applicationName: "pgautofailover_standby_2", state: "streaming" },
    { ...standby, applicationName: "pgautofailover_standby_3", state: "backup" },
    { ...standby, applicationName: "walreceiver", state: "streaming" },
  ];
  const sendsTo = (name: NodeState) =>
    reportOf({ ...input, state: { ...state, state: name }, seen: { ...seen, standbys } }).sendsTo;
  expect(sendsTo("primary")).toEqual([2]);
  expect(sendsTo("secondary")).toBeUndefined();
});

test("reportOf: a server that is down has no standbys and streams from nobody", () => {
  const { syncState, streaming } = reportOf({ ...input, running: false });
  expect({ syncState, streaming }).toEqual({ syncState: "", streaming: false });
});

test("sentenceOf is the walkthrough's", () => {
  const { whole } = sentenceOf(reportOf(input), "default", input);
  expect(whole).toBe(
    'Calling node_active for node default/1/0 with current state: primary, PostgreSQL is running, sync_state is "sync", WAL delta is 40.',
  );
});

test("isNews: what this node knows already is none", () => {
  const told = (event: object, asked?: bigint) =>
    isNews(
      JSON.stringify({ formation: "default", groupId: 0, ...event }),
      "default",
      state,
      [{ nodeId: 2, goal: "secondary" }],
      asked,
    );
  expect(told({ nodeId: 1, goalVersion: 7 })).toBe(false);
  expect(told({ nodeId: 1, goalVersion: 7, decidedReport: "41" }, 42n)).toBe(false);
  expect(told({ nodeId: 1, goalVersion: 7, decidedReport: "42" }, 42n)).toBe(true);
  expect(told({ nodeId: 1, goalVersion: 8 })).toBe(true);
  expect(told({ nodeId: 2, goalState: "secondary" })).toBe(false);
  expect(told({ nodeId: 2, goalState: "catchingup" })).toBe(true);
  expect(told({ nodeId: 1, goalVersion: 8, groupId: 1 })).toBe(false);
  expect(isNews("", "default", state, [])).toBe(true);
  expect(isNews("no JSON", "default", state, [])).toBe(false);
});
