/** test/traps.md says where each trap is closed, test/scenarios.md what shows each scenario: what they name must be there. */
import { expect, test } from "bun:test";
import { missingOf, numbersTo, readTable } from "../helpers/shown.ts";

const TRAPS = readTable("test/traps.md");
const SCENARIOS = readTable("test/scenarios.md");

test("every trap from 1 to 111 has one row, and so has each property", () => {
  const properties = numbersTo(7).map((number) => `I${number}`);
  expect(TRAPS.rows.map(([number]) => number)).toEqual([...numbersTo(111), ...properties]);
  expect(TRAPS.rows.filter((cells) => cells.length !== 3)).toEqual([]);
});

test("every row names a file, a property of the model, or why it can't occur", () => {
  const silent = TRAPS.rows.filter(
    ([, , where = ""]) => !/`(lib|test)\/|\bS[1-5]\b|can't occur|the same/.test(where),
  );
  expect(silent).toEqual([]);
});

test("every scenario from 1 to 40 has one row, with what must hold", () => {
  expect(SCENARIOS.rows.map(([number]) => number)).toEqual(numbersTo(40));
  expect(SCENARIOS.rows.filter((cells) => cells.length !== 4)).toEqual([]);
});

test("every scenario is shown by a test, or says what is missing, or not protected", () => {
  const silent = SCENARIOS.rows.filter(
    ([, , , where = ""]) => !/`test\/|\*\*Not (yet|protected):\*\* \S/.test(where),
  );
  expect(silent).toEqual([]);
});

test.each([
  ["test/traps.md", TRAPS, 150],
  ["test/scenarios.md", SCENARIOS, 80],
] as const)(
  "every file that %s names is there, and has in it what is quoted of it",
  (_, table, least) => {
    expect(table.named.length).toBeGreaterThan(least);
    expect(missingOf(table)).toEqual([]);
  },
);
