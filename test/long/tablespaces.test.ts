/** A group whose data is in tablespaces too, each node's on a file system of its own. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { mountObstacle, type PrivateMounts, privateMounts } from "../helpers/mounts.ts";
import { giveTo } from "../helpers/owner.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { waitFor } from "../helpers/wait.ts";

const obstacle = mountObstacle();
if (obstacle !== undefined) console.error(`skipping the tests of tablespaces: ${obstacle}`);
const END_MS = 30_000;

/** Nodes that see under `disk` a directory of their own, whose name is theirs with `.disk`. */
class Disks implements AsyncDisposable {
  readonly #mounts = new Map<string, PrivateMounts>();
  readonly cluster: Cluster;
  readonly disk: string;

  private constructor(cluster: Cluster) {
    this.cluster = cluster;
    this.disk = cluster.directory("disk");
  }

  static async of(label: string, nodes: readonly string[]): Promise<Disks> {
    const places = new Map<string, PrivateMounts>();
    const cluster = new Cluster(label, {
      placeOf: (node) => places.get(node)?.place ?? { host: "localhost", prefix: [] },
    });
    const disks = new Disks(cluster);
    for (const node of nodes) {
      const mounts = await privateMounts({ [disks.disk]: cluster.directory(`${node}.disk`) });
      places.set(node, mounts);
      disks.#mounts.set(node, mounts);
    }
    return disks;
  }

  /** What a node has below its disk. */
  on(node: Service, ...path: string[]): string {
    return join(this.cluster.base, `${node.label}.disk`, ...path);
  }

  /** Makes a directory on one node's disk only, and a tablespace in it with a table. */
  async tablespace(primary: Service, name: string, rows: number): Promise<void> {
    if (name !== "disk") {
      mkdirSync(this.on(primary, name), { mode: 0o700 });
      giveTo(this.cluster.owner, this.on(primary, name));
    }
    const location = name === "disk" ? this.disk : join(this.disk, name);
    await primary.ask(`create tablespace ${name} location '${location}'`);
    await primary.ask(
      `create table in_${name} tablespace ${name} as select i from generate_series(1, ${rows}) i`,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.cluster[Symbol.asyncDispose]();
    } finally {
      for (const mounts of this.#mounts.values()) mounts[Symbol.dispose]();
    }
  }
}

/** What pg_auto_failover leaves beside PostgreSQL's own directory while it works. */
const litter = (directory: string): string[] =>
  readdirSync(directory, { recursive: true, encoding: "utf8" }).filter((path) =>
    path.includes("pg_auto_failover"),
  );

const countOn = async (node: Service, table: string): Promise<number> => {
  const [row] = await node.ask(`select count(*)::int as count from ${table}`);
  return Number(row?.["count"]);
};

test.skipIf(obstacle !== undefined)(
  "tablespaces are copied, replayed, rewound, copied again over what is there, and removed",
  async () => {
    await using disks = await Disks.of("spaces", ["node1", "node2"]);
    const { cluster } = disks;
    await telling(cluster, async () => {
      await cluster.startMonitor();
      const first = await cluster.startNode("node1");
      await cluster.waitForStates({ node1: "single" }, END_MS);
      await disks.tablespace(first, "early", 1000);
      await disks.tablespace(first, "disk", 1000); // a mount point

      // the second node has neither directory below its disk
      const second = await cluster.startNode("node2");
      await cluster.healthy(END_MS);
      expect(await countOn(second, "in_early")).toBe(1000);
      expect(await countOn(second, "in_disk")).toBe(1000);
      expect(litter(disks.on(second))).toEqual([]);

      // PostgreSQL ends on a standby that lacks the directory of a new one
      const before = second.requirePostmaster();
      await disks.tablespace(first, "late", 10);
      await second.newPostmaster(before, END_MS);
      await cluster.healthy(END_MS);
      await cluster.waitFor("the new table", 5000, async () => {
        return (await countOn(second, "in_late")) === 10;
      });

      // failover, and the old primary is rewound
      await using writer = await cluster.writer();
      const mark = first.mark();
      await first.killWithUnsentWal();
      await cluster.waitForStates({ node1: "secondary", node2: "primary" }, END_MS);
      expect(first.log(mark)).toMatch(/pg_rewind/);
      expect(first.log(mark)).not.toMatch(/Copying the primary/);
      await second.ask("insert into in_early select i from generate_series(1, 500) i");
      await cluster.waitFor("the rows", 5000, async () => {
        return (await countOn(first, "in_early")) === 1500;
      });

      // a second copy, over what the first has left; killed where it takes its place
      await second.die();
      await cluster.waitForStates({ node1: "wait_primary" }, END_MS);
      await first.ask("drop table in_late");
      await first.ask("drop tablespace late");
      await disks.tablespace(first, "later", 20);
      const wal = join(second.pgdata, "pg_wal");
      for (const name of readdirSync(wal)) {
        if (/^[0-9A-F]{24}$/.test(name)) rmSync(join(wal, name));
      }
      const data = second.dataDirectoryIdentity();
      fillUp(disks.on(second, "early"));
      second.start();
      await killAtSwap(second, disks.on(second, "early"));
      expect(second.postmaster()).toBeUndefined();
      second.start();
      expect(await cluster.healthy(END_MS)).toBe(first);
      expect(second.dataDirectoryIdentity()).not.toBe(data);
      expect(await countOn(second, "in_early")).toBe(1500);
      expect(await countOn(second, "in_later")).toBe(20);
      expect(readdirSync(disks.on(second, "late"))).toEqual([]);
      expect(litter(disks.on(second))).toEqual([]);
      await nothingLost(cluster, writer);

      expect((await second.command("drop", ["--destroy"])).code).toBe(0);
      expect(existsSync(second.pgdata)).toBe(false);
      const left = readdirSync(disks.on(second), { recursive: true, encoding: "utf8" });
      expect(left.sort()).toEqual(["early", "late", "later"]);
    });
  },
  120_000,
);

/** So much that its removal takes a while on any disk. */
function fillUp(location: string): void {
  const [version = ""] = readdirSync(location).filter((name) => name.startsWith("PG_"));
  for (let i = 0; i < 10_000; i += 1) writeFileSync(join(location, version, `left${i}`), "");
}

/** Kills a keeper as soon as what a tablespace held is put aside for its new copy. */
async function killAtSwap(node: Service, location: string): Promise<void> {
  const replaced = join(location, "pg_auto_failover_replaced");
  await waitFor("what was there to be put aside", END_MS, () => existsSync(replaced), {
    everyMs: 1,
    explain: () => node.log(),
  });
  node.process?.signal("SIGKILL");
  await node.process?.ended(2000);
}

test("two nodes on one machine can't share a tablespace: refused before anything is touched", async () => {
  await using cluster = new Cluster("shared");
  await cluster.startMonitor();
  const first = await cluster.startNode("node1");
  await cluster.waitForStates({ node1: "single" }, END_MS);
  const location = cluster.directory("space");
  await first.ask(`create tablespace space location '${location}'`);
  await first.ask("create table in_space tablespace space as select 1 as i");
  const second = cluster.addNode("node2");
  const refused = await second.tryCreate();
  expect(refused.code).toBe(7);
  expect(refused.stderr).toContain("the place of a tablespace holds another server's files");
  expect(refused.stderr).toContain(location);
  expect(existsSync(second.pgdata)).toBe(false);
  expect(litter(location)).toEqual([]);
  expect(await cluster.states()).toHaveLength(1);

  // one that is made later is shared unnoticed; the removal of one node leaves the other's files
  await first.ask("drop table in_space");
  await first.ask("drop tablespace space");
  await second.create();
  second.start();
  await cluster.healthy(END_MS);
  await first.ask(`create tablespace space location '${location}'`);
  await first.ask("create table in_space tablespace space as select 1 as i");
  await first.ask("checkpoint");
  const files = () => readdirSync(location, { recursive: true, encoding: "utf8" }).sort();
  const before = files();
  const dropped = await second.command("drop", ["--destroy"]);
  expect(dropped.stderr).toContain("another server uses them");
  expect(existsSync(second.pgdata)).toBe(false);
  expect(files()).toEqual(before);
}, 60_000);
