/** The tables as people read them: in lib/README.md, and as a diagram. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { GROUP_RULES, KEEPER_TRANSITIONS } from "../../../lib/fsm.ts";
import { fsmDiagram, fsmMarkdown } from "../../../lib/group/print.ts";

const README = join(import.meta.dir, "../../../lib/README.md");
const MARK = "### The monitor's rules";

test("lib/README.md holds the tables as they are; UPDATE=1 rewrites it", () => {
  const text = readFileSync(README, "utf8");
  const [head = ""] = text.split(MARK);
  const wanted = `${head}${fsmMarkdown()}\n`;
  if (process.env["UPDATE"] === "1") writeFileSync(README, wanted);
  expect(readFileSync(README, "utf8")).toBe(wanted);
});

test("Markdown: a row for each rule and transition, and no cell that breaks its row", () => {
  const rows = fsmMarkdown()
    .split("\n")
    .filter((line) => line.startsWith("| "));
  for (const { id, why } of GROUP_RULES) {
    expect(rows.filter((line) => line.startsWith(`| ${id} |`) && line.includes(why))).toHaveLength(
      1,
    );
  }
  expect(rows).toContain(
    "| `stop_replication` | `wait_primary` | `openForWrites` | Confirmed promotion with the monitor |",
  );
  const cells = new Set(rows.map((line) => line.split("|").length - 2));
  expect(cells).toEqual(new Set([6, 4]));
});

test("Mermaid: each transition but the way out is an arrow", () => {
  const lines = fsmDiagram().split("\n");
  expect(lines[0]).toBe("stateDiagram-v2");
  for (const [from, to, action] of KEEPER_TRANSITIONS.filter(([, goal]) => goal !== "dropped")) {
    expect(lines).toContain(`    ${from} --> ${to}: ${action}`);
  }
});
