#!/usr/bin/env -S bun --no-env-file
/** drill: breaks a healthy formation on purpose, under load, and tells what its clients see of it. */
import { resolve } from "node:path";
import { defineCommand } from "citty";
import { groupArg, locateMonitor, parseCount, whereArgs } from "../lib/config.ts";
import { SCENARIOS, type Scenario } from "../lib/drill/faults.ts";
import { pageAt } from "../lib/drill/html.ts";
import { planJson, planText, reportJson, reportText } from "../lib/drill/report.ts";
import { planDrill, runDrill } from "../lib/drill/run.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import { parseMeasure } from "../lib/monitor/settings.ts";
import { answer, commonArgs, confirm, main } from "../lib/sys/cli.ts";
import { AppError, errorText } from "../lib/sys/errors.ts";
import { signals } from "../lib/sys/signals.ts";

function scenarioNamed(name: string): Scenario {
  if (Object.hasOwn(SCENARIOS, name)) return name as Scenario;
  throw new AppError("usage", "there is no such scenario", {
    detail: { scenario: name },
    hint: `One of: ${Object.keys(SCENARIOS).join(", ")}.`,
  });
}

const run = defineCommand({
  meta: {
    name: "run",
    description: `Break it, and measure. ${Object.entries(SCENARIOS)
      .map(([name, what]) => `${name}: ${what}`)
      .join("; ")}`,
  },
  args: {
    ...commonArgs,
    ...whereArgs,
    group: groupArg,
    scenario: {
      type: "positional",
      required: true,
      description: `One of: ${Object.keys(SCENARIOS).join(", ")}`,
    },
    rounds: { type: "string", default: "1", description: "How often" },
    rate: { type: "string", default: "100", description: "Writes a second, of all writers" },
    writers: { type: "string", default: "2", description: "How many connections write" },
    username: { type: "string", description: "The login that writes (this user's name)" },
    dbname: { type: "string", description: "The database (the formation's)" },
    timeout: {
      type: "string",
      default: "60s",
      description: "How long the group may take until it is whole again",
    },
    yes: { type: "boolean", description: "Don't ask for the formation's name" },
    dryRun: { type: "boolean", description: "Say what would be done, and change nothing" },
    report: { type: "string", description: "Write a page with a plot into this file (HTML)" },
  },
  async run({ args }) {
    const scenario = scenarioNamed(args.scenario);
    const rounds = parseCount("rounds", args.rounds, 1000, 1);
    const writesPerSecond = parseCount("rate", args.rate, 10_000, 1);
    const writers = parseCount("writers", args.writers, 100, 1);
    const timeoutMs = parseMeasure("--timeout", "ms", args.timeout);
    const writePage = args.report === undefined ? undefined : pageAt(resolve(args.report));
    const { monitor: monitorUri, formation, group } = locateMonitor(args);
    await using monitor = openMonitor(monitorUri);
    const { username, dbname } = args;
    const options = {
      ...{ monitor, monitorUri, formation, group, scenario, rounds, writers, writesPerSecond },
      ...{ username, dbname, timeoutMs },
    };
    const plan = await planDrill(options);
    if (args.dryRun) {
      return answer(args.json ? JSON.stringify(planJson(plan, rounds)) : planText(plan, rounds));
    }
    if (!args.yes) {
      const question = `${plan.fault.what} (rounds: ${rounds}); type the formation's name`;
      await confirm(question, formation);
    }
    // from here on Ctrl-C heals first
    const { report, failure } = await runDrill({ ...options, signal: signals().stop });
    const error = failure === undefined ? null : errorText(failure);
    answer(
      args.json ? JSON.stringify(reportJson(report, error), undefined, 2) : reportText(report),
    );
    writePage?.(report, error);
    if (failure !== undefined) throw failure;
  },
});

await main(
  defineCommand({
    meta: { name: "drill", description: "The operator's exercise: break it on purpose, measure" },
    subCommands: { run },
  }),
);
