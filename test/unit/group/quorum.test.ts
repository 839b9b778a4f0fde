import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  desiredSet,
  isAsynchronous,
  missingFrom,
  overlaps,
  pendingAfter,
  possibleSets,
  sameMembers,
  synchronousStandbyNames,
} from "../../../lib/group/quorum.ts";
import type { SyncSet } from "../../../lib/group/view.ts";
import { BOTH, type Extra, group, NOBODY, SYNC, setOf } from "./words.ts";

test("synchronous_standby_names", () => {
  expect(synchronousStandbyNames(setOf([], 0))).toBe("");
  expect(synchronousStandbyNames(setOf([2], 0))).toBe("");
  expect(synchronousStandbyNames(setOf([2], 1))).toBe("ANY 1 (pgautofailover_standby_2)");
  expect(synchronousStandbyNames(setOf([2, 30], 2))).toBe(
    "ANY 2 (pgautofailover_standby_2, pgautofailover_standby_30)",
  );
  expect(synchronousStandbyNames(setOf([2, 30], 1))).toBe(
    "ANY 1 (pgautofailover_standby_2, pgautofailover_standby_30)",
  );
  for (const number of [-1, 2]) {
    expect(() => synchronousStandbyNames(setOf([2], number))).toThrow(RangeError);
  }
});

test("isAsynchronous: by the formation's word, or because no node is of the quorum", () => {
  expect(isAsynchronous(group(["1 primary", "2 secondary no-quorum"]))).toBe(false);
  expect(isAsynchronous(group(["1 primary no-quorum", "2 secondary no-quorum"]))).toBe(true);
  const settings = { durability: "performance" } as const;
  expect(isAsynchronous(group(["1 primary", "2 secondary"], { settings }))).toBe(true);
});

describe("possibleSets", () => {
  const of = (extra: Extra): string | undefined =>
    possibleSets(group(["1 primary"], extra))
      ?.map(({ version }) => version)
      .join();

  test("what is in force, and all that was assigned since", () => {
    const [first, second, third] = [setOf([2], 1, 1), setOf([2, 3], 1, 2), setOf([3], 1, 3)];
    expect(of({ sync: third, pending: [], inForce: third })).toBe("3");
    expect(of({ sync: third, pending: [first, second], inForce: first })).toBe("1,2,3");
    expect(of({ sync: third, pending: [first, second], inForce: second })).toBe("2,3");
  });

  test("another primary's sets are none of this one's", () => {
    const before = setOf([2], 1, 2, 3);
    expect(of({ sync: setOf([2], 1, 3), pending: [before], inForce: setOf([3], 1, 1) })).toBe(
      "1,3",
    );
  });

  test("unknown, when nothing, another primary's or a later one is said to be in force", () => {
    expect(of({ inForce: undefined })).toBeUndefined();
    expect(of({ sync: setOf([2], 1, 2, 3), inForce: SYNC })).toBeUndefined();
    expect(of({ sync: SYNC, inForce: setOf([2], 1, 2) })).toBeUndefined();
  });
});

describe("pendingAfter", () => {
  const [first, second, third] = [setOf([2], 1, 1), setOf([2, 3], 1, 2), setOf([3], 1, 3)];

  test("nothing that may be in force is forgotten by the next assignment", () => {
    expect(pendingAfter({ sync: second, pending: [first], inForce: first }, third)).toEqual([
      first,
      second,
    ]);
    expect(pendingAfter({ sync: second, pending: [first], inForce: undefined }, third)).toEqual([
      first,
      second,
    ]);
  });

  test("what was in force before the last report is", () => {
    expect(pendingAfter({ sync: second, pending: [first], inForce: second }, third)).toEqual([
      second,
    ]);
  });

  test("a new primary begins afresh", () => {
    const next = setOf([1], 1, 3, 2);
    expect(pendingAfter({ sync: second, pending: [first], inForce: first }, next)).toEqual([]);
  });

  test("whatever is reported in force in between, every set since stays possible", () => {
    const sizes = fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(sizes, fc.nat(), (members, seed) => {
        const sets = members.map((count, i) => setOf([2, 3, 4].slice(0, count), 0, i + 1));
        const [begin, ...later] = sets as [SyncSet, ...SyncSet[]];
        // the primary reports the version `reported[i]` once set i has been assigned
        let view = { sync: begin, pending: [] as SyncSet[], inForce: begin as SyncSet | undefined };
        for (const [i, next] of later.entries()) {
          view = { ...view, pending: pendingAfter(view, next), sync: next };
          const old = view.inForce?.version ?? 1;
          const version = old + ((seed >> (2 * i)) % (next.version - old + 1));
          view.inForce = sets.find((set) => set.version === version);
        }
        const possible = possibleSets({ ...group(["1 primary"]), ...view }) ?? [];
        const versions = sets.map(({ version }) => version);
        expect(possible.map(({ version }) => version)).toEqual(
          versions.filter((version) => version >= (view.inForce?.version ?? 0)),
        );
      }),
    );
  });
});

describe("overlaps", () => {
  const holds = (sets: readonly SyncSet[], ...ids: number[]): boolean =>
    overlaps(sets, new Set(ids));

  test("one standby: that one; any of two: both; both: either; two of three: any two", () => {
    expect([holds([SYNC], 2), holds([SYNC], 3), holds([SYNC])]).toEqual([true, false, false]);
    expect([holds([BOTH], 2), holds([BOTH], 2, 3)]).toEqual([false, true]);
    expect([holds([setOf([2, 3], 2)], 2), holds([setOf([2, 3], 2)], 3)]).toEqual([true, true]);
    const three = setOf([2, 3, 4], 2);
    expect([holds([three], 2), holds([three], 2, 4), holds([three], 2, 5)]).toEqual([
      false,
      true,
      false,
    ]);
    expect([holds([setOf([2, 3, 4], 1)], 2, 3), holds([setOf([2, 3, 4], 1)], 2, 3, 4)]).toEqual([
      false,
      true,
    ]);
  });

  test("every possible set has to be met", () => {
    expect(holds([SYNC, setOf([3], 1, 2)], 2)).toBe(false);
    expect(holds([SYNC, setOf([3], 1, 2)], 2, 3)).toBe(true);
    expect(holds([BOTH, setOf([2], 1, 2)], 2)).toBe(false);
    expect(holds([setOf([2, 3], 2), setOf([2], 1, 2)], 2)).toBe(true);
  });

  test("nothing is certain of commits that waited for nobody, nor of a set that isn't known", () => {
    expect(holds([NOBODY], 2)).toBe(false);
    expect(holds([SYNC, setOf([], 0, 2)], 2)).toBe(false);
    expect(holds([setOf([2], 0)], 2)).toBe(false);
    expect(overlaps(undefined, new Set([2]))).toBe(false);
  });

  test("in an asynchronous group all who might reply to the primary are needed", () => {
    const members = setOf([2, 3], 0);
    expect(overlaps([members], new Set([2, 3]), true)).toBe(true);
    expect(overlaps([members], new Set([2]), true)).toBe(false);
    expect(overlaps([NOBODY], new Set([2]), true)).toBe(false);
  });
});

const IDS = [2, 3, 4, 5, 6];
const ids = fc.subarray(IDS);
const set = fc
  .tuple(fc.subarray(IDS), fc.nat())
  .map(([members, seed]) => setOf(members, members.length && (seed % members.length) + 1));

/** All subsets, by the bits of a number. */
const powerSet = (of: readonly number[]): number[][] =>
  Array.from({ length: 2 ** of.length }, (_, bits) => of.filter((_id, i) => bits & (1 << i)));

/** Whether PostgreSQL acknowledges a commit that these have flushed. */
const acknowledges = ({ members, number }: SyncSet, flushed: readonly number[]): boolean =>
  members.filter((id) => flushed.includes(id)).length >= number;

describe("the overlap, against every way in which a commit can be acknowledged", () => {
  test("where it holds, every commit was flushed by one of the nodes", () => {
    fc.assert(
      fc.property(fc.array(set, { minLength: 1, maxLength: 3 }), ids, (sets, nodes) => {
        fc.pre(overlaps(sets, new Set(nodes)));
        const lost = powerSet(IDS).filter(
          (flushed) =>
            sets.some((each) => acknowledges(each, flushed)) &&
            !flushed.some((id) => nodes.includes(id)),
        );
        expect(lost).toEqual([]);
      }),
    );
  });

  test("where it doesn't, there is a commit that none of the nodes has", () => {
    fc.assert(
      fc.property(fc.array(set, { minLength: 1, maxLength: 3 }), ids, (sets, nodes) => {
        fc.pre(!overlaps(sets, new Set(nodes)));
        const lost = powerSet(IDS).some(
          (flushed) =>
            sets.some((each) => acknowledges(each, flushed)) &&
            !flushed.some((id) => nodes.includes(id)),
        );
        expect(lost).toBe(true);
      }),
    );
  });

  test("where it holds, the old primary can acknowledge nothing without one of them", () => {
    fc.assert(
      fc.property(set, ids, (each, nodes) => {
        fc.pre(overlaps([each], new Set(nodes)));
        const others = IDS.filter((id) => !nodes.includes(id));
        expect(acknowledges(each, others)).toBe(false);
      }),
    );
  });

  test("more nodes never make it fail, nor fewer sets", () => {
    fc.assert(
      fc.property(fc.array(set, { minLength: 1, maxLength: 3 }), ids, ids, (sets, nodes, more) => {
        fc.pre(overlaps(sets, new Set(nodes)));
        expect(overlaps(sets, new Set([...nodes, ...more]))).toBe(true);
        expect(overlaps(sets.slice(1), new Set(nodes))).toBe(true);
      }),
    );
  });

  test("missingFrom names those that make it hold, and nobody where it does", () => {
    fc.assert(
      fc.property(fc.array(set, { minLength: 1, maxLength: 3 }), ids, (sets, nodes) => {
        fc.pre(sets.every(({ members }) => members.length > 0));
        const missing = missingFrom(sets, new Set(nodes));
        expect(missing.length === 0).toBe(overlaps(sets, new Set(nodes)));
        expect(overlaps(sets, new Set([...nodes, ...missing]))).toBe(true);
      }),
    );
  });
});

describe("desiredSet", () => {
  const of = (texts: readonly string[], extra: Extra = {}): string => {
    const { members, number } = desiredSet(group(texts, extra), 1, ({ goal }) => goal);
    return `${number} of ${members.join()}`;
  };
  const three = ["1 primary", "2 secondary", "3 secondary"];

  test("healthy secondaries of the quorum, as many as are wanted", () => {
    expect(of(three)).toBe("1 of 2,3");
    expect(of(three, { settings: { numberSyncStandbys: 2 } })).toBe("2 of 2,3");
    expect(of(three, { settings: { numberSyncStandbys: 3 } })).toBe("2 of 2,3");
    expect(of(["1 primary", "3 secondary", "2 secondary"])).toBe("1 of 2,3");
    expect(of(["1 primary", "2 secondary>catchingup", "3 secondary no-quorum"])).toBe("0 of ");
  });

  test("by the goals that the nodes are to have", () => {
    const goalOf = () => "catchingup" as const;
    expect(desiredSet(group(three), 1, goalOf)).toEqual({ members: [], number: 0 });
  });

  test("protection: too few are filled up with all that hold data", () => {
    const settings = { durability: "protection" } as const;
    const few = ["1 primary", "2 catchingup", "3 demoted", "4 wait_standby", "5 init", "6 dropped"];
    expect(of(few, { settings })).toBe("1 of 2,3");
    expect(of(["1 primary", "2 secondary", "3 catchingup"], { settings })).toBe("1 of 2");
    expect(of(["1 primary", "2 catchingup no-quorum"], { settings })).toBe("0 of ");
    expect(of(few, { settings, sync: NOBODY })).toBe("0 of ");
  });

  test("performance: nobody is waited for, but the replies of all secondaries count", () => {
    const settings = { durability: "performance" } as const;
    expect(of([...three, "4 catchingup"], { settings })).toBe("0 of 2,3");
  });
});

test("sameMembers: the same standbys, and as many of them", () => {
  expect(sameMembers(setOf([2, 3], 1, 1), setOf([2, 3], 1, 2))).toBe(true);
  expect(sameMembers(setOf([2, 3], 1), setOf([2, 3], 2))).toBe(false);
  expect(sameMembers(setOf([2, 3], 1), setOf([2], 1))).toBe(false);
});
