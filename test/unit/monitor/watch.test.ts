/** What stands on a terminal of a given size, and which events are new. */
import { expect, test } from "bun:test";
import { makeSieve } from "../../../lib/monitor/look.ts";
import { type Frame, renderFrame } from "../../../lib/monitor/watch.ts";
import type { EventRow, StateRow } from "../../../lib/shapes.ts";

const node = (node_id: number, state: StateRow["current_group_state"]): StateRow => ({
  ...{ nodename: `node_${node_id}`, nodehost: "h", nodeport: 5000 + node_id, group_id: 0, node_id },
  ...{ current_group_state: state, assigned_group_state: state, pg_is_running: true, health: 1 },
  ...{ reported_tli: 1, reported_lsn: "0/5000000", reported_repstate: "", report_age: 0.4 },
  ...{ candidate_priority: 50, replication_quorum: true },
});

const event = (id: number): EventRow => ({
  ...{ eventid: String(id), eventtime: new Date(id * 1000), formationid: "default", groupid: 0 },
  ...{ nodeid: 1, nodename: "node_1", nodehost: "h", nodeport: 5001, reportedlsn: "0/0" },
  ...{ reportedstate: "primary", goalstate: "primary", rule: null, description: `event ${id}` },
});

const frame = (change: Partial<Frame>): string[] =>
  renderFrame({
    ...{
      formation: "default",
      now: new Date(0),
      ageMs: 0,
      away: undefined,
      columns: 120,
      rows: 12,
    },
    snapshot: {
      nodes: [node(1, "primary"), node(2, "secondary")],
      events: [1, 2, 3, 4, 5].map(event),
      blocked: [],
    },
    ...change,
  });

test("renderFrame: as many of the last events as there is room for, and never more lines", () => {
  expect(frame({}).slice(-5)).toEqual([
    expect.stringContaining("Time |"),
    expect.stringMatching(/^-+/),
    expect.stringContaining("event 3"),
    expect.stringContaining("event 4"),
    expect.stringContaining("event 5"),
  ]);
  expect(frame({ rows: 8 }).join("\n")).not.toContain("event");
  expect(frame({ rows: 3 })).toHaveLength(3);
});

test("renderFrame: says since when the monitor is away, and counts the ages on", () => {
  const away = frame({ away: "no connection", ageMs: 12_000 });
  expect(away[1]).toBe("The monitor is away, this is what it knew 12 s ago: no connection");
  expect(away.join("\n")).toMatch(/node_1 .* \| +12 s \|/);
  expect(frame({ ageMs: 4000 })[1]).toBe("The monitor has not answered for 4 s");
  expect(frame({ ageMs: 1000 })[1]).toBe("");
});

const ids = (rows: readonly EventRow[]): number[] => rows.map(({ eventid }) => Number(eventid));

test("makeSieve: each event once, also one that is committed after one with a greater id", () => {
  const sieve = makeSieve();
  expect(ids(sieve.fresh([event(7), event(9)], 0))).toEqual([7, 9]);
  expect(sieve.floor()).toBe(6);
  expect(ids(sieve.fresh([event(7), event(8), event(9), event(10)], 1000))).toEqual([8, 10]);
  for (let at = 2000; at <= 12_000; at += 1000) sieve.fresh([event(9), event(10)], at);
  expect(sieve.floor()).toBe(10);
});

test("makeSieve: a pause without answers settles nothing", () => {
  const sieve = makeSieve();
  sieve.fresh([event(7)], 0);
  sieve.fresh([], 600_000);
  expect(sieve.floor()).toBe(6);
});

test("makeSieve: there were no events yet", () => {
  const sieve = makeSieve();
  expect(sieve.fresh([], 0)).toEqual([]);
  expect(sieve.floor()).toBe(0);
  expect(ids(sieve.fresh([event(1)], 1000))).toEqual([1]);
});
