/** The race's order and its tables; the race itself is `npm run bench:peers`. */
import { expect, test } from "bun:test";
import {
  estimateSeconds,
  type Line,
  medianOf,
  type Options,
  roundsOf,
  type Turn,
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
  const measured = {
    ...{ struckAt: "", outageMs, outageOverMs: outageMs },
    redundantMs: 2000,
    byHand: false,
    acknowledged: 9,
    unknown: 0,
  };
  return { kind: "run", at: "", row: "kill", ...where, ...measured, lost: 3, trouble: [] };
}

test("turnsOf: of each row another system begins in each run, and all have the same number of turns", () => {
  const turns = turnsOf(OPTIONS);
  const rounds = [0, 3, 6, 9].map((at) => turns.slice(at, at + 3));
  expect(rounds.map((round) => round.map(({ system }) => system))).toEqual([
    ["ours", "patroni", "repmgr"],
    ["patroni", "repmgr", "ours"],
    ["patroni", "repmgr", "ours"],
    ["repmgr", "ours", "patroni"],
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

test("turnsOf: idling is measured in the first three runs", () => {
  const turns = turnsOf({ ...OPTIONS, runs: 5, rows: ["idle", "kill"], systems: ["ours"] });
  const runsWith = (wanted: string) =>
    turns.filter(({ row }) => row === wanted).map(({ run }) => run);
  expect([runsWith("idle"), runsWith("kill")]).toEqual([
    [1, 2, 3],
    [1, 2, 3, 4, 5],
  ]);
});

test("roundsOf: losses of hosts go on at once, the other faults strike in their order", () => {
  const [round] = roundsOf(turnsOf({ ...OPTIONS, rows: ["kill", "host", "frozen", "standby"] }));
  const name = ({ system, row }: Turn) => `${system} ${row}`;
  expect(round?.atOnce.map((lane) => lane.map(name))).toEqual([
    ["patroni host", "patroni frozen"],
    ["repmgr host", "repmgr frozen"],
    ["ours host", "ours frozen"],
  ]);
  expect(round?.oneByOne.map(name)).toEqual([
    ...["ours kill", "patroni kill", "repmgr kill"],
    ...["ours standby", "patroni standby", "repmgr standby"],
  ]);
});

test("estimateSeconds: turns at once take as long as the longest, and none waits for one that is long in coming back", () => {
  const secondsOf = (options: Partial<Options>) =>
    estimateSeconds(turnsOf({ ...OPTIONS, runs: 1, ...options }), 60);
  const alone = secondsOf({ rows: ["host"], systems: ["repmgr"] });
  expect(secondsOf({ rows: ["host"] })).toBe(alone);
  const standby = secondsOf({ rows: ["standby"], systems: ["repmgr"] });
  expect(secondsOf({ rows: ["standby"], systems: ["repmgr", "ours"] })).toBe(standby);
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
