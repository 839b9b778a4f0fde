/**
 * Breadth first through every world that the events lead to, so that the first trace found is a
 * shortest one. Every world is also brought to rest: faults healed, no new ones (S4).
 */
import { decideEvent, type Event, eventsOf, healed, ordinaryEvents, tickEvent } from "./events.ts";
import {
  type Coverage,
  canAcknowledge,
  check,
  clone,
  describe,
  keyOf,
  LAWS,
  type Laws,
  nodeOf,
  Violation,
  type World,
} from "./world.ts";

export type Outcome = {
  readonly states: number;
  /** Every world within the bounds was seen. */
  readonly complete: boolean;
  readonly seen: Coverage;
  /** What is broken, and a shortest way there; undefined when nothing is. */
  readonly broken: string | undefined;
};

/** Longer than any way to rest that was seen, by far. */
const ROUNDS_MAX = 60;

/**
 * @param options statesMax: worlds explored at most, nearest first; settles: whether S4 is checked
 */
export function explore(
  root: World,
  laws: Laws = LAWS,
  { statesMax = 5_000_000, settles = true } = {},
): Outcome {
  const seen: Coverage = { rules: new Set(), pairs: new Set() };
  const visited = new Set([keyOf(root)]);
  const cameFrom: (readonly [parent: number, event: string])[] = [[-1, ""]];
  const atRest = new Set<string>();
  let queue: (readonly [index: number, world: World])[] = [[0, root]];

  const fail = (index: number, last: string, error: Violation): Outcome => {
    const names: string[] = [last];
    for (let at = index; at > 0; at = cameFrom[at]?.[0] ?? 0)
      names.unshift(cameFrom[at]?.[1] ?? "");
    const trace = replay(root, names, laws, seen);
    return {
      states: visited.size,
      complete: false,
      seen,
      broken: [error.message, ...trace].join("\n"),
    };
  };

  while (queue.length > 0) {
    const next: (readonly [number, World])[] = [];
    for (const [index, world] of queue) {
      if (settles) {
        try {
          bringToRest(world, laws, seen, atRest);
        } catch (error) {
          if (error instanceof Violation) return fail(index, "(all faults end)", error);
          throw error;
        }
      }
      for (const event of eventsOf(world, laws, seen)) {
        let reached: World;
        try {
          reached = after(world, event);
        } catch (error) {
          if (error instanceof Violation) return fail(index, event[0], error);
          throw error;
        }
        const key = keyOf(reached);
        if (visited.has(key)) continue;
        if (visited.size >= statesMax) {
          return { states: visited.size, complete: false, seen, broken: undefined };
        }
        visited.add(key);
        next.push([cameFrom.length, reached]);
        cameFrom.push([index, event[0]]);
      }
    }
    queue = next;
  }
  return { states: visited.size, complete: true, seen, broken: undefined };
}

/** The group that comes of nodes registering with nothing going wrong. */
export function settledGroup(from: World): World {
  const seen: Coverage = { rules: new Set(), pairs: new Set() };
  let world = clone(from);
  for (const { id } of world.nodes) {
    for (const event of eventsOf(world, LAWS, seen)) {
      if (event[0] === `node ${id} registers`) world = after(world, event);
    }
    // more rounds than it needs, so that nothing is left to do
    for (let round = 0; round < ROUNDS_MAX / 2; round += 1) world = oneRound(world, LAWS, seen);
  }
  return world;
}

/** Applies events in a fixed order until the group rests; worlds on the way are known to do so too. */
function bringToRest(from: World, laws: Laws, seen: Coverage, atRest: Set<string>): void {
  let world = healed(from);
  const way: string[] = [];
  for (let round = 0; round < ROUNDS_MAX; round += 1) {
    const key = keyOf(world);
    if (atRest.has(key)) break;
    way.push(key);
    if (rests(world)) break;
    if (round === ROUNDS_MAX - 1) {
      throw new Violation(`S4: the group doesn't come to rest\n  ${describe(world)}`);
    }
    world = oneRound(world, laws, seen);
  }
  for (const key of way) atRest.add(key);
}

/** @throws {Violation} the world that comes of it must not be */
function after(world: World, [, touches, happen]: Event): World {
  const next = clone(world, touches);
  happen(next);
  check(next);
  return next;
}

function oneRound(from: World, laws: Laws, seen: Coverage): World {
  let world = from;
  for (const { id } of from.nodes) {
    for (const event of ordinaryEvents(world, nodeOf(world, id), laws, seen)) {
      if (nodeOf(world, id).keeper) world = after(world, event);
    }
    world = after(world, decideEvent(laws, seen));
  }
  return keyOf(world) === keyOf(from) ? after(world, tickEvent) : world;
}

/** One node that takes writes, and the other, if the group has one, beside it with all of its WAL. */
function rests(w: World): boolean {
  const members = w.nodes.filter((n) => n.row !== undefined);
  if (members.some(({ row, disk }) => row?.reported !== row?.goal || disk.state !== row?.goal))
    return false;
  const states = members.map(({ row }) => row?.goal).toSorted();
  const primary = members.find((n) => canAcknowledge(w, n));
  const complete = members.every((n) => n.pg.wal === primary?.pg.wal);
  const expected = [[], ["single"], ["primary", "secondary"]][members.length] ?? [];
  return states.join() === expected.join() && (members.length === 0 || complete);
}

function replay(root: World, names: readonly string[], laws: Laws, seen: Coverage): string[] {
  let world = root;
  return names.map((name) => {
    const event = eventsOf(world, laws, seen).find(([called]) => called === name);
    const next = clone(world);
    try {
      event?.[2](next);
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
    }
    world = next;
    return `${name}\n    ${describe(world)}`;
  });
}

/** What becomes of a world by these events, each named as `eventsOf` names it. */
export function played(from: World, names: readonly string[]): World {
  const seen: Coverage = { rules: new Set(), pairs: new Set() };
  return names.reduce((world, name) => {
    const event = eventsOf(world, LAWS, seen).find(([called]) => called === name);
    if (event === undefined) throw new Error(`"${name}" can't happen in: ${describe(world)}`);
    return after(world, event);
  }, from);
}
