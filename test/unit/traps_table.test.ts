/** test/traps.md says where each trap is closed: what it names must be there. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "../..");
const TABLE = readFileSync(join(ROOT, "test/traps.md"), "utf8");

/** Rows of the tables: number, trap, where. */
const ROWS = TABLE.split("\n")
  .map((line) => /^\| (I?\d+) \| (.+?) \| (.+) \|$/.exec(line)?.slice(1))
  .filter((row) => row !== undefined);

type Named = { readonly path: string; readonly text: string | undefined };

/** `path`, `path: word` or `path: "name of a test"`. */
const NAMED: readonly Named[] = [
  ...TABLE.matchAll(/`((?:lib|roles|test)\/[^`\s:]+)(?:: (?:"([^`]+)"|([^`]+)))?`/g),
].map(([, path = "", name, word]) => ({ path, text: name === undefined ? word : `"${name}"` }));

test("every trap from 1 to 111 has one row, and so has each property", () => {
  const numbers = Array.from({ length: 111 }, (_, at) => String(at + 1));
  const properties = Array.from({ length: 7 }, (_, at) => `I${at + 1}`);
  expect(ROWS.map(([number]) => number)).toEqual([...numbers, ...properties]);
});

test("every row names a file, a property of the model, or why it can't occur", () => {
  const silent = ROWS.filter(
    ([, , where = ""]) => !/`(lib|test)\/|\bS[1-5]\b|can't occur|the same/.test(where),
  );
  expect(silent).toEqual([]);
});

test("every file that is named is there, and has in it what is quoted of it", () => {
  expect(NAMED.length).toBeGreaterThan(150);
  const missing = NAMED.filter(({ path, text }) => {
    if (!existsSync(join(ROOT, path))) return true;
    return text !== undefined && !readFileSync(join(ROOT, path), "utf8").includes(text);
  });
  expect(missing).toEqual([]);
});
