/**
 * A run as a text file: what it begins with, one event a line, and at the end which node stays away
 * at first when everything is healed. `rounds N` stands for what the nodes do of themselves in so many rounds.
 * `#` begins a comment.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { EVENT_NAMES, type Event, type EventName, kindOf } from "./events.ts";
import { type Failure, OF_A_ROUND, type Run } from "./walk.ts";

export function printScenario(run: Run, why: string): string {
  const events = run.events.map((event) => event.join(" "));
  const lines = [
    ...why.split("\n").map((line) => `# ${line}`),
    `nodes ${run.setup.nodes}`,
    `members ${run.setup.members}`,
    ...events,
    `heal without ${run.missing}`,
  ];
  return `${lines.join("\n")}\n`;
}

export const scenarioOf = ({ run, message }: Failure): string => printScenario(run, message);

/** Everything that nodes do of themselves, once; those of it that can't happen just then are left out. */
const roundOf = (nodes: number): Event[] =>
  Array.from({ length: nodes }, (_, at) => at + 1).flatMap((id) => [
    ...OF_A_ROUND.map((name): Event => [name, id]),
    ["decide"],
  ]);

/** @throws {Error} a line that says nothing */
export function parseScenario(text: string): Run {
  const events: Event[] = [];
  let nodes = 2;
  let members = 2;
  let missing = 0;
  for (const line of text.split("\n")) {
    const [name = "", ...rest] = (line.split("#")[0] ?? "").trim().split(/\s+/);
    const values = rest.filter((word) => word !== "without").map(Number);
    if (name === "") continue;
    if (values.some((value) => !Number.isInteger(value))) throw new Error(`not a number: ${line}`);
    if (name === "nodes") nodes = values[0] ?? nodes;
    else if (name === "members") members = values[0] ?? members;
    else if (name === "rounds") {
      for (let round = 0; round < (values[0] ?? 1); round += 1) events.push(...roundOf(nodes));
    } else if (name === "heal") missing = values[0] ?? 0;
    else if (!EVENT_NAMES.includes(name as EventName))
      throw new Error(`there is no event "${name}"`);
    else if (kindOf(name as EventName).args.length !== values.length) {
      throw new Error(`"${name}" takes ${kindOf(name as EventName).args.length} numbers: ${line}`);
    } else events.push([name, ...values] as unknown as Event);
  }
  return { setup: { nodes, members }, events, missing };
}

const FOLDER = join(import.meta.dir, "scenarios");

/** Every scenario that was found once, or thought of, by its file's name. */
export const SCENARIOS: readonly (readonly [name: string, run: Run])[] = readdirSync(FOLDER)
  .filter((name) => name.endsWith(".txt"))
  .toSorted()
  .map((name) => [name, parseScenario(readFileSync(join(FOLDER, name), "utf8"))]);
