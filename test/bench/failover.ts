/**
 * failover: how long clients are without a database when a postmaster is killed.
 *
 * The drill's scenarios, again and again, against a cluster of its own: kills the primary's postmaster under a writer that
 * tries each host every 10 ms, then the secondary's, and has the primary hand over by a switchover. Prints the outage that
 * the writer saw, rows lost, and the time until replication is synchronous again. Ends with 1 when an acknowledged row was
 * lost.
 *
 *   bun test/bench/failover.ts [--count 20] [--nodes 2]
 */
import { cpus } from "node:os";
import type { Scenario } from "../../lib/drill/faults.ts";
import type { Spread } from "../../lib/drill/outage.ts";
import { summaryOf } from "../../lib/drill/report.ts";
import { type Report, runDrill } from "../../lib/drill/run.ts";
import { openMonitor } from "../../lib/monitor/client.ts";
import { Cluster } from "../helpers/cluster.ts";
import { parseFlags, runScript, wholeNumber } from "../helpers/script.ts";

const SETTLE_MS = 60_000;
const SERIES = [
  ["kill-postgres", "primary's postmaster killed: outage seen by the writer"],
  ["kill-secondary", "secondary's postmaster killed: longest stall of writes"],
  ["switchover", "switchover: outage seen by the writer"],
] as const;

async function main(): Promise<number> {
  const values = parseFlags({
    count: { type: "string", default: "20" },
    nodes: { type: "string", default: "2" },
  });
  const count = wholeNumber("count", values.count);
  const nodes = wholeNumber("nodes", values.nodes, 2);
  const [cpu] = cpus();
  console.log(
    `machine: ${cpus().length} cores, ${cpu?.model.trim()}; ${nodes} nodes, ${count} rounds each`,
  );

  await using cluster = await Cluster.of(
    "bench",
    Array.from({ length: nodes }, () => []),
  );
  const reports: Report[] = [];
  for (const [scenario, what] of SERIES) {
    const report = await series(cluster, scenario, count);
    const { outageMs, redundancyMs } = summaryOf(report);
    console.log(`${what}: ${spread(outageMs)}`);
    console.log(`  synchronous again after: ${spread(redundancyMs)}`);
    reports.push(report);
  }
  const kinds = Object.entries(reports.at(-1)?.errors ?? {});
  const told = kinds.map(([code, times]) => `${times} times ${code}`).join(", ");
  console.log(`  errors seen by the writer: ${told || "none"}`);

  const sum = (of: (report: Report) => number) =>
    reports.reduce((total, report) => total + of(report), 0);
  const lost = sum((report) => summaryOf(report).lost);
  const unexpected = sum(({ rounds }) => rounds.at(-1)?.unexpected ?? 0);
  console.log(
    `rows: ${sum(({ writes }) => writes.acknowledged)} acknowledged, ${sum(({ writes }) => writes.unknown)} of unknown fate, ${lost} lost, ${unexpected} unexpected`,
  );
  return lost + unexpected === 0 ? 0 : 1;
}

async function series(cluster: Cluster, scenario: Scenario, rounds: number): Promise<Report> {
  await cluster.healthy(SETTLE_MS);
  await using monitor = openMonitor(cluster.monitorUri);
  const { report, failure } = await runDrill({
    ...{ monitor, monitorUri: cluster.monitorUri, formation: "default", group: 0 },
    ...{ scenario, rounds, writers: 1, writesPerSecond: 100, username: cluster.login.user },
    ...{ timeoutMs: SETTLE_MS, signal: new AbortController().signal },
  });
  if (failure !== undefined && summaryOf(report).lost === 0) throw failure;
  return report;
}

function spread(values: Spread | undefined): string {
  const at = (ms: number | undefined): string => `${((ms ?? 0) / 1000).toFixed(3)} s`;
  return `min ${at(values?.min)}, median ${at(values?.median)}, max ${at(values?.max)}`;
}

await runScript("failover", main);
