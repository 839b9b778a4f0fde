/** Tables in Markdown that say where each of their rows is shown: what they name has to be there. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "../..");

/** `path`, `path: word` or `path: "name of a test"`. */
const NAMED = /`((?:lib|roles|test|ansible)\/[^`\s:]+)(?:: (?:"([^`]+)"|([^`]+)))?`/g;

export type Table = {
  readonly text: string;
  /** The cells of each row whose first one is a number. */
  readonly rows: readonly (readonly string[])[];
  readonly named: readonly { readonly path: string; readonly text: string | undefined }[];
};

export function readTable(path: string): Table {
  const text = readFileSync(join(ROOT, path), "utf8");
  const rows = text
    .split("\n")
    .filter((line) => /^\| I?\d+ \|.*\|$/.test(line))
    .map((line) => line.slice(2, -2).split(" | "));
  const named = [...text.matchAll(NAMED)].map(([, path = "", name, word]) => ({
    path,
    text: name === undefined ? word : `"${name}"`,
  }));
  return { text, rows, named };
}

/** What a table names, and isn't there. */
export const missingOf = ({ named }: Table): Table["named"] =>
  named.filter(({ path, text }) => {
    if (!existsSync(join(ROOT, path))) return true;
    return text !== undefined && !readFileSync(join(ROOT, path), "utf8").includes(text);
  });

export const numbersTo = (last: number): string[] =>
  Array.from({ length: last }, (_, at) => String(at + 1));
