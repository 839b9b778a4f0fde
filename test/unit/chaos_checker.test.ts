/** What the chaos runs believe: each kind of violation is seen, and what may happen is none. */
import { expect, test } from "bun:test";
import { type Contents, type Operation, violationsOf } from "../netns/chaos/checker.ts";
import { drawRound } from "../netns/chaos/faults.ts";

const operation = (value: number, given: Partial<Operation> = {}): Operation => ({
  client: "i0r1",
  kind: "insert",
  value,
  outcome: "ok",
  startMs: value * 10,
  endMs: value * 10 + 5,
  port: 1,
  timeline: 1,
  ...given,
});
const append = (value: number, given: Partial<Operation> = {}): Operation =>
  operation(value, { client: "a1r1", kind: "append", ...given });
const holding = (rows: number[], list: number[] = []): Map<string, Contents> =>
  new Map([["node1", { rows: new Set(rows), lists: new Map([["a1r1", list]]) }]]);

test("what was acknowledged is there, and what is unknown may be: no violation", () => {
  const operations = [
    operation(1),
    operation(2, { outcome: "failed" }),
    operation(3, { outcome: "unknown" }),
    append(4),
    append(5, { outcome: "unknown" }),
    append(6),
  ];
  expect(violationsOf(operations, holding([1, 3], [4, 6]))).toEqual([]);
  expect(violationsOf(operations, holding([1], [4, 6, 5]))).toEqual([]);
});

test("an acknowledged row that a server lacks", () => {
  expect(violationsOf([operation(1), operation(2)], holding([2]))).toEqual([
    "node1: 1 acknowledged rows are lost: 1 (i0r1, port 1, timeline 1)",
  ]);
});

test("a row that was refused, or that nobody wrote", () => {
  const operations = [operation(1), operation(2, { outcome: "failed" })];
  expect(violationsOf(operations, holding([1, 2, 9]))).toEqual([
    "node1: 2 rows were never written, or refused: 2, 9",
  ]);
});

test("lists: lost, doubled, foreign and disordered values", () => {
  const operations = [append(1), append(2), append(3)];
  const said = (list: number[]): string[] => violationsOf(operations, holding([], list));
  expect(said([1, 3])).toEqual([
    "node1: a1r1: 1 appended values are lost: 2 (a1r1, port 1, timeline 1)",
  ]);
  expect(said([1, 2, 2, 3])).toEqual(["node1: a1r1: a value was appended twice"]);
  expect(said([1, 2, 3, 7])).toEqual(["node1: a1r1: values were never appended, or refused: 7"]);
  expect(said([1, 3, 2])).toEqual(["node1: a1r1: acknowledged values are out of order: 1,3,2"]);
});

test("two servers that acknowledge on one timeline", () => {
  const operations = [operation(1), operation(2, { port: 2 })];
  expect(violationsOf(operations, holding([1, 2]))).toEqual([
    "timeline 1 acknowledged on ports 1 and 2",
  ]);
});

test("a write that begins after a later timeline has opened, acknowledged by the old primary", () => {
  const opened = operation(2, { port: 2, timeline: 2 });
  const inFlight = operation(1, { endMs: 60 });
  expect(violationsOf([inFlight, opened], holding([1, 2]))).toEqual([]);
  const late = operation(3);
  expect(violationsOf([opened, late], holding([2, 3]))).toEqual([
    "1 operations were acknowledged on port 1, timeline 1, after timeline 2 had opened (insert 3)",
  ]);
});

test("a seed draws the same round again, another seed another one", () => {
  const drawn = (seed: number): string => JSON.stringify(drawRound(seed, ["node1", "node2"]));
  expect(drawn(7)).toBe(drawn(7));
  expect(drawn(7)).not.toBe(drawn(8));
});
