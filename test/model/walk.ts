/**
 * Seeded random walks: a safety phase in which anything happens, then a healing phase in which all
 * faults end, first but for one node, and the group must come to rest or say why it doesn't.
 */

import { canTakeWrites } from "../../lib/fsm.ts";
import type { Settings } from "../../lib/group/view.ts";
import { canHappen, type Event, type EventName, happen, kindOf } from "./events.ts";
import { checkAtRest, isAtRest, isBlocked } from "./invariants.ts";
import type { Context, Coverage } from "./keeper.ts";
import { LAWS, type Laws } from "./laws.ts";
import { type Random, randomOf } from "./random.ts";
import {
  AGE_MAX,
  describe,
  emptyWorld,
  isWritable,
  nodeOf,
  Violation,
  type World,
} from "./world.ts";

/** What a run starts with; the rest follows from the events. */
export type Setup = {
  readonly nodes: number;
  /** How many of them have registered before it begins. */
  readonly members: number;
};

/** A run that can be done again: the events, then healing, without this node at first (0: with all). */
export type Run = {
  readonly setup: Setup;
  readonly events: readonly Event[];
  readonly missing: number;
};

export type Failure = { readonly run: Run; readonly message: string; readonly world: World };

export const newCoverage = (): Coverage => ({ rules: new Set(), transitions: new Set() });

// ---------------------------------------------------------------- healing

/** Longer than any way to rest that was seen, by far. */
const ROUNDS_MAX = 150;
export const TICK_EVERY = 3;

export const attempt = (w: World, event: Event, context: Context): boolean => {
  if (!canHappen(w, event, context.laws)) return false;
  happen(w, event, context);
  return true;
};

/** A standby that hangs by itself goes on hanging. @param missing this node stays away; 0: nobody */
export function heal(w: World, missing: number, { laws }: Context): void {
  w.cuts.fill(0);
  if (!w.monitorUp) w.watched = 0;
  w.monitorUp = true;
  for (const n of w.nodes) {
    n.late = undefined;
    if (n.id === missing) {
      n.on = false;
      n.keeper = undefined;
      n.pg.run = "down";
      n.pg.feed = undefined;
      for (const { pg } of w.nodes) if (pg.from === n.id) pg.feed = undefined;
      continue;
    }
    n.on = true;
    n.pg.nextStart = "usual";
    if (n.pg.primary && n.pg.run === "hung") n.pg.run = "up";
    for (const name of ["thaw", "startKeeper"] as const) {
      if (canHappen(w, [name, n.id], laws))
        kindOf(name).happen(w, n, 0, { laws, seen: newCoverage() });
    }
  }
}

export const OF_A_ROUND: readonly EventName[] = [
  "started",
  "hear",
  "report",
  "turn",
  "stream",
  "reread",
  "takeNames",
  "turn",
];

/** Everything that the product does of itself, once, in a fixed order. @returns how many events that were */
export function oneRound(w: World, missing: number, context: Context): number {
  let steps = 0;
  for (const { id } of w.nodes) {
    if (id === missing) continue;
    for (const name of OF_A_ROUND) {
      if (attempt(w, [name, id], context)) steps += 1;
    }
    attempt(w, ["decide"], context);
  }
  return steps;
}

/** @returns whether the group came to rest, and what it took */
function settle(w: World, missing: number, context: Context): { done: boolean; steps: number } {
  let steps = 0;
  for (let round = 1; round <= ROUNDS_MAX; round += 1) {
    steps += oneRound(w, missing, context);
    if (missing === 0 && isAtRest(w)) return { done: true, steps };
    if (round % TICK_EVERY === 0) attempt(w, ["tick"], context);
  }
  return { done: missing > 0 && isServing(w), steps };
}

/** Without one of its nodes a group takes writes on another; under `protection` they may have to wait for it. */
const isServing = (w: World): boolean =>
  w.nodes.some(
    (n) =>
      n.row !== undefined &&
      (canTakeWrites(n.disk.state) || n.keeper?.task?.action === "resume") &&
      isWritable(n) &&
      (n.row.goal === n.disk.state || w.group.settings.durability === "protection"),
  );

/** Faults end: the group comes to rest, or says what is in the way. @throws {Violation} */
export function converge(w: World, missing: number, context: Context): number {
  let steps = 0;
  for (const away of missing > 0 ? [missing, 0] : [0]) {
    heal(w, away, context);
    const way = settle(w, away, context);
    steps += way.steps;
    if (way.done) continue;
    if (isBlocked(w, context.laws)) continue;
    if (w.nodes.some(({ row }) => row?.maintenance)) continue;
    if (away > 0 && w.nodes.every(({ id, row }) => id === away || !row)) continue;
    throw new Violation(
      `S4: the group doesn't come to rest${away > 0 ? ` without node ${away}` : ""}, and doesn't say why`,
    );
  }
  // an operator clears what only an operator can
  if (!isAtRest(w)) {
    for (const { row } of w.nodes)
      if (row) Object.assign(row, { priority: 50, maintenance: false });
    const way = settle(w, 0, context);
    steps += way.steps;
    if (!way.done && !isBlocked(w, context.laws)) {
      throw new Violation("S4: the group doesn't come to rest, and doesn't say why");
    }
  }
  checkAtRest(w);
  return steps;
}

// ---------------------------------------------------------------- a settled group to begin with

/** A group whose nodes have registered one after the other with nothing going wrong. */
export function settledGroup(
  { nodes, members }: Setup,
  context: Context,
  settings: Partial<Settings> = {},
): World {
  const w = emptyWorld(nodes, settings);
  for (let id = 1; id <= members; id += 1) {
    attempt(w, ["register", id], context);
    if (!settle(w, 0, context).done) {
      throw new Violation(`S4: node ${id} doesn't become part of the group\n${describe(w)}`);
    }
  }
  w.watched = AGE_MAX;
  return w;
}

// ---------------------------------------------------------------- walking

type Weights = readonly (readonly [name: EventName, weight: number])[];

const ORDINARY: Weights = [
  ["turn", 30],
  ["report", 20],
  ["decide", 12],
  ["stream", 14],
  ["takeNames", 8],
  ["reread", 8],
  ["tick", 9],
  ["started", 4],
  ["hear", 3],
  ["lateReport", 1],
];

/** How likely each fault is among the others, and how soon what recovers from it comes. */
const FAULTS: Weights = [
  ["killServer", 8],
  ["killKeeper", 4],
  ["powerOff", 4],
  ["freeze", 3],
  ["freezeKeeper", 2],
  ["hangServer", 3],
  ["slowStart", 2],
  ["failStart", 2],
  ["loseAnswer", 2],
  ["delayAnswer", 2],
  ["delayReport", 2],
  ["doubleReport", 1],
  ["cut", 4],
  ["sever", 5],
  ["isolate", 5],
  ["stopMonitor", 2],
];
const RECOVERIES: Weights = [
  ["startKeeper", 10],
  ["thaw", 6],
  ["thawServer", 3],
  ["giveUp", 1],
  ["mend", 4],
  ["mendAll", 6],
  ["startMonitor", 6],
];
const OPERATORS: Weights = [
  ["failover", 8],
  ["switchover", 8],
  ["startMaintenance", 4],
  ["stopMaintenance", 4],
  ["stopByHand", 1],
  ["priority", 3],
  ["quorum", 3],
  ["numberSync", 3],
  ["durability", 3],
  ["strictFencing", 1],
  ["drop", 1],
  ["forceDrop", 1],
  ["register", 6],
  ["promoteByHand", 1],
  ["writeByHand", 1],
];

function pick(weights: Weights, random: Random): EventName {
  let at = random.below(weights.reduce((sum, [, weight]) => sum + weight, 0));
  for (const [name, weight] of weights) {
    at -= weight;
    if (at < 0) return name;
  }
  return "decide";
}

function withArguments(name: EventName, nodes: number, random: Random): Event {
  const values = kindOf(name).args.map((arg) =>
    arg === "node"
      ? 1 + random.below(nodes)
      : arg === "host"
        ? random.below(nodes + 1)
        : (arg[random.below(arg.length)] ?? 0),
  );
  return [name, ...values] as unknown as Event;
}

/** One walk is calm or stormy, with operators at work or not: most defects need a certain weather. */
function weatherOf(random: Random): { readonly next: () => EventName } {
  const faults = [0.004, 0.015, 0.04][random.below(3)] ?? 0;
  const recoveries = [0.02, 0.06][random.below(2)] ?? 0;
  const operators = [0, 0.004, 0.02][random.below(3)] ?? 0;
  const commits = [0.02, 0.08][random.below(2)] ?? 0;
  const byHand = random.chance(0.1);
  const allowed = FAULTS.filter(() => random.chance(0.6));
  const kinds = allowed.length > 0 ? allowed : FAULTS;
  const duties = OPERATORS.filter(
    ([name]) => (byHand || !name.endsWith("ByHand")) && random.chance(0.6),
  );
  return {
    next: () => {
      if (random.chance(faults)) return pick(kinds, random);
      if (random.chance(recoveries)) return pick(RECOVERIES, random);
      if (duties.length > 0 && random.chance(operators)) return pick(duties, random);
      if (random.chance(commits)) return "commit";
      return pick(ORDINARY, random);
    },
  };
}

export type Walk = {
  /** Random events, and those of the healing. */
  readonly steps: number;
  readonly healing: number;
  readonly failure: Failure | undefined;
};

export const STEPS_A_WALK = 300;

/** @param steps of the safety phase */
export function walk(
  seed: number,
  { nodes, steps = STEPS_A_WALK }: { readonly nodes: number; readonly steps?: number },
  laws: Laws = LAWS,
  seen: Coverage = newCoverage(),
): Walk {
  const random = randomOf(seed);
  const context = { laws, seen };
  const setup = { nodes, members: Math.max(2, nodes - random.below(2)) };
  const missing = random.chance(0.5) ? 0 : 1 + random.below(nodes);
  const events: Event[] = [];
  let world = emptyWorld(nodes);
  let count = 0;
  try {
    world = settledGroup(setup, context);
    const weather = weatherOf(random);
    for (let idle = 0; count < steps && idle < 50 * steps; idle += 1) {
      const event = withArguments(weather.next(), nodes, random);
      if (event[0] !== "decide" && event[0] !== "tick" && event[1] !== undefined) {
        if (
          kindOf(event[0]).args[0] === "node" &&
          !nodeOf(world, event[1]).known &&
          event[0] !== "register"
        )
          continue;
      }
      events.push(event); // also when looking whether it can happen shows what is broken
      if (!canHappen(world, event, laws)) {
        events.pop();
        continue;
      }
      happen(world, event, context);
      count += 1;
    }
    const healing = converge(world, missing, context);
    return { steps: count, healing, failure: undefined };
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    const run = { setup, events, missing };
    return { steps: count, healing: 0, failure: { run, message: error.message, world } };
  }
}

// ---------------------------------------------------------------- doing it again

/** Does a run again; events that can't happen (any more) are left out. @returns what is broken */
export function replay(
  run: Run,
  laws: Laws = LAWS,
  tell?: (event: Event, world: World) => void,
  seen: Coverage = newCoverage(),
): Failure | undefined {
  const context = { laws, seen };
  const events: Event[] = [];
  let world = emptyWorld(run.setup.nodes);
  try {
    world = settledGroup(run.setup, context);
    for (const event of run.events) {
      events.push(event);
      if (canHappen(world, event, laws)) {
        happen(world, event, context);
        tell?.(event, world);
      } else events.pop();
    }
    converge(world, run.missing, context);
    return undefined;
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    return { run: { ...run, events }, message: error.message, world };
  }
}

const kindOfFailure = (message: string): string => message.slice(0, 2);

/** The same violation with as few events as can be: pieces are left out, from large to single ones. */
export function shrink(failure: Failure, laws: Laws = LAWS, budgetMs = 20_000): Failure {
  let best = failure;
  const until = Date.now() + budgetMs;
  const tryWith = (run: Run): boolean => {
    const again = replay(run, laws);
    if (!again || kindOfFailure(again.message) !== kindOfFailure(best.message)) return false;
    best = again;
    return true;
  };
  tryWith(best.run);
  for (let changed = true; changed && Date.now() < until; ) {
    changed = false;
    if (best.run.missing > 0 && tryWith({ ...best.run, missing: 0 })) changed = true;
    for (let size = best.run.events.length >> 1; size >= 1; size >>= 1) {
      for (let at = best.run.events.length - size; at >= 0 && Date.now() < until; at -= size) {
        const events = [...best.run.events.slice(0, at), ...best.run.events.slice(at + size)];
        if (tryWith({ ...best.run, events })) changed = true;
      }
    }
  }
  return best;
}
