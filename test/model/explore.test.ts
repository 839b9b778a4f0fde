/**
 * Every world of one and two nodes that some order of events leads to, within these bounds: a group
 * that is being made (no fault, one removal), and a settled one (one fault, whatever recovers from
 * it, one commit); of a second fault during a failover, the worlds nearest to it. MODEL=large raises
 * the bounds: hours and gigabytes.
 */
import { expect, test } from "bun:test";
import { GROUP_RULES, KEEPER_TRANSITIONS } from "../../lib/fsm.ts";
import { explore, type Outcome, played, settledGroup } from "./explorer.ts";
import { emptyWorld, LAWS } from "./world.ts";

const isLarge = process.env["MODEL"] === "large";
const TIMEOUT_MS = isLarge ? 7_200_000 : 120_000;
const outcomes: Outcome[] = [];

/** On failure the first line is what is broken, the rest a shortest way to it. */
function expectUnbroken(outcome: Outcome, complete = true): void {
  outcomes.push(outcome);
  console.log(`  ${outcome.states} worlds`);
  expect(outcome.broken ?? "nothing is broken").toBe("nothing is broken");
  expect(outcome.complete).toBe(complete);
}

test(
  "S1-S4: a node alone, made, broken and dropped at any moment",
  () => {
    expectUnbroken(explore(emptyWorld(1, { faultsLeft: 1, commitsLeft: 1, dropsLeft: 1 })));
  },
  TIMEOUT_MS,
);

test(
  "S1-S4: two nodes become a group, and one is dropped at any moment",
  () => {
    const faultsLeft = isLarge ? 1 : 0;
    expectUnbroken(explore(emptyWorld(2, { faultsLeft, commitsLeft: 0, dropsLeft: 1 })));
  },
  TIMEOUT_MS,
);

test(
  "S1-S4: a settled pair survives any fault at any moment",
  () => {
    expectUnbroken(explore(settledGroup(emptyWorld(2, { faultsLeft: 1, commitsLeft: 1 }))));
  },
  TIMEOUT_MS,
);

test(
  "S1-S4: a second fault while the standby takes over",
  () => {
    const root = played(settledGroup(emptyWorld(2, { faultsLeft: 2, commitsLeft: 0 })), [
      "server 1 is killed",
      "node 1 reports",
      "the monitor decides",
    ]);
    const statesMax = isLarge ? 3_000_000 : 15_000;
    expectUnbroken(explore(root, LAWS, { statesMax }), isLarge);
  },
  TIMEOUT_MS,
);

test(
  "S1-S4: the primary is fenced, and the standby dropped",
  () => {
    const root = played(
      settledGroup(emptyWorld(2, { faultsLeft: 1, commitsLeft: 0, dropsLeft: 1 })),
      ["node 1 is cut off from everybody", "time passes", "keeper 1 takes a step"],
    );
    const statesMax = isLarge ? 3_000_000 : 5_000;
    expectUnbroken(explore(root, LAWS, { statesMax }), isLarge);
  },
  TIMEOUT_MS,
);

test(
  "S1-S4: a pair that is asynchronous by choice",
  () => {
    const bounds = { quorum: false, faultsLeft: 1, commitsLeft: isLarge ? 1 : 0 };
    expectUnbroken(explore(settledGroup(emptyWorld(2, bounds))));
  },
  TIMEOUT_MS,
);

test("S3: every rule is used", () => {
  const used = new Set(outcomes.flatMap(({ seen }) => [...seen.rules]));
  const unused = GROUP_RULES.map(({ id }) => id).filter((id) => !used.has(id));
  expect(unused).toEqual([]);
});

test("S3: every transition is used; removal from any state is a guard", () => {
  const used = new Set(outcomes.flatMap(({ seen }) => [...seen.pairs]));
  const unused = KEEPER_TRANSITIONS.filter(([, to]) => to !== "dropped")
    .filter(([from, to, action]) => !used.has(`${from} ${to} ${action}`))
    .map(([from, to]) => `${from} ${to}`);
  expect(unused).toEqual([]);
});
