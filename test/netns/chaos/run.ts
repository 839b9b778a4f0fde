/**
 * Rounds of faults under clients that never stop, each checked to the last row.
 *
 *   npm run chaos -- [--minutes 10] [--seed N] [--nodes 3]
 *
 * The seed decides which faults come, where and when; what they meet is the machine's. Needs root,
 * network namespaces and disks in files. A violation leaves everything where it is: the directory
 * with all logs, and `schedule.jsonl`.
 */
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseFlags, positiveNumber, runScript, wholeNumber } from "../../helpers/script.ts";
import type { Service } from "../../helpers/service.ts";
import type { Row } from "../../helpers/sql.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";
import { type Operation, violationsOf } from "./checker.ts";
import { describe, drawRound, type Planned } from "./faults.ts";
import { ChaosCluster, FOUND, removeClocks } from "./hosts.ts";
import { Workload } from "./workload.ts";

const CLIENTS = 4;
/** From the end of the last fault to a whole group. */
const CONVERGE_MS = 30_000;

export type ChaosOptions = {
  minutes: number;
  seed: number;
  nodes: number;
  say?: (line: string) => void;
};
export type ChaosReport = {
  rounds: number;
  faults: number;
  acknowledged: number;
  unknown: number;
  promotions: number;
  slowestMs: number;
  violations: string[];
};

export async function chaos({
  minutes,
  seed,
  nodes,
  say = console.log,
}: ChaosOptions): Promise<ChaosReport> {
  const report = { rounds: 0, faults: 0, acknowledged: 0, unknown: 0, promotions: 0, slowestMs: 0 };
  await using cluster = await ChaosCluster.start(nodes);
  say(`chaos: ${nodes} nodes, seed ${seed}, ${minutes} minutes, in ${cluster.base}`);
  const primary = await cluster.healthy(CONVERGE_MS);
  const addresses = cluster.nodes.map(({ address }) => address);
  const workload = new Workload(addresses, cluster.login, CLIENTS);
  await workload.prepare(primary.address);
  const labels = cluster.nodes.map(({ label }) => label);
  const endMs = nowMs() + minutes * 60_000;
  let rows = 0;
  let violations: string[] = [];
  while (nowMs() < endMs && violations.length === 0) {
    removeClocks();
    const planned = drawRound(seed * 10_007 + report.rounds, labels);
    const text = planned.map(describe).join("; ");
    appendFileSync(
      join(cluster.base, "schedule.jsonl"),
      `${JSON.stringify({ round: report.rounds, text })}\n`,
    );
    const round = await playRound(cluster, workload, planned).catch((error): Round => {
      return { operations: [], convergedMs: 0, violations: [brokenOff(error)] };
    });
    report.rounds += 1;
    report.faults += planned.length;
    report.acknowledged += count(round.operations, "ok");
    report.unknown += count(round.operations, "unknown");
    report.slowestMs = Math.max(report.slowestMs, round.convergedMs);
    violations = [...round.violations];
    if (violations.length === 0) {
      const checked = await earlierRows(cluster, workload, round.operations, rows).catch(
        (error) => ({ rows, violations: [brokenOff(error)] }),
      );
      rows = checked.rows;
      violations = checked.violations;
    }
    say(
      `round ${report.rounds}: ${text}: ${count(round.operations, "ok")} acknowledged, ${count(round.operations, "unknown")} unknown, whole again after ${(round.convergedMs / 1000).toFixed(1)} s${violations.map((line) => `\n  VIOLATION: ${line}`).join("")}`,
    );
  }
  const [row] = await cluster
    .askMonitor(
      "select count(*) as n from pgautofailover.event where goalstate = 'prepare_promotion' and reportedstate <> goalstate",
    )
    .catch(() => []);
  report.promotions = Number(row?.["n"] ?? 0);
  if (violations.length > 0) {
    process.env["PGAF_TEST_KEEP"] = "1";
    writeFileSync(join(cluster.base, FOUND), `${violations.join("\n")}\n`);
    say(await cluster.story());
  }
  return { ...report, violations };
}

const count = (operations: readonly Operation[], outcome: Operation["outcome"]): number =>
  operations.filter((each) => each.outcome === outcome).length;

/** No reason to leave without the logs. */
const brokenOff = (error: unknown): string => `the round broke off: ${error}`;

type Round = { operations: Operation[]; convergedMs: number; violations: string[] };

async function playRound(
  cluster: ChaosCluster,
  workload: Workload,
  planned: readonly Planned[],
): Promise<Round> {
  workload.start();
  await workload.waitForWrites(20, 10_000);
  const startMs = nowMs();
  const until = (atMs: number): Promise<void> => Bun.sleep(Math.max(0, startMs + atMs - nowMs()));
  await Promise.all(
    planned.map(async ({ fault, target: drawn, atPrimary, startMs: from, endMs: to }) => {
      await until(from);
      const label = atPrimary ? primaryOf(cluster, workload) : undefined;
      const target = label === undefined ? drawn : { ...drawn, label };
      await fault.begin(cluster, target);
      if (!fault.end) return;
      await until(to);
      await fault.end(cluster, target);
    }),
  );
  const healedMs = nowMs();
  const violations: string[] = [];
  try {
    await settle(cluster, healedMs + CONVERGE_MS);
    await cluster.healthy(Math.max(1, healedMs + CONVERGE_MS - nowMs()));
    await workload.waitForWrites(20, 5000);
  } catch (error) {
    const { message, cause } = error as Error;
    violations.push(
      `not whole within ${CONVERGE_MS / 1000} s: ${message.split("\n")[0]} (${cause ?? "it did not come"})`,
    );
  }
  const convergedMs = nowMs() - healedMs;
  const operations = await workload.stop();
  violations.push(...bugs(cluster));
  if (violations.length === 0) {
    const primary = await cluster.healthy(10_000);
    await replayed(cluster, primary);
    violations.push(...(await slotsForNobody(primary, cluster)));
    const contents = await Promise.all(
      cluster.nodes.map(async (node) => {
        return [node.label, await workload.contents(node.address, operations)] as const;
      }),
    );
    violations.push(...violationsOf(operations, new Map(contents)));
  }
  return { operations, convergedMs, violations };
}

/** Who has acknowledged the last write. */
const primaryOf = (cluster: ChaosCluster, workload: Workload): string | undefined =>
  cluster.nodes.find(({ port }) => port === workload.lastPort)?.label;

/** Gives back what operators' commands have changed and could not, with the monitor away. */
async function settle(cluster: ChaosCluster, deadlineMs: number): Promise<void> {
  await cluster.waitFor(
    "the formation's settings to be as before",
    deadlineMs - nowMs(),
    async () => {
      await cluster.setFormation("number_sync_standbys", "0");
      await cluster.setFormation("durability", "availability");
      for (const node of cluster.nodes) await cluster.setPriority(node, 50);
      const nodes = await cluster.askMonitor("select nodeid, maintenance from pgautofailover.node");
      for (const { nodeid, maintenance } of nodes) {
        if (maintenance)
          await cluster.askMonitor("select pgautofailover.stop_maintenance($1::text::bigint)", [
            String(nodeid),
          ]);
      }
      return true;
    },
  );
}

/** On a busy machine a connection can take too long: it is asked again. */
const answer = (node: Service, text: string): Promise<Row[]> =>
  waitFor(`an answer of ${node.label}`, 10_000, () => node.ask(text));

/** Every standby has what the primary has now. */
async function replayed(cluster: ChaosCluster, primary: Service): Promise<void> {
  const [row] = await answer(primary, "select pg_current_wal_lsn()::text as lsn");
  for (const node of cluster.nodes) {
    if (node === primary) continue;
    await waitFor(`${node.label} to have replayed ${row?.["lsn"]}`, 10_000, async () => {
      const [at] = await node.ask("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn as there", [
        row?.["lsn"],
      ]);
      return at?.["there"] === true;
    });
  }
}

async function slotsForNobody(primary: Service, cluster: ChaosCluster): Promise<string[]> {
  const slots = await answer(primary, "select slot_name, active from pg_replication_slots");
  const idle = slots.filter(({ active }) => active !== true).map(({ slot_name }) => slot_name);
  const found = idle.length > 0 ? [`${primary.label} has slots that nobody uses: ${idle}`] : [];
  if (slots.length !== cluster.nodes.length - 1)
    found.push(`${primary.label} has ${slots.length} slots`);
  return found;
}

/** A role that ended by its own bug (exit code 12), or says that it has found one. */
function bugs(cluster: ChaosCluster): string[] {
  return cluster.exits
    .splice(0)
    .filter(({ code }) => code === 12)
    .map(({ label }) => `the role on ${label} ended with 12, a bug`);
}

async function earlierRows(
  cluster: ChaosCluster,
  workload: Workload,
  operations: readonly Operation[],
  before: number,
): Promise<{ rows: number; violations: string[] }> {
  const first = Math.min(...operations.map(({ value }) => value));
  const counts = await Promise.all(
    cluster.nodes.map(({ address }) => workload.countBefore(address, first)),
  );
  const violations = counts.flatMap((rows, index) =>
    rows === before
      ? []
      : [`${cluster.nodes[index]?.label}: ${rows} rows of earlier rounds, not ${before}`],
  );
  const [primary] = counts;
  const now = await workload.countBefore(
    (cluster.nodes[0] as Service).address,
    Number.MAX_SAFE_INTEGER,
  );
  return { rows: primary === undefined ? 0 : now, violations };
}

async function main(): Promise<number> {
  const values = parseFlags({
    minutes: { type: "string", default: "10" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    nodes: { type: "string", default: "3" },
  });
  const minutes = positiveNumber("minutes", values.minutes);
  const seed = wholeNumber("seed", values.seed, 0);
  const nodes = wholeNumber("nodes", values.nodes, 2);
  const { violations, ...counts } = await chaos({ minutes, seed, nodes });
  console.log(`${JSON.stringify(counts)}\n${violations.length} violations (seed ${seed})`);
  return violations.length === 0 ? 0 : 1;
}

if (import.meta.main) await runScript("chaos", main);
