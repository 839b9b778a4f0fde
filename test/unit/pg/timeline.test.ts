import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  historyFile,
  isWithinHistory,
  parseHistory,
  segmentFile,
  segmentNames,
} from "../../../lib/pg/timeline.ts";

const MIB = 1n << 20n;
const SEGMENT = 16n * MIB;

test("parseHistory: oldest first, whatever the reason is, without comments and blank lines", () => {
  expect(parseHistory("")).toEqual([]);
  expect(
    parseHistory(
      "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t1A/5B000000\tbefore 2026-07-01 10:00:00+00\n",
    ),
  ).toEqual([
    { timeline: 1, forkLsn: 0x3000148n },
    { timeline: 2, forkLsn: 0x1a5b000000n },
  ]);
});

test("historyFile", () => {
  expect(historyFile(2)).toBe("00000002.history");
  expect(historyFile(31)).toBe("0000001F.history");
});

describe("segmentFile", () => {
  test("as pg_walfile_name says", () => {
    expect(segmentFile(1, 0n, SEGMENT)).toBe("000000010000000000000000");
    expect(segmentFile(1, SEGMENT - 1n, SEGMENT)).toBe("000000010000000000000000");
    expect(segmentFile(1, SEGMENT, SEGMENT)).toBe("000000010000000000000001");
    expect(segmentFile(10, 0x16_b374d848n, SEGMENT)).toBe("0000000A00000016000000B3");
  });

  test("by the size of a segment", () => {
    expect(segmentFile(1, 1n << 32n, MIB)).toBe("000000010000000100000000");
    expect(segmentFile(1, (1n << 32n) - 1n, MIB)).toBe("000000010000000000000FFF");
    expect(segmentFile(1, (1n << 32n) - 1n, 1n << 30n)).toBe("000000010000000000000003");
  });

  test("names are in the order of the bytes", () => {
    const lsn = fc.bigInt({ min: 0n, max: 1n << 40n });
    fc.assert(
      fc.property(lsn, lsn, (a, b) => {
        const [low, high] = a < b ? [a, b] : [b, a];
        expect(segmentFile(1, low, SEGMENT) <= segmentFile(1, high, SEGMENT)).toBe(true);
      }),
    );
  });
});

/** Timeline 1 until 100, 2 until 200, then 4. */
const HISTORY = [
  { timeline: 1, forkLsn: 100n },
  { timeline: 2, forkLsn: 200n },
];

test("isWithinHistory: up to the end, or to where the history left that timeline", () => {
  const within = (timeline: number, lsn: bigint): boolean =>
    isWithinHistory({ timeline, lsn }, 4, HISTORY, 300n);
  expect([within(4, 300n), within(4, 301n)]).toEqual([true, false]);
  expect([within(2, 200n), within(2, 201n)]).toEqual([true, false]);
  expect([within(1, 100n), within(1, 150n)]).toEqual([true, false]);
  expect(within(3, 150n)).toBe(false);
  expect(within(5, 10n)).toBe(false);
});

describe("segmentNames", () => {
  const branch = (timeline: number, segments: bigint, more = 0n) => ({
    timeline,
    forkLsn: segments * SEGMENT + more,
  });
  const names = (timeline: number, lsn: bigint, history = [branch(1, 2n, 5n)], current = 2) =>
    segmentNames(timeline, lsn, current, history, SEGMENT).map((name) =>
      [name.slice(0, 8), name.slice(16)].map((part) => Number.parseInt(part, 16)).join("/"),
    );

  test("a whole segment from before the switch has one name", () => {
    expect(names(1, SEGMENT)).toEqual(["1/1"]);
  });

  test("the segment of the switch is there twice, the new timeline's first", () => {
    expect(names(1, 2n * SEGMENT + 1n)).toEqual(["2/2", "1/2"]);
  });

  test("what lies on the new timeline has only its name", () => {
    expect(names(2, 2n * SEGMENT + 9n)).toEqual(["2/2"]);
    expect(names(2, 5n * SEGMENT)).toEqual(["2/5"]);
  });

  test("a switch at the very end of a segment copies nothing", () => {
    expect(names(1, 2n * SEGMENT - 1n, [branch(1, 2n)])).toEqual(["1/1"]);
  });

  test("two switches within one segment: three names", () => {
    const history = [branch(1, 2n, 5n), branch(2, 2n, 9n)];
    expect(names(1, 2n * SEGMENT, history, 4)).toEqual(["4/2", "2/2", "1/2"]);
    expect(names(2, 2n * SEGMENT + 6n, history, 4)).toEqual(["4/2", "2/2"]);
  });

  test("one timeline, one name", () => {
    expect(names(1, 3n * SEGMENT, [], 1)).toEqual(["1/3"]);
  });
});
