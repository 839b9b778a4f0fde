/** What attempts prove: outages, and rows that are missing. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  type Attempt,
  compare,
  longestGap,
  type Outcome,
  outcomeOf,
  type Run,
  spreadOf,
  timesOf,
} from "../../../lib/drill/outage.ts";

const attempts = (...outcomes: Outcome[]): Attempt[] =>
  outcomes.map((outcome, index) => ({ id: index + 1, port: 5432, atMs: index * 10, outcome }));

describe("outcomeOf: what an error says of the row", () => {
  test.each(["ECONNREFUSED", "CONNECT_TIMEOUT", "25006", "57P03", "53300", "28P01", "42P01"])(
    "%s: it was not written",
    (code) => expect(outcomeOf(code)).toBe("failed"),
  );

  // 57P01: a commit that waits for its standby is ended, and stays
  test.each(["CONNECTION_CLOSED", "ECONNRESET", "DEADLINE", "57P01", "40001", undefined])(
    "%s: nobody knows",
    (code) => expect(outcomeOf(code)).toBe("unknown"),
  );
});

describe("compare: what was acknowledged with what is there", () => {
  test("an acknowledged row that is missing is lost", () => {
    const told = compare(attempts("ok", "ok", "ok", "ok"), [[1, 2], [4, 4]], 4); // biome-ignore format: as it is
    expect(told).toEqual({ lost: [3], found: [], notFound: [], unexpected: [] });
  });

  test("a row of unknown fate may be there or not, and is no loss", () => {
    const told = compare(attempts("ok", "unknown", "unknown"), [[1, 2]], 3);
    expect(told).toEqual({ lost: [], found: [2], notFound: [3], unexpected: [] });
  });

  test("a row that was refused, or never tried, is not expected; one in flight is", () => {
    const told = compare(attempts("ok", "failed"), [[1, 4]], 3);
    expect(told).toEqual({ lost: [], found: [], notFound: [], unexpected: [2, 4] });
  });

  test("an empty table has lost everything", () => {
    expect(compare(attempts("ok", "failed", "ok"), [], 3).lost).toEqual([1, 3]);
  });

  test("it agrees with a set of the rows, whatever they are", () => {
    const outcome = fc.constantFrom<Outcome>("ok", "failed", "unknown");
    const rows = fc.array(fc.tuple(outcome, fc.boolean()), { maxLength: 60 });
    fc.assert(
      fc.property(rows, (world) => {
        const tried = attempts(...world.map(([each]) => each));
        const there = tried.filter((_, index) => world[index]?.[1]).map(({ id }) => id);
        const runs: [number, number][] = [];
        for (const id of there) {
          const last = runs.at(-1);
          if (last?.[1] === id - 1) last[1] = id;
          else runs.push([id, id]);
        }
        const those = (wanted: Outcome, isThere: boolean) =>
          tried
            .filter(({ id, outcome: was }) => was === wanted && there.includes(id) === isThere)
            .map(({ id }) => id);
        expect(compare(tried, runs as readonly Run[], tried.length)).toEqual({
          lost: those("ok", false),
          found: those("unknown", true),
          notFound: those("unknown", false),
          unexpected: those("failed", true),
        });
      }),
    );
  });
});

describe("longestGap: the outage around a fault", () => {
  test("it begins with the last write before the fault, and ends with the first one after", () => {
    expect(longestGap([0, 10, 20, 210, 220], 25, 230)).toEqual({ fromMs: 20, toMs: 210 });
  });

  test("one that was over before the fault doesn't count", () => {
    expect(longestGap([0, 500, 510, 520], 505, 525)).toEqual({ fromMs: 500, toMs: 510 });
  });

  test("one that lasts until the end does", () => {
    expect(longestGap([0, 10], 15, 1000)).toEqual({ fromMs: 10, toMs: 1000 });
  });

  test("without any write it is all the time", () => {
    expect(longestGap([], 100, 300)).toEqual({ fromMs: 100, toMs: 300 });
  });
});

test("timesOf: those of acknowledgements only", () => {
  expect(timesOf(attempts("ok", "unknown", "failed", "ok"))).toEqual([0, 30]);
});

test("spreadOf: smallest, median and greatest, in whatever order they come", () => {
  expect([spreadOf([3, 1, 9]), spreadOf([])]).toEqual([{ min: 1, median: 3, max: 9 }, undefined]);
});
