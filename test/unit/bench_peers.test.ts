/** The race's order and its tables; the race itself is `npm run bench:peers`. */
import { expect, test } from "bun:test";
import {
  type Line,
  medianOf,
  type Options,
  tablesOf,
  turnsLeft,
  turnsOf,
} from "../bench/peers/report.ts";

const OPTIONS: Options = {
  runs: 2,
  rows: ["kill", "host"],
  systems: ["ours", "patroni", "repmgr"],
  settings: ["defaults"],
  idleSeconds: 1,
};

function run(number: number, system: "ours" | "patroni", outageMs: number | null): Line {
  const where = { run: number, setting: "defaults", system, tookMs: 1 } as const;
  const measured = { outageMs, redundantMs: 2000, byHand: false, acknowledged: 9, unknown: 0 };
  return { kind: "run", at: "", row: "kill", ...where, ...measured, lost: 3, trouble: [] };
}

test("turnsOf: another system begins each round, and all have the same number of turns", () => {
  const turns = turnsOf(OPTIONS);
  const rounds = [0, 3, 6, 9].map((at) => turns.slice(at, at + 3));
  expect(rounds.map((round) => round.map(({ system }) => system))).toEqual([
    ["ours", "patroni", "repmgr"],
    ["patroni", "repmgr", "ours"],
    ["repmgr", "ours", "patroni"],
    ["ours", "patroni", "repmgr"],
  ]);
  expect(rounds.map(([first]) => `${first?.run} ${first?.row}`)).toEqual([
    "1 kill",
    "1 host",
    "2 kill",
    "2 host",
  ]);
});

test("turnsLeft: a race that was interrupted goes on where it stopped, failures included", () => {
  const failed: Line = {
    ...{ kind: "failed", at: "", row: "kill", run: 1, setting: "defaults", system: "repmgr" },
    ...{ tookMs: 1, why: "no" },
  };
  const left = turnsLeft(OPTIONS, [run(1, "ours", 100), run(1, "patroni", 100), failed]);
  expect(left).toEqual(turnsOf(OPTIONS).slice(3));
});

test("medianOf: what never ended counts as longer than all others", () => {
  const never = Number.POSITIVE_INFINITY;
  expect([[], [3], [4, 2], [9, 1, 5], [1, never, never], [1, never]].map(medianOf)).toEqual([
    undefined,
    3,
    3,
    5,
    never,
    never,
  ]);
});

test("tablesOf: median, maximum, ratio to ours, and every lost row", () => {
  const lines = [run(1, "ours", 100), run(2, "ours", 300), run(1, "patroni", 1000)];
  const text = tablesOf(OPTIONS, [...lines, run(2, "patroni", null), run(3, "patroni", 1400)]);
  const [outage, redundancy, lost] = text.split("\n").slice(4);
  expect(outage).toMatch(/ 0\.20 \(0\.30\) \| +1\.40 \(>120\) x7\.0 /);
  expect(redundancy).toMatch(/ 2\.00 \(2\.00\) \| +2\.00 \(2\.00\) x1\.0 /);
  expect(lost).toMatch(/ 6 \| +9 /);
});
