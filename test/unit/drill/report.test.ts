/** A drill's report as text, JSON and page, and what the monitor's events tell of a round. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { partitionRules } from "../../../lib/drill/faults.ts";
import { binsOf, niceAbove, reportHtml } from "../../../lib/drill/html.ts";
import { reportJson, reportText } from "../../../lib/drill/report.ts";
import { type Report, type Round, storyOf } from "../../../lib/drill/run.ts";
import type { NodeState } from "../../../lib/fsm.ts";
import type { EventRow } from "../../../lib/shapes.ts";

const AT = new Date("2026-01-31T12:00:00Z");
const steady = (fromMs: number, toMs: number): number[] =>
  Array.from({ length: (toMs - fromMs) / 10 }, (_, index) => fromMs + index * 10);

const round = (number: number, outageMs: number, more: Partial<Round> = {}): Round => ({
  round: number,
  what: `kill -9 of the postmaster (pid 4711) of node 1 "node_1", the primary`,
  at: AT,
  ...{ from: "node_1", to: "node_2", redundancyMs: 3 * outageMs },
  phases: { decide: 6, disconnect: 30, promote: 64, open: 60, outage: 160, redundancy: 400 },
  gap: { fromMs: -4, toMs: outageMs - 4 },
  marks: [
    { ms: 5, label: "noticed" },
    { ms: 11, label: "decided" },
    { ms: outageMs - 20, label: "open for writes" },
  ],
  ...{ lost: { node_1: 0, node_2: 0 }, unexpected: 0, found: 0, notFound: 0 },
  acknowledged: [...steady(-1000, 0), ...steady(outageMs, 3 * outageMs + 500)],
  ...more,
});

const report = (...rounds: Round[]): Report => ({
  ...{ formation: "default", group: 0, scenario: "kill-postgres", at: AT },
  ...{ writers: 1, writesPerSecond: 100, rounds },
  writes: { acknowledged: 1234, failed: 50, unknown: 2 },
  errors: { ECONNREFUSED: 50, CONNECTION_CLOSED: 2 },
});

const GOOD = report(
  round(1, 190),
  round(2, 160, { from: "node_2", to: "node_1", found: 1, notFound: 1 }),
  round(3, 260),
);

test("text: a line for each round, then smallest, median and greatest", () => {
  expect(reportText(GOOD).split("\n")).toEqual([
    "Round |         Primary | Decide | Disconnect | Promote |  Open | Outage | Redundancy | Lost |     Unknown",
    "------+-----------------+--------+------------+---------+-------+--------+------------+------+------------",
    "    1 | node_1 → node_2 |   6 ms |      30 ms |   64 ms | 60 ms | 190 ms |     570 ms |    0 |           0",
    "    2 | node_2 → node_1 |   6 ms |      30 ms |   64 ms | 60 ms | 160 ms |     480 ms |    0 | 2 (1 there)",
    "    3 | node_1 → node_2 |   6 ms |      30 ms |   64 ms | 60 ms | 260 ms |     780 ms |    0 |           0",
    "",
    "outage as writers saw it: min 160 ms, median 190 ms, max 260 ms",
    "perfect health again after: min 480 ms, median 570 ms, max 780 ms",
    "writes: 1234 acknowledged, 2 of unknown fate, 0 lost",
  ]);
});

test("JSON: the same, and a row that one node lacks is lost", () => {
  const bad = report(round(1, 190, { lost: { node_1: 0, node_2: 3 } }));
  expect(reportJson(bad, "acknowledged rows are missing")).toMatchObject({
    error: "acknowledged rows are missing",
    summary: { lost: 3, outageMs: { median: 190 } },
    rounds: [{ outageMs: 190, lost: { node_2: 3 } }],
  });
});

test("the page is as test/golden/drill.html shows it; UPDATE=1 rewrites it", () => {
  const golden = join(import.meta.dir, "../../golden/drill.html");
  const page = reportHtml(GOOD, null);
  if (process.env["UPDATE"] === "1") writeFileSync(golden, page);
  expect(page).toBe(readFileSync(golden, "utf8"));
});

test("the page asks nobody for anything, and takes no text for markup", () => {
  const error = `rows are missing <script src="https://example.org">`;
  const page = reportHtml({ ...GOOD, formation: "a&b", rounds: [] }, error);
  expect(page).not.toMatch(/<script|<link|<img|\b(src|href)="|url\(|@import/);
  expect(page).toContain("a&amp;b");
  expect(page).toContain("Ended early: rows are missing &lt;script");
});

test("bins: whole ones of a round width, one begins at the fault, and every write is in one", () => {
  const times = [...steady(-1000, 0), ...steady(200, 1000)];
  const { startMs, binMs, counts } = binsOf([...times, 1010], 1020, 100);
  expect([startMs, binMs, counts.length]).toEqual([-1000, 50, 40]);
  expect(counts.slice(19, 25)).toEqual([5, 0, 0, 0, 0, 5]);
  expect(counts.reduce((sum, count) => sum + count, 0)).toBe(times.length);
  expect([niceAbove(0.3), niceAbove(1), niceAbove(21), niceAbove(100)]).toEqual([0.5, 1, 50, 100]);
});

const event = (ms: number, name: string, reported: NodeState, goal: NodeState, rule?: string) =>
  ({
    eventtime: new Date(AT.getTime() + ms),
    ...{ groupid: 0, nodeid: Number(name.slice(-1)), nodename: name },
    ...{ reportedstate: reported, goalstate: goal, rule: rule ?? null },
    description: rule ? `goal → "${goal}": why` : `New state is reported by ${name}`,
  }) as unknown as EventRow;

test("a round's story: the phases of its failover, counted from the fault", () => {
  const events = [
    event(10, "node_1", "primary", "draining", "R301"),
    event(11, "node_2", "secondary", "prepare_promotion", "R301"),
    event(40, "node_2", "prepare_promotion", "prepare_promotion"),
    event(90, "node_2", "stop_replication", "stop_replication"),
    event(140, "node_2", "wait_primary", "wait_primary"),
    event(600, "node_2", "primary", "primary"),
  ];
  const { phases, marks } = storyOf(events, AT.getTime());
  expect(phases).toMatchObject({ disconnect: 30, promote: 50, open: 50, redundancy: 460 });
  expect(marks.map(({ ms, label }) => `${ms} ${label}`)).toEqual([
    "10 decided",
    "40 disconnected",
    "90 promoted",
    "140 open for writes",
    "600 synchronous again",
  ]);
});

test("a round's story without a failover: what the nodes reported", () => {
  const events = [
    event(20, "node_2", "secondary", "catchingup", "R201"),
    event(30, "node_1", "wait_primary", "wait_primary"),
  ];
  expect(storyOf(events, AT.getTime())).toEqual({
    phases: null,
    marks: [{ ms: 30, label: "node_1 wait_primary" }],
  });
});

test("partition: both families, the user's own packets and those to its server; the kernel forgets them", () => {
  const rules = partitionRules(
    { v4: ["10.0.0.2", "10.0.0.3"], v6: ["fd00::2"] },
    101,
    5433,
    60_000,
  );
  expect(rules.split("\n").map((line) => line.trim())).toEqual([
    "table inet pg_auto_failover_drill",
    "delete table inet pg_auto_failover_drill",
    "table inet pg_auto_failover_drill {",
    "set v4 { type ipv4_addr; timeout 60s; elements = { 10.0.0.2, 10.0.0.3 }; }",
    "set v6 { type ipv6_addr; timeout 60s; elements = { fd00::2 }; }",
    "chain output {",
    "type filter hook output priority -1;",
    "meta skuid 101 ip daddr @v4 drop",
    "meta skuid 101 ip6 daddr @v6 drop",
    "}",
    "chain input {",
    "type filter hook input priority -1;",
    "ip saddr @v4 tcp dport 5433 drop",
    "ip6 saddr @v6 tcp dport 5433 drop",
    "}",
    "}",
    "",
  ]);
});
