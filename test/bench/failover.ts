/**
 * failover: how long clients are without a database when a postmaster is killed.
 *
 * Kills the primary's postmaster again and again under a writer that tries each host every 10 ms,
 * then the secondary's, and has the primary hand over by a switchover. Prints the outage that the writer saw, rows lost, and the time until
 * replication is synchronous again. Ends with 1 when an acknowledged row was lost.
 *
 *   bun test/bench/failover.ts [--count 20] [--nodes 2]
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { Cluster } from "../helpers/cluster.ts";
import { runRole } from "../helpers/command.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";
import type { Writer } from "../helpers/writer.ts";

/** Writes that must succeed before the next fault: a series begins on a group that works. */
const WRITES_BETWEEN = 50;
const SETTLE_MS = 60_000;

type Round = { outageMs: number; redundantMs: number };

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      count: { type: "string", default: "20" },
      nodes: { type: "string", default: "2" },
    },
  });
  const count = Number(values.count);
  if (!Number.isInteger(count) || count < 1) throw new Error("--count takes a whole number from 1");
  const nodes = Number(values.nodes);
  if (!Number.isInteger(nodes) || nodes < 2) throw new Error("--nodes takes a whole number from 2");
  const [cpu] = cpus();
  console.log(
    `machine: ${cpus().length} cores, ${cpu?.model.trim()}; ${nodes} nodes, ${count} rounds each`,
  );

  await using cluster = await Cluster.of(
    "bench",
    Array.from({ length: nodes }, () => []),
  );
  await using writer = await cluster.writer();
  const primaries = await series(cluster, writer, count, (primary) => kill(primary));
  print("primary's postmaster killed: outage seen by the writer", primaries);
  const secondaries = await series(cluster, writer, count, (_, secondary) => kill(secondary));
  print("secondary's postmaster killed: longest stall of writes", secondaries);
  writer.failures.clear();
  const planned = await series(cluster, writer, count, () => switchover(cluster));
  print("switchover: outage seen by the writer", planned);
  const kinds = [...writer.failures].map(([code, times]) => `${times} times ${code}`);
  console.log(`  errors seen by the writer: ${kinds.join(", ") || "none"}`);

  const primary = await cluster.healthy(SETTLE_MS);
  await writer.stop();
  const { acknowledged, unknown, lost, unexpected } = await writer.compareWith(primary.address);
  console.log(
    `rows: ${acknowledged} acknowledged, ${unknown} of unknown fate, ${lost.length} lost, ${unexpected.length} unexpected`,
  );
  return lost.length + unexpected.length === 0 ? 0 : 1;
}

async function kill(node: Service): Promise<void> {
  const before = node.killPostgres();
  await node.newPostmaster(before, SETTLE_MS);
}

async function switchover(cluster: Cluster): Promise<void> {
  const words = ["switchover", "--monitor", cluster.monitorUri, "--json"];
  const { code, stderr } = await runRole("formation", words, { env: cluster.env });
  if (code !== 0) throw new Error(stderr);
}

/** @param act what is done in each round */
async function series(
  cluster: Cluster,
  writer: Writer,
  count: number,
  act: (primary: Service, secondary: Service) => Promise<void>,
): Promise<Round[]> {
  const rounds: Round[] = [];
  for (let round = 1; round <= count; round += 1) {
    const primary = await cluster.healthy(SETTLE_MS);
    await writer.waitForWrites(WRITES_BETWEEN, 10_000);
    const timeMs = nowMs();
    await act(primary, cluster.other(primary));
    await cluster.healthy(SETTLE_MS);
    const redundantMs = nowMs() - timeMs;
    await writer.waitForWrites(WRITES_BETWEEN, 10_000);
    rounds.push({ outageMs: writer.longestGapMs(timeMs), redundantMs });
    if (process.stderr.isTTY) process.stderr.write(`\rround ${round} of ${count} `);
  }
  return rounds;
}

function print(what: string, rounds: readonly Round[]): void {
  console.log(`${what}: ${spread(rounds.map(({ outageMs }) => outageMs))}`);
  console.log(`  synchronous again after: ${spread(rounds.map(({ redundantMs }) => redundantMs))}`);
}

function spread(values: readonly number[]): string {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part: number): string =>
    `${((sorted[Math.round(part * (sorted.length - 1))] ?? 0) / 1000).toFixed(3)} s`;
  return `min ${at(0)}, median ${at(0.5)}, max ${at(1)}`;
}

process.exit(await main());
