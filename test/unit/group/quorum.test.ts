import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { isInSync, overlapNeeded, synchronousStandbyNames } from "../../../lib/group/quorum.ts";
import type { SyncSet } from "../../../lib/group/view.ts";

const set = (members: readonly number[], number: number, version = 1): SyncSet => ({
  version,
  primaryId: 1,
  members,
  number,
});

test("synchronous_standby_names", () => {
  expect(synchronousStandbyNames(set([], 0))).toBe("");
  expect(synchronousStandbyNames(set([2], 1))).toBe("FIRST 1 (pgautofailover_standby_2)");
  expect(synchronousStandbyNames(set([2, 30], 2))).toBe(
    "FIRST 2 (pgautofailover_standby_2, pgautofailover_standby_30)",
  );
  expect(synchronousStandbyNames(set([2, 30], 1))).toBe(
    "ANY 1 (pgautofailover_standby_2, pgautofailover_standby_30)",
  );
  for (const number of [0, -1, 2]) {
    expect(() => synchronousStandbyNames(set([2], number))).toThrow(RangeError);
  }
});

describe("overlapNeeded", () => {
  test("one standby: one; one of two: both; two of three: two", () => {
    expect(overlapNeeded(set([2], 1), set([2], 1))).toBe(1);
    expect(overlapNeeded(set([2, 3], 1), set([2, 3], 1))).toBe(2);
    expect(overlapNeeded(set([2, 3, 4], 2), set([2, 3, 4], 2))).toBe(2);
  });

  test("nothing is guaranteed without a set, by another version, or for another primary", () => {
    expect(overlapNeeded(set([], 0), set([], 0))).toBeUndefined();
    expect(overlapNeeded(set([2], 1), set([], 0))).toBeUndefined();
    expect(overlapNeeded(set([2], 1), undefined)).toBeUndefined();
    expect(overlapNeeded(set([2], 1, 2), set([2], 1, 1))).toBeUndefined();
    expect(overlapNeeded(set([2], 1), { ...set([2], 1), primaryId: 3 })).toBeUndefined();
  });

  test("any that many members include one that has acknowledged", () => {
    const members = fc.uniqueArray(fc.integer({ min: 2, max: 7 }), { minLength: 1 });
    fc.assert(
      fc.property(members, fc.nat(), fc.func(fc.nat()), (ids, seed, order) => {
        const number = (seed % ids.length) + 1;
        const needed = overlapNeeded(set(ids, number), set(ids, number)) ?? 0;
        const acknowledged = ids.slice(0, number);
        const asked = ids.toSorted((a, b) => order(a) - order(b)).slice(0, needed);
        expect(asked.some((id) => acknowledged.includes(id))).toBe(true);
      }),
    );
  });
});

test("isInSync: the only member of the set in force, of this primary", () => {
  expect(isInSync(2, 1, set([2], 1), set([2], 1))).toBe(true);
  expect(isInSync(3, 1, set([2], 1), set([2], 1))).toBe(false);
  expect(isInSync(2, 3, set([2], 1), set([2], 1))).toBe(false);
  expect(isInSync(2, 1, set([2], 1), undefined)).toBe(false);
  expect(isInSync(2, 1, set([2], 1, 2), set([2], 1, 1))).toBe(false);
  expect(isInSync(2, 1, set([2, 3], 1), set([2, 3], 1))).toBe(false);
  expect(isInSync(2, 1, set([2, 3], 2), set([2, 3], 2))).toBe(true);
});
