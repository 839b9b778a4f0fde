/** The searches that go through every world of one and two nodes, and their bounds. */
import { EVENT_NAMES, type EventName, kindOf } from "./events.ts";
import { type Exploration, explore } from "./explorer.ts";
import { LAWS, type Laws } from "./laws.ts";
import { newCoverage, settledGroup } from "./walk.ts";
import { type Bounds, emptyWorld, type World } from "./world.ts";

/** A group that is at rest and has the rest of these happen to it. */
function settledPair(
  bounds: Partial<Bounds>,
  settings: Partial<World["group"]["settings"]> = {},
): World {
  const context = { laws: LAWS, seen: newCoverage() };
  return Object.assign(settledGroup({ nodes: 2, members: 2 }, context, settings), {
    coarse: true,
    ...bounds,
  });
}

const PLANNED: readonly EventName[] = [
  "switchover",
  "startMaintenance",
  "stopMaintenance",
  "stopByHand",
];
const OF_OPERATORS: readonly EventName[] = [
  ...PLANNED,
  "strictFencing",
  "priority",
  "numberSync",
  "durability",
  "quorum",
  "writeByHand",
];

/** All that operators do but this. */
const onlyOperators = (...names: EventName[]): EventName[] =>
  EVENT_NAMES.filter((name) => kindOf(name).of === "operator" && !names.includes(name));

const faultsBut = (...names: EventName[]): EventName[] =>
  EVENT_NAMES.filter((name) => kindOf(name).of === "fault" && !names.includes(name));

export type Search = {
  readonly name: string;
  readonly root: () => World;
  readonly without: readonly EventName[];
  /** Only for S1 to S3; the others show that their worlds heal, too. */
  readonly isLong?: true;
  /** Takes minutes: not for every change. */
  readonly isLongest?: true;
};

/**
 * In all of them names are taken over, WAL is received, and links come back, at once; recoveries are not
 * bounded.
 */
export const SEARCHES: readonly Search[] = [
  {
    name: "a settled pair: one fault at any moment",
    root: () => settledPair({ faultsLeft: 1 }),
    without: OF_OPERATORS,
  },
  {
    name: "a settled pair: one act of an operator at any moment",
    root: () => settledPair({ operationsLeft: 1 }),
    without: PLANNED,
  },
  {
    name: "a settled pair: a switchover at any moment",
    root: () => settledPair({ operationsLeft: 1 }),
    without: onlyOperators("switchover"),
    isLong: true,
    isLongest: true,
  },
  {
    name: "a settled pair: a node goes into maintenance at any moment, and comes back",
    root: () => settledPair({ operationsLeft: 1 }),
    without: onlyOperators("startMaintenance"),
    isLong: true,
    isLongest: true,
  },
  {
    name: "a settled pair that is asynchronous by choice: one fault at any moment",
    root: () => settledPair({ faultsLeft: 1 }, { durability: "performance" }),
    without: [
      ...OF_OPERATORS,
      ...faultsBut("killServer", "killKeeper", "powerOff", "hangServer", "isolate"),
    ],
  },
  {
    name: "a settled pair: one commit at any moment, and a failover",
    root: () => settledPair({ commitsLeft: 1, operationsLeft: 1 }),
    without: [...OF_OPERATORS, "promoteByHand", "drop", "forceDrop"],
    isLong: true,
  },
  {
    name: "a settled pair: one commit, and the primary's server or its links fail at any moment",
    root: () => settledPair({ commitsLeft: 1, faultsLeft: 1 }),
    without: [...OF_OPERATORS, ...faultsBut("killServer", "isolate")],
    isLong: true,
    isLongest: true,
  },
  {
    name: "two nodes become a group, and one is dropped at any moment",
    root: () => emptyWorld(2, {}, { coarse: true, operationsLeft: 3 }),
    without: [...OF_OPERATORS, "failover", "promoteByHand"],
  },
  {
    name: "a node alone: made, broken and dropped at any moment",
    root: () =>
      emptyWorld(1, {}, { coarse: true, faultsLeft: 1, commitsLeft: 1, operationsLeft: 2 }),
    without: OF_OPERATORS,
  },
];

export const search = ({ root, without, isLong }: Search, laws: Laws = LAWS): Exploration =>
  explore(root(), laws, { without: [...without, "mend"], settles: !isLong });
