/** Random walks by seed over groups of three to five nodes; `bun test/model/run.ts --seed` does one again. */
import { expect, test } from "bun:test";
import { GROUP_RULES, type GroupRule } from "../../lib/fsm.ts";
import { happen } from "./events.ts";
import { LAWS } from "./laws.ts";
import { SCENARIOS, scenarioOf } from "./scenario.ts";
import { attempt, newCoverage, oneRound, replay, settledGroup, shrink, walk } from "./walk.ts";
import { isWritable, nodeOf } from "./world.ts";

const TIMEOUT_MS = 120_000;
const WALKS = 2400;
const seen = newCoverage();

test.each([3, 4, 5])(
  "S1-S4: a group of %i nodes in any weather, and then it heals",
  (nodes) => {
    let steps = 0;
    for (let seed = 1; seed <= WALKS; seed += 1) {
      const one = walk(nodes * 10_000_000 + seed, { nodes }, LAWS, seen);
      steps += one.steps;
      if (one.failure) expect(scenarioOf(shrink(one.failure))).toBe("goes well");
    }
    console.log(`  ${steps} random steps`);
  },
  TIMEOUT_MS,
);

/** What an operator may give up is not part of the model: its promises are about what no one gives up. */
const isAutomatic = ({ when }: GroupRule): boolean => !when.includes("lossAllowed");

test("S3: every rule fires in these walks, or in a scenario", () => {
  for (const [, run] of SCENARIOS) replay(run, LAWS, undefined, seen);
  const unused = GROUP_RULES.filter(isAutomatic)
    .map(({ id }) => id)
    .filter((id) => !seen.rules.has(id));
  expect(unused).toEqual([]);
});

test("S5: without its monitor, for as long as it takes, a group goes on acknowledging commits", () => {
  const context = { laws: LAWS, seen: newCoverage() };
  const w = settledGroup({ nodes: 3, members: 3 }, context);
  happen(w, ["stopMonitor"], context);
  for (const { id } of w.nodes) happen(w, ["sever", 0, id], context);
  for (let round = 0; round < 20; round += 1) {
    oneRound(w, 0, context);
    expect(attempt(w, ["tick"], context)).toBe(true);
  }
  happen(w, ["commit", 1], context);
  oneRound(w, 0, context);
  expect(w.acked).toBe(nodeOf(w, 1).pg.wal);
});

test("R304: a primary that is heard, and hears nobody, stops itself, says so, and is replaced", () => {
  const context = { laws: LAWS, seen: newCoverage() };
  const w = settledGroup({ nodes: 2, members: 2 }, context);
  happen(w, ["cut", 0, 1], context);
  happen(w, ["failover", 0], context);
  for (let round = 0; round < 20; round += 1) {
    oneRound(w, 0, context);
    attempt(w, ["tick"], context);
  }
  expect(context.seen.rules).toContain("R304");
  expect(nodeOf(w, 1).pg.run).toBe("down");
  expect(isWritable(nodeOf(w, 2))).toBe(true);
});
