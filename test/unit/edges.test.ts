/**
 * Every goal is reachable: whatever state a node can be in when it hears of a goal that the rules can
 * assign, its keeper has a transition for the two. A closure over both tables, as data: all that can
 * become of one node, with everything that the other nodes do left open.
 */
import { expect, test } from "bun:test";
import {
  decide,
  GROUP_RULES,
  type GroupRule,
  KEEPER_TRANSITIONS,
  type NodeState,
  PROMISED,
  SELF_ASSIGNED,
  STATE_TRAITS,
  transitionFor,
} from "../../lib/fsm.ts";

/**
 * A node as its keeper and the monitor know it. A goal is heard only with the answer to a report, one
 * report at a time, and either can be lost.
 */
type Life = {
  /** The keeper's own state, and the goal that it has heard of last. */
  readonly state: NodeState;
  readonly heard: NodeState;
  readonly reported: NodeState;
  readonly goal: NodeState;
  /** A report under way, with the state of the moment at which it was sent. */
  readonly sent: NodeState | undefined;
  /** One that the keeper no longer waits for, and that may arrive yet. */
  readonly late: NodeState | undefined;
  readonly answer: NodeState | undefined;
  /** Whether it was sent, or answered, when the goal was the one that it is now. */
  readonly knows: boolean;
  readonly sentKnows: boolean;
  readonly lateKnows: boolean;
  readonly answerKnows: boolean;
  /** It has stopped itself, and has not heard from the monitor since. */
  readonly fenced: boolean;
};

const BEGIN: Life = {
  state: "init",
  heard: "init",
  reported: "init",
  goal: "init",
  sent: undefined,
  late: undefined,
  answer: undefined,
  knows: true,
  sentKnows: false,
  lateKnows: false,
  answerKnows: false,
  fenced: false,
};
/** No report that is under way, nor any answer, knows of a goal that is assigned now. */
const UNHEARD = { knows: false, sentKnows: false, lateKnows: false, answerKnows: false };

/** Each rule as what it does to one node: to the one that it's about, and to that one's primary. */
const ROWS: readonly GroupRule[] = GROUP_RULES.flatMap(({ id, self, primary, goals, why }) => {
  const rowOf = (name: string, matched: typeof self, goal: NodeState | undefined): GroupRule => ({
    id: `${id} ${name}`,
    self: matched,
    when: [],
    goals: goal ? { self: goal } : {},
    why,
  });
  const about = rowOf("self", self, goals.self);
  return primary ? [about, rowOf("primary", primary, goals.primary)] : [about];
});

function goalsOf({ reported, goal }: Life): [by: string, goal: NodeState][] {
  const subject = {
    self: { nodeId: 1, reported, goal },
    primary: undefined,
    facts: new Set<never>(),
  };
  const ruled = ROWS.flatMap((row): [string, NodeState][] => {
    const next = decide([subject], [row])?.goals.get(1);
    return next === undefined ? [] : [[row.id, next]];
  });
  return goal === "dropped" ? ruled : [...ruled, ["remove_node", "dropped"]];
}

/** @yields what happens, and what becomes of the node */
function* eventsOf(life: Life): Generator<[event: string, change: Partial<Life>]> {
  const { state, heard, reported, goal, sent, late, answer } = life;
  for (const [id, next] of goalsOf(life)) yield [`${id} → ${next}`, { goal: next, ...UNHEARD }];

  if (sent === undefined && answer === undefined)
    yield ["report", { sent: state, sentKnows: life.knows }];
  if (sent !== undefined) {
    // Assumed: the monitor takes a state only from a node that knew its goal when it sent the report.
    // One that did not may act on an older goal, and be elsewhere by now.
    yield [
      "recorded",
      {
        reported: life.sentKnows ? sent : reported,
        sent: undefined,
        late: undefined,
        answer: goal,
        answerKnows: true,
      },
    ];
    yield ["given up", { sent: undefined, late: sent, lateKnows: life.sentKnows }];
  }
  if (late !== undefined)
    yield ["recorded late", { reported: life.lateKnows ? late : reported, late: undefined }];
  if (answer !== undefined) {
    yield [
      "answered",
      { heard: answer, answer: undefined, knows: life.answerKnows, fenced: false },
    ];
    yield ["answer lost", { answer: undefined }];
  }

  const isStop = STATE_TRAITS[heard].postgres === "down";
  const row = isStop || !life.fenced ? transitionFor(state, heard) : undefined;
  if (row) yield ["done", { state: heard }];
  // A promise is taken back durably before it's broken, whatever becomes of the rest.
  if (row?.[2] === "rejoin" && PROMISED.includes(state)) yield ["cut off", { state: "catchingup" }];
  for (const [from, to] of SELF_ASSIGNED)
    if (from === state) yield ["fence", { state: to, fenced: true }];
}

/** Every life that a node can have, and the way there. */
function allLives(): Map<string, { life: Life; event: string; from: string | undefined }> {
  const keyOf = (life: Life): string => Object.values(life).join(" ");
  const lives = new Map([
    [keyOf(BEGIN), { life: BEGIN, event: "", from: undefined as string | undefined }],
  ]);
  // A Map's iteration takes in what is added on the way: breadth first.
  for (const [key, { life }] of lives) {
    for (const [event, change] of eventsOf(life)) {
      const next = { ...life, ...change };
      const nextKey = keyOf(next);
      if (!lives.has(nextKey)) lives.set(nextKey, { life: next, event, from: key });
    }
  }
  return lives;
}

const LIVES = allLives();

/** For people: the events that lead to a life. */
function wayTo(key: string): string {
  const events: string[] = [];
  for (let at: string | undefined = key; at !== undefined; at = LIVES.get(at)?.from)
    events.unshift(LIVES.get(at)?.event ?? "");
  return events.join(", ");
}

/** All pairs that a keeper can have to do with, each with the first way there. */
function allPairs(): Map<string, string> {
  const pairs = new Map<string, string>();
  for (const [key, { life }] of LIVES) {
    for (const pair of [
      `${life.state} ${life.heard}`,
      `${life.state} ${life.goal}`,
      `${life.reported} ${life.goal}`,
    ]) {
      if (!pairs.has(pair)) pairs.set(pair, key);
    }
  }
  return pairs;
}

const PAIRS = allPairs();

test("each pair of state and goal that can come about has a transition", () => {
  const missing = [...PAIRS].filter(([pair]) => {
    const [from, to] = pair.split(" ") as [NodeState, NodeState];
    return from !== to && transitionFor(from, to) === undefined;
  });
  expect(missing.map(([pair, key]) => `${pair}: ${wayTo(key)}`)).toEqual([]);
});

test("each rule can come to hold, by what it matches", () => {
  const pairs = new Map(
    [...LIVES.values()].map(({ life }) => [`${life.reported} ${life.goal}`, life] as const),
  );
  const holds = (row: GroupRule): boolean =>
    [...pairs.values()].some((life) => {
      const self = { nodeId: 1, reported: life.reported, goal: life.goal };
      const subject = { self, primary: undefined, facts: new Set<never>() };
      return decide([subject], [{ ...row, forget: true }]) !== undefined;
    });
  expect(ROWS.filter((row) => !holds(row)).map(({ id }) => id)).toEqual([]);
});

/** States that no rule assigns yet. */
const UNUSED: readonly NodeState[] = ["prepare_maintenance", "wait_maintenance", "maintenance"];

test("each transition is of use: its pair can come about", () => {
  const useless = KEEPER_TRANSITIONS.filter(
    ([from, to]) => !UNUSED.includes(from) && !PAIRS.has(`${from} ${to}`),
  );
  expect(useless.map(([from, to]) => `${from} ${to}`)).toEqual([]);
});
