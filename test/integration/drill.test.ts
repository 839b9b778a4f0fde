/** roles/drill.ts on real servers: what it breaks, what it tells, and what it refuses. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readProcess } from "../../lib/pg/processes.ts";
import { Cluster } from "../helpers/cluster.ts";
import { type Outcome, RunningRole, readLog, roleCommand, runRole } from "../helpers/command.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

const scenario = onShared(() => Cluster.twoNodes("drill"), test);
const TIMEOUT_MS = 90_000;
const SETTLE_MS = 30_000;
/** Longest time that clients may be without an acknowledgement; the bench measures the real ones. */
const OUTAGE_LIMIT_MS = 3000;

const words = (cluster: Cluster, ...more: string[]): string[] => [
  ...["run", ...more, "--monitor", cluster.monitorUri, "--username", cluster.login.user],
];
const drill = (cluster: Cluster, ...more: string[]): Promise<Outcome> =>
  runRole("drill", words(cluster, ...more), { env: cluster.env, timeoutMs: TIMEOUT_MS });

const hasSchema = async (node: Service): Promise<boolean> => {
  const text = "select 1 from pg_namespace where nspname = 'pgautofailover_drill'";
  return (await node.ask(text)).length > 0;
};

/** What a drill that does nothing leaves as it is. */
async function traces(cluster: Cluster) {
  const primary = await cluster.healthy(SETTLE_MS);
  const [row] = await primary.ask("select pg_current_wal_flush_lsn()::text as lsn");
  const postmasters = cluster.nodes.map((node) => node.requirePostmaster());
  const schema = await hasSchema(primary);
  return { label: primary.label, schema, postmasters, event: await cluster.lastEventId(), ...row };
}

scenario("--dry-run says whom it would break, and changes nothing", TIMEOUT_MS, async (cluster) => {
  const primary = await cluster.healthy(SETTLE_MS);
  await primary.ask("checkpoint");
  const before = await traces(cluster);
  const killing = await drill(cluster, "kill-postgres", "--dry-run", "--json");
  const stopping = await drill(cluster, "stop-keeper", "--dry-run");
  expect([killing.code, killing.stderr, stopping.code, stopping.stderr]).toEqual([0, "", 0, ""]);
  const name = await cluster.nameOf(primary);
  const told = JSON.parse(killing.stdout);
  expect(told).toMatchObject({ dryRun: true, node: name, database: "postgres" });
  expect(told.what).toContain(`pid ${primary.requirePostmaster()}`);
  expect(stopping.stdout).toContain(`SIGSTOP of the keeper (pid ${primary.process?.pid})`);
  expect(await traces(cluster)).toEqual(before);
});

scenario("without a word of consent nothing is broken", TIMEOUT_MS, async (cluster) => {
  const before = await traces(cluster);
  const says = /must be confirmed: kill -9 of the postmaster/;
  expectRefusal(await drill(cluster, "kill-postgres"), { code: 2, says });
  expect(await traces(cluster)).toEqual(before);
});

scenario("a scenario, a count and a rate that there aren't", TIMEOUT_MS, async (cluster) => {
  const refused = async (...more: string[]) => (await drill(cluster, ...more, "--yes")).stderr;
  expect(await refused("kill-everything")).toContain("there is no such scenario");
  expect(await refused("switchover", "--rounds", "0")).toContain("--rounds takes");
  expect(await refused("switchover", "--rate", "1e9")).toContain("--rate takes");
});

scenario(
  "kill-postgres: two rounds, each with its phases and its outage; nothing is lost or left",
  TIMEOUT_MS,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const page = join(cluster.base, "drill.html");
    const flags = ["--rounds", "2", "--writers", "3", "--yes", "--json", "--report", page];
    const { code, stdout, stderr } = await drill(cluster, "kill-postgres", ...flags);
    expect({ code, stderr }).toEqual({ code: 0, stderr: expect.stringContaining("Round 2:") });
    const told = JSON.parse(stdout);
    const [one, two] = [
      await cluster.nameOf(primary),
      await cluster.nameOf(cluster.other(primary)),
    ];
    const nothing = { [one]: 0, [two]: 0 };
    expect(told).toMatchObject({
      error: null,
      summary: { lost: 0 },
      rounds: [
        { from: one, to: two, lost: nothing, unexpected: 0 },
        { from: two, to: one, lost: nothing, unexpected: 0 },
      ],
    });
    for (const { outageMs, redundancyMs, phases, marks } of told.rounds) {
      expect(outageMs).toBeWithin(20, OUTAGE_LIMIT_MS);
      expect(redundancyMs).toBeWithin(outageMs / 2, SETTLE_MS);
      expect(phases.promote).toBeGreaterThan(0);
      // by the monitor's clock, on the drill's axis
      for (const { ms } of marks) expect(ms).toBeWithin(-50, redundancyMs + 50);
      expect(marks.map(({ label }: { label: string }) => label)).toContain("open for writes");
    }
    expect(told.writes.acknowledged).toBeGreaterThan(100);
    expect(readFileSync(page, "utf8")).toMatch(/^<!doctype html>[\s\S]*<svg[\s\S]*<\/html>\n$/);
    expect(await hasSchema(primary)).toBe(false);
    expect(await cluster.healthy(SETTLE_MS)).toBe(primary);
  },
);

scenario("kill-secondary: the primary stays, writes stall", TIMEOUT_MS, async (cluster) => {
  const primary = await cluster.healthy(SETTLE_MS);
  const before = cluster.other(primary).requirePostmaster();
  const { code, stdout } = await drill(cluster, "kill-secondary", "--yes", "--json");
  const name = await cluster.nameOf(primary);
  expect(code).toBe(0);
  const [round] = JSON.parse(stdout).rounds;
  expect(round).toMatchObject({ from: name, to: name, phases: null });
  expect(round.outageMs).toBeWithin(5, OUTAGE_LIMIT_MS);
  expect(cluster.other(primary).postmaster()).not.toBe(before);
});

scenario(
  "switchover: told as text, with the phases of the monitor",
  TIMEOUT_MS,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const { code, stdout } = await drill(cluster, "switchover", "--yes");
    expect(code).toBe(0);
    const [one, two] = [
      await cluster.nameOf(primary),
      await cluster.nameOf(cluster.other(primary)),
    ];
    expect(stdout).toMatch(new RegExp(`1 \\| ${one} → ${two} \\|.* \\d+ ms \\|.* 0 \\|`));
    expect(stdout).toMatch(/outage as writers saw it: min \d+ ms/);
    expect(await cluster.healthy(SETTLE_MS)).toBe(cluster.other(primary));
  },
);

scenario(
  "an acknowledged row that is gone ends the drill: no round follows",
  TIMEOUT_MS,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const flags = ["kill-secondary", "--yes", "--rounds", "3"];
    const command = roleCommand("drill", words(cluster, ...flags));
    const running = new RunningRole(command, cluster.env, join(cluster.base, "lost.log"));
    await cluster.waitFor("a row to take away", 20_000, async () => {
      const text = "delete from pgautofailover_drill.writes where id <= 3 returning id";
      return (await primary.ask(text)).length > 0;
    });
    const code = await running.ended(SETTLE_MS);
    const said = readLog(running.logFile, running.logStart);
    expect({ code, said }).toEqual({
      code: 7,
      said: expect.stringMatching(/Round 1:[\s\S]*acknowledged rows are missing/),
    });
    expect(said).not.toContain("Round 2:");
    expect(await hasSchema(primary)).toBe(false);
  },
);

scenario("a group with an unhealthy standby is not broken further", TIMEOUT_MS, async (cluster) => {
  const primary = await cluster.healthy(SETTLE_MS);
  const standby = cluster.other(primary);
  await standby.die();
  const says = /not in perfect health: .*(is catchingup|doesn't run|no node is primary)/;
  await cluster.waitFor("the primary to go on alone", 10_000, async () =>
    (await cluster.states()).some(({ reported }) => reported === "wait_primary"),
  );
  const postmaster = primary.requirePostmaster();
  expectRefusal(await drill(cluster, "kill-postgres", "--yes"), { code: 3, says });
  expect(primary.postmaster()).toBe(postmaster);
  standby.start();
  await cluster.healthy(SETTLE_MS);
});

scenario("partition: one machine can't be cut in two", TIMEOUT_MS, async (cluster) => {
  await cluster.healthy(SETTLE_MS);
  const refused = await drill(cluster, "partition", "--dry-run");
  expectRefusal(refused, { code: [2, 3, 5], says: /shares its machine|takes root|takes Linux/ });
});

/** A drill that has stopped the primary's keeper. */
async function stopped(cluster: Cluster) {
  const primary = await cluster.healthy(SETTLE_MS);
  const command = roleCommand("drill", words(cluster, "stop-keeper", "--yes", "--json"));
  const running = new RunningRole(command, cluster.env, join(cluster.base, "drill.log"));
  const isStopped = () => readProcess(primary.process?.pid ?? 0)?.state === "T";
  await cluster.waitFor("a keeper that is stopped", 20_000, isStopped);
  return { primary, running, isStopped };
}

if (existsSync("/proc/self/stat")) {
  scenario(
    "stop-keeper: a drill that is killed leaves no keeper stopped",
    TIMEOUT_MS,
    async (cluster) => {
      const { primary, running, isStopped } = await stopped(cluster);
      running.signal("SIGKILL");
      await cluster.waitFor("a keeper that goes on", 2000, () => !isStopped());
      expect(await cluster.healthy(SETTLE_MS)).toBe(primary);
      // what it wrote is the next one's to drop, once that can't be another drill's that runs
      expect(await hasSchema(primary)).toBe(true);
      const says = /another drill writes into this database/;
      expectRefusal(await drill(cluster, "switchover", "--yes"), { code: 7, says });
      await primary.ask("update pgautofailover_drill.writes set at = at - interval '1 hour'");
      expect((await drill(cluster, "switchover", "--yes")).code).toBe(0);
      expect(await hasSchema(cluster.other(primary))).toBe(false);
    },
  );

  scenario("stop-keeper: Ctrl-C heals, cleans up and tells", TIMEOUT_MS, async (cluster) => {
    const { primary, running, isStopped } = await stopped(cluster);
    running.signal("SIGINT");
    expect(await running.ended(10_000)).toBe(3);
    expect(isStopped()).toBe(false);
    expect(readLog(running.logFile, running.logStart)).toContain("the drill was interrupted");
    expect(await hasSchema(primary)).toBe(false);
    expect(await cluster.healthy(SETTLE_MS)).toBe(primary);
  });

  scenario(
    "stop-keeper: nobody takes over, and the keeper goes on",
    TIMEOUT_MS,
    async (cluster) => {
      const primary = await cluster.healthy(SETTLE_MS);
      const { code, stdout } = await drill(cluster, "stop-keeper", "--yes", "--json");
      expect(code).toBe(0);
      const [round] = JSON.parse(stdout).rounds;
      const name = await cluster.nameOf(primary);
      expect(round).toMatchObject({ from: name, to: name, phases: null });
      // it wakes up fenced, and restarts PostgreSQL
      expect(round.outageMs).toBeLessThan(OUTAGE_LIMIT_MS);
    },
  );
} else console.error("stop-keeper is skipped: it takes /proc");
