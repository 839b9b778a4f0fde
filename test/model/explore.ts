/** One search as a test: on failure the first line is what is broken, the rest a shortest way to it. */
import { expect } from "bun:test";
import { type Search, search } from "./searches.ts";

export function expectUnbroken(one: Search): void {
  const { states, complete, broken, events } = search(one);
  console.log(`  ${states} worlds`);
  const way = events.map((event) => event.join(" "));
  expect(broken === undefined ? "nothing is broken" : [broken, ...way].join("\n")).toBe(
    "nothing is broken",
  );
  expect(complete).toBe(true);
}
