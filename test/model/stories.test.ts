/** Stories of which not only the properties matter, but also how they end. */
import { expect, test } from "bun:test";
import { canTakeWrites, type NodeState } from "../../lib/fsm.ts";
import type { Durability } from "../../lib/group/view.ts";
import type { Event } from "./events.ts";
import { isAtRest, isBlocked } from "./invariants.ts";
import { LAWS } from "./laws.ts";
import { attempt, newCoverage, oneRound, settledGroup } from "./walk.ts";
import { isWritable, nodeOf, type World } from "./world.ts";

/** A healthy group, whose first node is the primary, and what can be done to it; each step checks S1 and S2. */
function group(nodes: number, durability: Durability = "availability") {
  const context = { laws: LAWS, seen: newCoverage() };
  const w = settledGroup({ nodes, members: nodes }, context, { durability });
  pass();
  return { w, mayHappen, does, rounds, pass };

  function mayHappen(event: Event): boolean {
    return attempt(w, event, context);
  }

  function does(...events: Event[]): void {
    expect(events.filter((event) => !mayHappen(event))).toEqual([]);
  }

  /** What nodes and monitor do of themselves. */
  function rounds(count: number): void {
    for (let round = 0; round < count; round += 1) oneRound(w, 0, context);
  }

  /** Longer than every timer. */
  function pass(): void {
    for (let round = 0; round < 30; round += 1) {
      rounds(1);
      mayHappen(["tick"]);
    }
  }
}

const states = (w: World): (NodeState | undefined)[] => w.nodes.map(({ row }) => row?.reported);
const writable = (w: World): number[] => w.nodes.filter(isWritable).map(({ id }) => id);
const primaryOf = (w: World): number | undefined =>
  w.nodes.find(({ row }) => row && canTakeWrites(row.goal))?.id;

test("a node whose server crashes again and again is replaced once", () => {
  for (const nodes of [2, 3]) {
    const { w, does, mayHappen, rounds, pass } = group(nodes);
    does(["killServer", 1]);
    pass();
    const next = primaryOf(w);
    expect(next).not.toBe(1);
    let crashes = 0;
    for (let time = 0; time < 60; time += 1) {
      // sometimes it has come back by then, sometimes it's about to
      if (mayHappen(["killServer", 1])) crashes += 1;
      rounds(time % 7);
      mayHappen(["tick"]);
      expect(primaryOf(w)).toBe(next);
    }
    expect(crashes).toBeGreaterThan(30);
    pass();
    expect(w.group.history.map(({ timeline }) => timeline)).toEqual([1, 2]);
    expect(isAtRest(w)).toBe(true);
  }
});

test.each([
  ["availability", false],
  ["protection", false],
  ["performance", true],
] as const)(
  "%s: without its monitor a primary loses its standby, which comes back",
  (durability, goesOn) => {
    const { w, does, pass } = group(2, durability);
    does(["sever", 0, 1], ["sever", 0, 2], ["powerOff", 2], ["commit", 1]);
    expect(w.acked === nodeOf(w, 1).pg.wal).toBe(goesOn);
    pass();
    // for all that it knows, the other two are there, and it has been replaced
    expect(writable(w)).toEqual([]);
    does(["startKeeper", 2], ["mendAll"]);
    pass();
    expect(states(w)).toEqual(["primary", "secondary"]);
    does(["commit", 1]);
    pass();
    expect(w.acked).toBe(nodeOf(w, 1).pg.wal);
  },
);

test("a primary that stops itself while it has another goal to reach goes on when it's heard again", () => {
  const { w, does, pass } = group(3);
  does(["quorum", 3, 0], ["decide"]);
  expect(nodeOf(w, 1).row?.goal).toBe("apply_settings");
  does(["isolate", 1], ["tick"], ["turn", 1], ["turn", 1], ["turn", 1]);
  expect(nodeOf(w, 1).disk.state).toBe("demote_timeout");
  expect(nodeOf(w, 1).row?.goal).toBe("apply_settings");
  does(["mendAll"], ["report", 1]);
  pass();
  expect(states(w)).toEqual(["primary", "secondary", "secondary"]);
  expect(w.group.sync.members).toEqual([2]);
  expect(w.group.history).toHaveLength(1);
});

test("a commit that waits when its primary restarts was never acknowledged, and goes when that is replaced", () => {
  const { w, does, pass } = group(2);
  does(["sever", 0, 1], ["sever", 0, 2], ["commit", 1]);
  const { wal } = nodeOf(w, 1).pg;
  expect(w.acked).not.toBe(wal);
  does(["killServer", 1], ["report", 1], ["turn", 1], ["turn", 1]);
  expect(nodeOf(w, 1).pg).toMatchObject({ run: "up", wal });
  expect(w.acked).not.toBe(wal);
  does(["powerOff", 1], ["mendAll"]);
  pass();
  expect(writable(w)).toEqual([2]);
  does(["startKeeper", 1]);
  pass();
  expect(states(w)).toEqual(["secondary", "primary"]);
  expect(nodeOf(w, 1).pg.wal).not.toStartWith(wal);
});

test("the only standby is in maintenance when its primary dies: nobody is promoted, and that is said", () => {
  const { w, does, pass } = group(2);
  does(["startMaintenance", 2]);
  pass();
  expect(states(w)).toEqual(["wait_primary", "maintenance"]);
  does(["commit", 1]);
  expect(w.acked).toBe(nodeOf(w, 1).pg.wal);
  does(["powerOff", 1]);
  pass();
  does(["stopMaintenance", 2]);
  pass();
  expect(writable(w)).toEqual([]);
  expect(isBlocked(w, LAWS)).toBe(true);
  does(["startKeeper", 1]);
  pass();
  expect(states(w)).toEqual(["primary", "secondary"]);
  expect(nodeOf(w, 2).pg.wal).toStartWith(w.acked);
});
