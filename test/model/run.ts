/**
 * The whole model: every search of two nodes, random walks over three to five, every mutant; two processes at a time.
 *
 *   bun test/model/run.ts
 *   bun test/model/run.ts --seed N --steps M [--nodes K]   walks from this seed on: the same again, or for hours
 *   bun test/model/run.ts --scenario FILE                  one run, with the world after each event
 */
import { readFileSync } from "node:fs";
import { GROUP_RULES, KEEPER_TRANSITIONS } from "../../lib/fsm.ts";
import { parseFlags, runScript, wholeNumber } from "../helpers/script.ts";
import type { Coverage } from "./keeper.ts";
import { LAWS } from "./laws.ts";
import { caughtBy, MUTANTS } from "./mutants.ts";
import { parseScenario, scenarioOf } from "./scenario.ts";
import { SEARCHES, search } from "./searches.ts";
import { newCoverage, replay, shrink, walk } from "./walk.ts";
import { describe } from "./world.ts";

/** What one process says when it's done. */
type Result = {
  readonly what: string;
  readonly broken: string | undefined;
  readonly steps: number;
  readonly rules: readonly string[];
  readonly transitions: readonly string[];
};

const PROCESSES = 2;
const STEPS = 2_400_000;
const PARTS = 4;

const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(1)} s`;
const coverageOf = ({ rules, transitions }: Coverage): Pick<Result, "rules" | "transitions"> => ({
  rules: [...rules],
  transitions: [...transitions],
});
const NOTHING = { rules: [], transitions: [], steps: 0 };

/** @param nodes undefined: three to five, by turns */
function walks(seed: number, steps: number, nodes: number | undefined): Result {
  const began = performance.now();
  const seen = newCoverage();
  let random = 0;
  let healing = 0;
  let at = seed;
  let told = began;
  for (; random < steps; at += 1) {
    const one = walk(at, { nodes: nodes ?? 3 + (at % 3) }, LAWS, seen);
    random += one.steps;
    healing += one.healing;
    if (one.failure) {
      const text = scenarioOf(shrink(one.failure));
      const broken = `seed ${at} with ${one.failure.run.setup.nodes} nodes; as short as it gets:\n${text}`;
      return { what: "walks", broken, steps: random, ...coverageOf(seen) };
    }
    if (performance.now() - told > 30_000) {
      told = performance.now();
      console.error(`  ${random} random steps, ${at - seed + 1} walks, ${seconds(began)}`);
    }
  }
  const what = `${random} random steps and ${healing} of healing in ${at - seed} walks from seed ${seed}: no violation, ${seconds(began)}`;
  return { what, broken: undefined, steps: random, ...coverageOf(seen) };
}

function searched(index: number): Result {
  const began = performance.now();
  const one = SEARCHES[index];
  if (one === undefined) throw new RangeError(`there is no search ${index}`);
  const { states, complete, broken, events, seen } = search(one);
  const what = `${one.name}: ${states} worlds, ${complete ? "complete" : "not complete"}, ${seconds(began)}`;
  const way = events.map((event) => event.join(" ")).join("\n");
  return { what, broken: broken && `${broken}\n${way}`, steps: 0, ...coverageOf(seen) };
}

async function canaries(): Promise<Result> {
  const began = performance.now();
  const survivors: string[] = [];
  for (const mutant of MUTANTS) if (!(await caughtBy(mutant))) survivors.push(mutant.name);
  const what = `${MUTANTS.length - survivors.length} of ${MUTANTS.length} mutants caught, ${seconds(began)}`;
  const broken = survivors.length > 0 ? `survived: ${survivors.join("; ")}` : undefined;
  return { what, broken, ...NOTHING };
}

async function task(name: string): Promise<Result> {
  const [kind, value = "0"] = name.split(" ");
  if (kind === "search") return searched(Number(value));
  if (kind === "walks") return walks(1 + Number(value) * 1_000_000, STEPS / PARTS, undefined);
  return canaries();
}

async function inProcess(name: string): Promise<Result> {
  const child = Bun.spawn([process.execPath, import.meta.path, "--task", name], {
    stdout: "pipe",
    stderr: "inherit",
  });
  const text = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) return { what: name, broken: `"${name}" crashed`, ...NOTHING };
  return JSON.parse(text);
}

async function everything(): Promise<boolean> {
  const began = performance.now();
  const long = SEARCHES.map((one, at) => ({ one, at })).toSorted(
    (a, b) => Number(b.one.isLong ?? false) - Number(a.one.isLong ?? false),
  );
  const names = [
    ...long.map(({ at }) => `search ${at}`),
    ...Array.from({ length: PARTS }, (_, part) => `walks ${part}`),
    "mutants",
  ];
  const results: Result[] = [];
  const worker = async (): Promise<void> => {
    for (let name = names.shift(); name !== undefined; name = names.shift()) {
      const result = await inProcess(name);
      results.push(result);
      console.log(
        result.broken === undefined ? result.what : `BROKEN ${result.what}\n${result.broken}`,
      );
    }
  };
  await Promise.all(Array.from({ length: PROCESSES }, worker));
  const rules = new Set(results.flatMap((result) => result.rules));
  const transitions = new Set(results.flatMap((result) => result.transitions));
  const unused = GROUP_RULES.filter(({ id }) => !rules.has(id)).map(({ id }) => id);
  const untaken = KEEPER_TRANSITIONS.filter((row) => row[1] !== "dropped")
    .map((row) => row.slice(0, 3).join(" "))
    .filter((row) => !transitions.has(row));
  const steps = results.reduce((sum, result) => sum + result.steps, 0);
  if (unused.length > 0) console.log(`rules that never fired: ${unused.join(", ")}`);
  if (untaken.length > 0) console.log(`transitions that nobody took: ${untaken.join(", ")}`);
  console.log(`${steps} random steps; all of it took ${seconds(began)}`);
  return results.every(({ broken }) => broken === undefined);
}

function tellScenario(file: string): boolean {
  const failure = replay(parseScenario(readFileSync(file, "utf8")), LAWS, (event, world) =>
    console.log(`${event.join(" ")}\n${describe(world)}`),
  );
  console.log(failure ? `${failure.message}\n${describe(failure.world)}` : "goes well");
  return failure === undefined;
}

async function main(): Promise<number> {
  const values = parseFlags({
    seed: { type: "string" },
    steps: { type: "string" },
    nodes: { type: "string" },
    scenario: { type: "string" },
    task: { type: "string" },
  });
  let good = true;
  if (values.task !== undefined) console.log(JSON.stringify(await task(values.task)));
  else if (values.scenario !== undefined) good = tellScenario(values.scenario);
  else if (values.seed !== undefined || values.steps !== undefined || values.nodes !== undefined) {
    const nodes = values.nodes === undefined ? undefined : wholeNumber("nodes", values.nodes);
    const seed = wholeNumber("seed", values.seed ?? "1", 0);
    const steps = wholeNumber("steps", values.steps ?? String(STEPS));
    const { what, broken } = walks(seed, steps, nodes);
    good = broken === undefined;
    console.log(broken ?? what);
  } else good = await everything();
  return good ? 0 : 1;
}

await runScript("model", main);
