/** The walkthrough on real servers: set up by hand, then broken twice under a client that writes. */
import { afterAll, expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import { runRole } from "../helpers/command.ts";
import { isRoot } from "../helpers/owner.ts";
import { nothingLost, stepsOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";

const cluster = new Cluster("walkthrough");
const primary = cluster.addNode("primary");
const secondary = cluster.addNode("secondary");
afterAll(() => cluster[Symbol.asyncDispose](), 40_000);

const step = stepsOf(cluster);

/** Longest time that clients may be without an acknowledgement; the bench measures the real ones. */
const OUTAGE_LIMIT_MS = 3000;

step("create monitor: says that it is ready, and at which URI", 20_000, async () => {
  const outcome = await cluster.monitor.create();
  expect(outcome.stdout + outcome.stderr).toContain(cluster.monitorUri);
  cluster.monitor.start();
  await cluster.waitFor(
    "the monitor to answer",
    5000,
    async () => (await cluster.states()) !== undefined,
  );
});

step("create primary: registers, initialises, starts, and is single", 30_000, async () => {
  const { stderr } = await primary.create();
  expect(stderr).toContain(
    `Registered node localhost:${primary.port} with id 1 in formation "default", group 0`,
  );
  expect(stderr).toContain('FSM transition from "init" to "single": Start as a single node');
  expect(stderr).toContain('Transition complete: current state is now "single"');
  expect(stderr).toContain("Keeper has been successfully initialized");
  const created = primary.requirePostmaster();

  primary.start();
  await primary.waitForLog(
    /Calling node_active for node default\/1\/0 with current state: single, PostgreSQL is running, sync_state is "", WAL delta is -1\./,
    5000,
  );
  expect(primary.postmaster()).toBe(created);
  const [settings] = await primary.ask(
    "select current_setting('data_checksums') as checksums, current_setting('wal_log_hints') as hints",
  );
  expect(settings).toEqual({ checksums: "on", hints: "on" });
});

step("create secondary: base backup, then primary and secondary in sync", 40_000, async () => {
  const mark = primary.mark();
  const { stderr } = await secondary.create();
  expect(stderr).toContain(
    `Registered node localhost:${secondary.port} with id 2 in formation "default", group 0`,
  );
  expect(stderr).toContain('FSM transition from "init" to "wait_standby"');
  expect(stderr).toContain("Keeper has been successfully initialized");
  secondary.start();
  await cluster.waitForStates({ primary: "primary", secondary: "secondary" }, 20_000);
  expect(primary.path(mark)).toEqual(["single", "wait_primary", "primary"]);
  expect(primary.log(mark)).toContain("Enabling synchronous replication");
  const standbys = await primary.ask(
    "select application_name, state, sync_state from pg_stat_replication",
  );
  expect(standbys).toEqual([
    {
      application_name: "pgautofailover_standby_2",
      state: "streaming",
      sync_state: "quorum",
    },
  ]);
  const slots = await primary.ask("select slot_name, active from pg_replication_slots");
  expect(slots).toEqual([{ slot_name: "pgautofailover_standby_2", active: true }]);
});

test.if(isRoot)("started as root, all of it runs as the owner of PGDATA", async () => {
  for (const service of [cluster.monitor, primary, secondary]) {
    const ps = Bun.spawnSync([
      "ps",
      "-o",
      "user=",
      "-p",
      `${service.process?.pid},${service.postmaster()}`,
    ]);
    expect(ps.stdout.toString().trim().split(/\s+/)).toEqual([
      cluster.owner.name,
      cluster.owner.name,
    ]);
  }
});

step("breaking it 1: kill -9 of the secondary's postmaster", 40_000, async () => {
  await using writer = await cluster.writer();
  const marks = { primary: primary.mark(), secondary: secondary.mark() };
  const timeMs = nowMs();
  secondary.killPostgres();

  await secondary.waitForLog(
    /FSM transition from "secondary" to "catchingup"/,
    10_000,
    marks.secondary,
  );
  await primary.waitForLog(
    /Transition complete: current state is now "wait_primary"/,
    10_000,
    marks.primary,
  );
  await writer.waitForWrites(10, 5000);
  await primary.waitForLog(
    /Transition complete: current state is now "primary"/,
    20_000,
    marks.primary,
  );
  await cluster.waitForStates({ primary: "primary", secondary: "secondary" }, 20_000);

  expect(secondary.transitions(marks.secondary)).toEqual([
    {
      from: "secondary",
      to: "catchingup",
      why: "Failed to report back to the monitor, not eligible for promotion",
    },
    {
      from: "catchingup",
      to: "secondary",
      why: "Convinced the monitor that I'm up and running, and eligible for promotion again",
    },
  ]);
  expect(secondary.log(marks.secondary)).toMatch(
    /current state: secondary, PostgreSQL is not running/,
  );
  expect(primary.transitions(marks.primary)).toEqual([
    { from: "primary", to: "wait_primary", why: "Secondary became unhealthy" },
    { from: "wait_primary", to: "primary", why: "A healthy secondary appeared" },
  ]);
  expect(primary.log(marks.primary)).toMatch(
    /Disabling synchronous replication[\s\S]*Enabling synchronous replication/,
  );
  expect(writer.longestGapMs(timeMs)).toBeLessThan(OUTAGE_LIMIT_MS);
  await nothingLost(cluster, writer);
});

step("breaking it 2: kill -9 of the primary's postmaster, twice", 60_000, async () => {
  await breakThePrimary(primary, secondary);
  await breakThePrimary(secondary, primary);
});

step("state failovers: both of them, phase by phase", 10_000, async () => {
  const flags = ["failovers", "--monitor", cluster.monitorUri];
  const { code, stdout } = await runRole("state", [...flags, "--json"], { env: cluster.env });
  expect(code).toBe(0);
  const told = JSON.parse(stdout);
  const names = [await cluster.nameOf(primary), await cluster.nameOf(secondary)];
  expect(told).toMatchObject([
    { kind: "failover", status: "done", from: names[0], to: names[1], lostBytes: null },
    { kind: "failover", status: "done", from: names[1], to: names[0], lostBytes: null },
  ]);
  for (const { at, ms } of told) {
    const moments = ["noticed", "decided", "disconnected", "promoted", "open", "redundant"];
    const times = moments.map((moment) => Date.parse(at[moment]));
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect(ms.outage).toBe(ms.decide + ms.disconnect + ms.promote + ms.open);
    expect(ms.outage).toBeLessThan(OUTAGE_LIMIT_MS);
    expect(ms.redundancy).toBeGreaterThan(0);
  }
  const table = await runRole("state", flags, { env: cluster.env });
  expect(table.stdout).toMatch(/failover \| +done \| +\w+ \| +\w+ \|( +\d+ ms \|){6} -/);
});

async function breakThePrimary(old: Service, candidate: Service): Promise<void> {
  await using writer = await cluster.writer();
  const marks = {
    old: old.mark(),
    candidate: candidate.mark(),
    event: await cluster.lastEventId(),
  };
  const data = old.dataDirectoryIdentity();
  const timeMs = nowMs();
  old.killPostgres();

  await cluster.waitForStates({ [old.label]: "secondary", [candidate.label]: "primary" }, 30_000);
  expect(candidate.transitions(marks.candidate)).toEqual([
    {
      from: "secondary",
      to: "prepare_promotion",
      why: "Stop traffic to primary, wait for it to finish draining",
    },
    {
      from: "prepare_promotion",
      to: "stop_replication",
      why: "Prevent against split-brain situations",
    },
    { from: "stop_replication", to: "wait_primary", why: "Confirmed promotion with the monitor" },
    { from: "wait_primary", to: "primary", why: "A healthy secondary appeared" },
  ]);
  expect(old.log(marks.old)).toMatch(/current state: primary, PostgreSQL is not running/);
  expect(old.path(marks.old)).toEqual([
    "primary",
    "draining",
    "demote_timeout",
    "demoted",
    "catchingup",
    "secondary",
  ]);
  expect(old.transitions(marks.old)).toContainEqual({
    from: "demoted",
    to: "catchingup",
    why: "A new primary is available. First, try to rewind. If that fails, do a pg_basebackup.",
  });
  expect(old.log(marks.old)).toMatch(/pg_rewind/);
  expect(old.log(marks.old)).not.toMatch(/pg_basebackup:|base backup/i);
  expect(old.dataDirectoryIdentity()).toBe(data);
  expect(candidate.log(marks.candidate)).toContain("Enabling synchronous replication");
  expect(writer.longestGapMs(timeMs)).toBeLessThan(OUTAGE_LIMIT_MS);

  const rules = (await cluster.events(marks.event)).map(({ rule }) => rule).filter(Boolean);
  expect(rules.length).toBeGreaterThan(2);
  await nothingLost(cluster, writer);
  expect(await cluster.writableNodes()).toEqual([candidate]);
}
