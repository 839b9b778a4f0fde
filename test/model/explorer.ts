/**
 * Breadth first through every world that the events lead to, so that the first way found to a
 * violation is a shortest one. Every world is also healed, and must come to rest (S4).
 */
import { canHappen, EVENT_NAMES, type Event, type EventName, happen, kindOf } from "./events.ts";
import { checkAtRest, isAtRest, isBlocked } from "./invariants.ts";
import type { Context, Coverage } from "./keeper.ts";
import { keyOf } from "./key.ts";
import { LAWS, type Laws } from "./laws.ts";
import { attempt, heal, newCoverage, oneRound, TICK_EVERY } from "./walk.ts";
import { clone, describe, Violation, type World } from "./world.ts";

export type Exploration = {
  readonly states: number;
  /** Every world within the bounds was seen. */
  readonly complete: boolean;
  readonly seen: Coverage;
  /** What is broken, and a shortest way there; undefined when nothing is. */
  readonly broken: string | undefined;
  readonly events: readonly Event[];
};

/** 64 bits of each key are kept: two of a million worlds are taken for one once in ten million searches. */
const hashOf = (w: World): bigint => BigInt(Bun.hash(keyOf(w)));

const ROUNDS_MAX = 60;

function argumentsOf(name: EventName, nodes: number): number[][] {
  return kindOf(name).args.reduce<number[][]>(
    (lists, arg) => {
      const values =
        typeof arg === "object"
          ? arg
          : Array.from({ length: nodes + 1 }, (_, id) => id).slice(arg === "node" ? 1 : 0);
      return lists.flatMap((list) => values.map((value) => [...list, value]));
    },
    [[]],
  );
}

/** @param without kinds of events that are left out */
export function everyEvent(nodes: number, without: readonly EventName[]): Event[] {
  return EVENT_NAMES.filter((name) => !without.includes(name)).flatMap((name) =>
    argumentsOf(name, nodes).map((args) => [name, ...args] as unknown as Event),
  );
}

const isWithinBounds = (w: World, [name]: Event): boolean => {
  const { of } = kindOf(name);
  if (of === "fault") return w.faultsLeft > 0;
  if (of === "client") return w.commitsLeft > 0;
  return of !== "operator" || w.operationsLeft > 0;
};

/** Heals a copy until the group rests, or says why it doesn't; worlds on the way are known to do so too. */
function bringToRest(from: World, context: Context, known: Set<bigint>): void {
  const w = clone(from);
  heal(w, 0, context);
  for (const { row } of w.nodes) if (row) row.maintenance = false;
  const way: bigint[] = [];
  for (let round = 0; ; round += 1) {
    const hash = hashOf(w);
    if (known.has(hash)) break;
    const isCycle = way.includes(hash);
    way.push(hash);
    if (isAtRest(w)) {
      checkAtRest(w);
      break;
    }
    if (isCycle || round === ROUNDS_MAX) {
      if (isBlocked(w, context.laws)) break;
      throw new Violation(
        `S4: the group doesn't come to rest, and doesn't say why\n${describe(w)}`,
      );
    }
    for (let part = 0; part < TICK_EVERY; part += 1) oneRound(w, 0, context);
    attempt(w, ["tick"], context);
  }
  for (const hash of way) known.add(hash);
}

export function explore(
  root: World,
  laws: Laws = LAWS,
  options: {
    /** Worlds seen at most, nearest first. */
    readonly statesMax?: number;
    readonly without?: readonly EventName[];
    readonly settles?: boolean;
  } = {},
): Exploration {
  const { statesMax = 10_000_000, without = [], settles = true } = options;
  const seen = newCoverage();
  const context = { laws, seen };
  const events = everyEvent(root.nodes.length, without);
  const visited = new Set([hashOf(root)]);
  const atRest = new Set<bigint>();
  const parents: number[] = [-1];
  const cameBy: number[] = [-1];
  let queue: (readonly [index: number, world: World])[] = [[0, root]];

  const fail = (index: number, last: Event | undefined, { message }: Violation): Exploration => {
    const way: Event[] = last ? [last] : [];
    for (let at = index; at > 0; at = parents[at] ?? 0)
      way.unshift(events[cameBy[at] ?? 0] as Event);
    return { states: visited.size, complete: false, seen, broken: message, events: way };
  };

  while (queue.length > 0) {
    const next: (readonly [number, World])[] = [];
    for (const [index, world] of queue) {
      try {
        if (settles) bringToRest(world, context, atRest);
      } catch (error) {
        if (error instanceof Violation) return fail(index, undefined, error);
        throw error;
      }
      for (const [at, event] of events.entries()) {
        if (!isWithinBounds(world, event)) continue;
        let reached: World;
        try {
          if (!canHappen(world, event, laws)) continue;
          reached = clone(world);
          happen(reached, event, context);
        } catch (error) {
          if (error instanceof Violation) return fail(index, event, error);
          throw error;
        }
        const hash = hashOf(reached);
        if (visited.has(hash)) continue;
        if (visited.size >= statesMax) {
          return { states: visited.size, complete: false, seen, broken: undefined, events: [] };
        }
        visited.add(hash);
        next.push([parents.length, reached]);
        parents.push(index);
        cameBy.push(at);
      }
    }
    queue = next;
  }
  return { states: visited.size, complete: true, seen, broken: undefined, events: [] };
}
