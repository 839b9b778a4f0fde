/** An old primary whose WAL has parted from the group's: rewound, or else replaced by a new copy. */
import { expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { Cluster } from "../helpers/cluster.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";

const TABLE_UNSENT = "select 1 from pg_class where relname = 'unsent'";

test("the old primary has WAL that nobody else has: pg_rewind takes it back", async () => {
  await using cluster = await Cluster.twoNodes("rewind");
  await telling(cluster, async () => {
    const old = await cluster.healthy(5000);
    const candidate = cluster.other(old);
    await using writer = await cluster.writer();

    const mark = old.mark();
    const data = old.dataDirectoryIdentity();
    await old.killWithUnsentWal();
    await cluster.waitForStates({ [old.label]: "secondary", [candidate.label]: "primary" }, 30_000);

    expect(old.log(mark)).toMatch(/pg_rewind/);
    expect(old.log(mark)).not.toMatch(/pg_basebackup:/);
    expect(old.dataDirectoryIdentity()).toBe(data);
    await nothingLost(cluster, writer);
    for (const node of cluster.nodes) expect(await node.ask(TABLE_UNSENT)).toEqual([]);
  });
}, 60_000);

test("pg_rewind fails: the old primary comes back by pg_basebackup", async () => {
  await using cluster = new Cluster("norewind");
  await telling(cluster, async () => {
    const pgctl = await binariesWithBrokenRewind(join(cluster.base, "postgresql"));
    await cluster.startMonitor();
    const old = await cluster.startNode("node1", ["--pgctl", pgctl]);
    const candidate = await cluster.startNode("node2");
    await cluster.healthy(20_000);
    await using writer = await cluster.writer();

    const mark = old.mark();
    const data = old.dataDirectoryIdentity();
    await old.killWithUnsentWal();
    await cluster.waitForStates({ node1: "secondary", node2: "primary" }, 30_000);

    expect(old.log(mark)).toMatch(/pg_rewind.*this one always fails/);
    expect(old.log(mark)).toMatch(/pg_basebackup/);
    expect(old.dataDirectoryIdentity()).not.toBe(data);
    expect(await candidate.ask("select slot_name, active from pg_replication_slots")).toEqual([
      { slot_name: "pgautofailover_standby_1", active: true },
    ]);
    await nothingLost(cluster, writer);
    for (const node of cluster.nodes) expect(await node.ask(TABLE_UNSENT)).toEqual([]);
  });
}, 60_000);

test("the old primary has lost its WAL: it comes back by pg_basebackup", async () => {
  await using cluster = await Cluster.twoNodes("nowal");
  await telling(cluster, async () => {
    const old = await cluster.healthy(5000);
    const candidate = cluster.other(old);
    await using writer = await cluster.writer();

    // The whole node dies, so that its WAL can go before its keeper looks at it.
    await old.kill();
    old.killPostgres();
    await cluster.waitForStates({ [candidate.label]: "wait_primary" }, 20_000);
    const wal = join(old.pgdata, "pg_wal");
    for (const name of readdirSync(wal)) {
      if (/^[0-9A-F]{24}$/.test(name)) rmSync(join(wal, name));
    }
    const mark = old.mark();
    const data = old.dataDirectoryIdentity();
    old.start();
    await cluster.waitForStates({ [old.label]: "secondary", [candidate.label]: "primary" }, 30_000);

    expect(old.log(mark)).toMatch(/pg_basebackup/);
    expect(old.dataDirectoryIdentity()).not.toBe(data);
    await nothingLost(cluster, writer);
  });
}, 60_000);

/**
 * A copy of PostgreSQL's programs, in which pg_rewind always fails; yields its pg_ctl. PostgreSQL
 * finds its libraries from where its programs are, so what stands beside them is linked.
 */
async function binariesWithBrokenRewind(prefix: string): Promise<string> {
  const { bindir } = await findBinaries({});
  const bin = join(prefix, "bin");
  mkdirSync(bin, { recursive: true });
  for (const name of readdirSync(dirname(bindir))) {
    if (name !== basename(bindir)) symlinkSync(join(dirname(bindir), name), join(prefix, name));
  }
  for (const name of readdirSync(bindir)) {
    copyFileSync(join(bindir, name), join(bin, name));
    chmodSync(join(bin, name), 0o755);
  }
  const fails = "#!/bin/sh\necho 'pg_rewind: error: this one always fails' >&2\nexit 1\n";
  writeFileSync(join(bin, "pg_rewind"), fails);
  return join(bin, "pg_ctl");
}
