/** No room for the keeper's own files: it says so, keeps its promises, and goes on when there is. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { Cluster } from "../helpers/cluster.ts";
import { serverOwner } from "../helpers/owner.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";
import { mountSmallDisk, type SmallDisk } from "../helpers/small_disk.ts";

const trial = mountSmallDisk(serverOwner());
const why = typeof trial === "string" ? trial : "";
if (why) console.log(`skipping the tests of a full disk: ${why}`);
else (trial as SmallDisk)[Symbol.dispose]();

const CANNOT_SAVE = /could not save the state of this node/;

test.skipIf(why !== "")(
  "create on a full disk: one line, and it works once there is room",
  async () => {
    using disk = requireDisk();
    await using cluster = new Cluster("fullcreate");
    await cluster.startMonitor();
    const node = cluster.addNode("node1", [], { env: { XDG_DATA_HOME: disk.path } });
    disk.fill();
    expectRefusal(await node.tryCreate(), { code: [3, 4, 5], says: /./ });
    expect(node.postmaster()).toBeUndefined();
    expect(existsSync(node.pgdata) && readdirSync(node.pgdata).length > 0).toBe(false);
    disk.free();
    await node.create();
    node.start();
    await cluster.waitForStates({ node1: "single" }, 15_000);
  },
  60_000,
);

test.skipIf(why !== "")(
  "the candidate's disk is full when the primary dies: nothing is lost, and it heals",
  async () => {
    using disk = requireDisk();
    await using cluster = new Cluster("fullcandidate");
    await telling(cluster, async () => {
      await cluster.startMonitor();
      const primary = await cluster.startNode("node1");
      const candidate = cluster.addNode("node2", [], { env: { XDG_DATA_HOME: disk.path } });
      await candidate.create();
      candidate.start();
      await cluster.healthy(20_000);
      await using writer = await cluster.writer();

      const mark = candidate.mark();
      disk.fill();
      primary.killPostgres();
      await candidate.waitForLog(CANNOT_SAVE, 10_000, mark);
      expect(candidate.process?.running).toBe(true);
      disk.free();
      await nothingLost(cluster, writer);
    });
  },
  60_000,
);

test.skipIf(why !== "")(
  "the primary's disk is full when the secondary dies: it says so and goes on once there is room",
  async () => {
    using disk = requireDisk();
    await using cluster = new Cluster("fullprimary");
    await telling(cluster, async () => {
      await cluster.startMonitor();
      const primary = cluster.addNode("node1", [], { env: { XDG_DATA_HOME: disk.path } });
      await primary.create();
      primary.start();
      const secondary = await cluster.startNode("node2");
      await cluster.healthy(20_000);
      await using writer = await cluster.writer();

      const mark = primary.mark();
      const postmaster = primary.postmaster();
      disk.fill();
      secondary.killPostgres();
      await primary.waitForLog(CANNOT_SAVE, 10_000, mark);
      expect(primary.process?.running).toBe(true);
      expect(primary.postmaster()).toBe(postmaster);
      disk.free();
      await nothingLost(cluster, writer);
    });
  },
  60_000,
);

function requireDisk(): SmallDisk {
  const disk = mountSmallDisk(serverOwner());
  if (typeof disk === "string") throw new Error(disk);
  return disk;
}
