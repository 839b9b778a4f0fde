/** `create`, a base backup and a rewind are killed, or told to reload, half-way: it's mended, or goes on. */
import { expect, test } from "bun:test";
import { closeSync, ftruncateSync, openSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { RunningRole, roleCommand } from "../helpers/command.ts";
import { giveTo, type Owner } from "../helpers/owner.ts";
import { processesUnder } from "../helpers/processes.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

/** Makes a copy take long enough to be met half-way; a hole on the disk of its first owner. */
const BALLAST_BYTES = 400 * 1024 * 1024;
/** Half-way: this much has been copied. */
const SOME_BYTES = 40 * 1024 * 1024;

test("create is killed after each line that it says, for monitor, primary and secondary", async () => {
  await using cluster = new Cluster("killedcreate");
  await telling(cluster, async () => {
    await createDespiteKills(cluster.monitor);
    cluster.monitor.start();
    const primary = cluster.addNode("node1");
    await cluster.waitFor(
      "the monitor to answer",
      5000,
      async () => (await cluster.states()).length === 0,
    );
    await createDespiteKills(primary);
    primary.start();
    const secondary = cluster.addNode("node2");
    await createDespiteKills(secondary);
    secondary.start();
    expect(await cluster.healthy(20_000)).toBe(primary);
    expect((await cluster.states()).length).toBe(2);
    for (const service of [cluster.monitor, primary, secondary]) expectNoLitter(cluster, service);
  });
}, 120_000);

test("kill -9 in the middle of a base backup: nothing starts on half a copy, the next create completes it", async () => {
  await using cluster = new Cluster("killedbackup");
  await telling(cluster, async () => {
    await cluster.startMonitor();
    const primary = await cluster.startNode("node1");
    await cluster.waitForStates({ node1: "single" }, 15_000);
    makeBallast(cluster.owner, primary);
    await using writer = await cluster.writer();

    const secondary = cluster.addNode("node2");
    for (let time = 0; time < 2; time += 1) {
      const create = startCreate(cluster, secondary);
      await cluster.waitFor("half a base backup", 20_000, async () => {
        if (!create.running) throw new Error("create has ended");
        const rows = await primary.ask(
          "select backup_streamed as bytes from pg_stat_progress_basebackup",
        );
        return rows.some((row) => Number(row["bytes"]) > SOME_BYTES);
      });
      create.signal("SIGKILL");
      await create.ended(2000);
      expect(secondary.postmaster()).toBeUndefined();
    }
    await secondary.create();
    expect(statSync(join(secondary.pgdata, "ballast")).size).toBe(BALLAST_BYTES);
    secondary.start();
    expect(await cluster.healthy(20_000)).toBe(primary);
    expectNoLitter(cluster, secondary);
    await nothingLost(cluster, writer);
  });
}, 90_000);

type Rewind = {
  readonly cluster: Cluster;
  /** The old primary, which is being rewound, and the node that it's rewound from. */
  readonly old: Service;
  readonly source: Service;
  /** From before the old primary was killed. */
  readonly mark: number;
  readonly keeper: number | undefined;
};

/** A rewind is half done when `body` begins, and complete when it has ended. */
function inARewind(name: string, label: string, body: (rewind: Rewind) => Promise<void>): void {
  test(name, async () => {
    await using cluster = await Cluster.twoNodes(label);
    await telling(cluster, async () => {
      const old = await cluster.healthy(5000);
      const source = cluster.other(old);
      makeBallast(cluster.owner, source); // A rewind copies each file that the source has more.
      await using writer = await cluster.writer();
      const [mark, keeper] = [old.mark(), old.process?.pid];
      await old.killWithUnsentWal();
      await cluster.waitFor("half a rewind", 20_000, () => ballastBytes(old) > SOME_BYTES);
      await body({ cluster, old, source, mark, keeper });
      expect(ballastBytes(old)).toBe(BALLAST_BYTES);
      rmSync(join(source.pgdata, "ballast"));
      await nothingLost(cluster, writer);
    });
  }, 90_000);
}

inARewind(
  "kill -9 in the middle of a rewind: nothing starts on half-rewound data, the next run completes it",
  "killedrewind",
  async ({ cluster, old, source }) => {
    expect(ballastBytes(old)).toBeLessThan(BALLAST_BYTES);
    await old.kill();
    await cluster.waitFor("the rewind's own end", 3000, () => {
      return processesUnder(old.pgdata).length === 0;
    });
    expect(ballastBytes(old)).toBeLessThan(BALLAST_BYTES);

    const mark = old.mark();
    old.start();
    expect(await cluster.healthy(30_000)).toBe(source);
    expect(old.log(mark)).toMatch(/pg_rewind|pg_basebackup/);
    expectNoLitter(cluster, old);
  },
);

inARewind(
  "SIGHUP in the middle of a rewind: nothing is killed, and the rewind completes",
  "reloadedrewind",
  async ({ cluster, old, source, mark, keeper }) => {
    const rewinds = () =>
      processesUnder(old.pgdata).filter(({ command }) => /pg_rewind/.test(command));
    const before = rewinds().map(({ pid }) => pid);
    expect((await old.command("reload")).code).toBe(0);
    await old.waitForLog(/Reloading the settings/, 5000, mark);
    expect(before.length).toBeGreaterThan(0);
    expect(rewinds().map(({ pid }) => pid)).toEqual(before);

    expect(await cluster.healthy(30_000)).toBe(source);
    expect(old.process).toMatchObject({ pid: keeper, running: true });
    expect(old.log(mark).match(/Rewinding with pg_rewind/g)).toHaveLength(1);
    expect(old.log(mark)).not.toContain("Copying the primary");
  },
);

inARewind(
  "the source dies in the middle of a rewind: nothing starts on half-rewound data, and both come back",
  "sourcegone",
  async ({ cluster, old, source, mark }) => {
    source.killPostgres();
    expect(ballastBytes(old)).toBeLessThan(BALLAST_BYTES);
    expect(await cluster.healthy(40_000)).toBe(source);
    expect(old.log(mark)).toMatch(/pg_rewind failed, falling back to pg_basebackup/);
    expectNoLitter(cluster, old);
  },
);

test("SIGHUP in the middle of a base backup: nothing is killed, and the backup completes", async () => {
  await using cluster = await Cluster.twoNodes("reloadedbackup");
  await telling(cluster, async () => {
    const secondary = await cluster.healthy(5000);
    const primary = cluster.other(secondary);
    await using writer = await cluster.writer();

    // Without its WAL an old primary can't be rewound: its keeper copies the new one.
    await secondary.die();
    await cluster.waitForStates({ [primary.label]: "wait_primary" }, 20_000);
    makeBallast(cluster.owner, primary);
    const wal = join(secondary.pgdata, "pg_wal");
    for (const name of readdirSync(wal)) {
      if (/^[0-9A-F]{24}$/.test(name)) rmSync(join(wal, name));
    }
    const mark = secondary.mark();
    secondary.start();
    const backups = () =>
      processesUnder(cluster.base).filter(({ command }) => /pg_basebackup/.test(command));
    await cluster.waitFor("half a base backup", 20_000, async () => {
      const rows = await primary.ask(
        "select backup_streamed as bytes from pg_stat_progress_basebackup",
      );
      return rows.some((row) => Number(row["bytes"]) > SOME_BYTES);
    });
    const keeper = secondary.process?.pid;
    const before = backups().map(({ pid }) => pid);
    expect((await secondary.command("reload")).code).toBe(0);
    await secondary.waitForLog(/Reloading the settings/, 5000, mark);
    expect(before.length).toBeGreaterThan(0);
    expect(backups().map(({ pid }) => pid)).toEqual(before);

    expect(await cluster.healthy(30_000)).toBe(primary);
    expect(secondary.process).toMatchObject({ pid: keeper, running: true });
    expect(secondary.log(mark).match(/Copying the primary with pg_basebackup/g)).toHaveLength(1);
    expect(ballastBytes(secondary)).toBe(BALLAST_BYTES);
    expectNoLitter(cluster, secondary);
    rmSync(join(primary.pgdata, "ballast"));
    await nothingLost(cluster, writer);
  });
}, 90_000);

/** Kills `create` after its first line, then after its second, … until it gets through. */
async function createDespiteKills(service: Service): Promise<void> {
  for (let lines = 1; lines < 60; lines += 1) {
    const outcome = await service.tryCreate([], {
      killWhen: (stderr) => stderr.split("\n").length > lines,
    });
    if (outcome.code === 0) return;
    // Killed by us and by nothing else: every create before took up what it found.
    expect({ lines, code: outcome.code, stderr: outcome.stderr }).toMatchObject({ code: null });
  }
  throw new Error(`create of ${service.label} never gets through`);
}

function startCreate(cluster: Cluster, service: Service): RunningRole {
  const flags = ["create", "--pgdata", service.pgdata, "--pgport", String(service.port)];
  const command = roleCommand(service.role, [...flags, ...service.createFlags]);
  return new RunningRole(command, service.env, join(cluster.base, `${service.label}.create.log`));
}

/** A hole in PGDATA's top directory, which copies fill with zeros. */
function makeBallast(owner: Owner, { pgdata }: Service): void {
  const path = join(pgdata, "ballast");
  const fd = openSync(path, "w", 0o600);
  ftruncateSync(fd, BALLAST_BYTES);
  closeSync(fd);
  giveTo(owner, path);
}

const ballastBytes = ({ pgdata }: Service): number =>
  statSync(join(pgdata, "ballast"), { throwIfNoEntry: false })?.size ?? 0;

/** No half copy and no temporary file stands beside PGDATA. */
function expectNoLitter(cluster: Cluster, { label }: Service): void {
  const known = new Set([label, `${label}.log`, `${label}.create.log`]);
  const litter = readdirSync(cluster.base).filter(
    (name) => name.startsWith(label) && !known.has(name),
  );
  expect(litter).toEqual([]);
}
