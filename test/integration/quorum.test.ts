/** Whom commits wait for, and what follows from it: four nodes, and three of which one is asynchronous. */
import { expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import {
  freezeSender,
  nothingLost,
  type Scene,
  scenariosOf,
  telling,
} from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

const TIMEOUT_MS = 90_000;
const scenario = scenariosOf("quorum", [[], [], [], []]);

const names = async (primary: Service): Promise<string> => {
  const [row] = await primary.ask("select current_setting('synchronous_standby_names') as names");
  return String(row?.["names"]);
};

/** How many standbys each commit waits for, from when that is in force on. */
async function waitsFor({ cluster, primary }: Scene, number: number): Promise<void> {
  await cluster.setFormation("number_sync_standbys", String(number));
  await cluster.waitFor(`commits to wait for ${number}`, 10_000, async () => {
    const listed = /^ANY (\d+)/.exec(await names(primary))?.[1];
    return listed === String(number) && (await cluster.healthy(10_000)) === primary;
  });
}

scenario(
  "with two of three to wait for, the primary and a standby die at once: another one takes over",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    await waitsFor(scene, 2);
    const [gone = primary] = standbys;
    await writer.waitForWrites(20, 5000);
    await Promise.all([gone.die(), primary.die()]);
    await writer.waitForWrites(20, 15_000);
    gone.start();
    primary.start();
    await cluster.healthy(30_000);
  },
);

scenario(
  "with two of three to wait for, no commit is acknowledged by one",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, standbys, writer } = scene;
    await waitsFor(scene, 2);
    // two of the three receive nothing from here on, and nobody has noticed yet
    const ends = [];
    for (const standby of standbys.slice(0, 2)) ends.push(await freezeSender(scene, standby));
    const before = writer.acknowledged;
    await Bun.sleep(1500); // that nothing is acknowledged while it lasts is what is claimed
    expect(writer.acknowledged - before).toBeLessThanOrEqual(1);
    // then they count as stalled, are left out, and commits wait for the one that is left
    await writer.waitForWrites(20, 20_000);
    for (const end of ends) end("SIGCONT");
    await cluster.healthy(30_000);
    await waitsFor(scene, 1);
  },
);

scenario("settings change in the middle of a failover", TIMEOUT_MS, async (scene) => {
  const { cluster, primary, standbys, writer } = scene;
  const [one = primary, two = primary] = standbys;
  primary.killPostgres();
  await cluster.setFormation("number_sync_standbys", "2");
  await cluster.setPriority(one, 0);
  await cluster.setQuorum(two, false);
  await cluster.setFormation("durability", "protection");
  await writer.waitForWrites(20, 15_000);
  expect(await cluster.healthy(30_000)).not.toBe(one);
  await cluster.setFormation("durability", "availability");
  await cluster.setPriority(one, 50);
  await cluster.setQuorum(two, true);
  await cluster.setFormation("number_sync_standbys", "1");
  await cluster.healthy(20_000);
});

scenario(
  "protection: with every standby gone writes wait, and go on when one is back",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    await cluster.setFormation("durability", "protection");
    await Promise.all(standbys.map((standby) => standby.die()));
    await cluster.waitFor("the monitor to give them all up", 20_000, async () => {
      const states = await cluster.states();
      return states.filter(({ goal }) => goal === "catchingup").length === standbys.length;
    });
    expect(await names(primary)).not.toBe("");
    const before = writer.acknowledged;
    await Bun.sleep(1500); // that nothing is acknowledged while it lasts is what is claimed
    expect(writer.acknowledged - before).toBeLessThanOrEqual(1);
    for (const standby of standbys) standby.start();
    await writer.waitForWrites(20, 15_000);
    expect(await cluster.healthy(30_000)).toBe(primary);
    await cluster.setFormation("durability", "availability");
  },
);

test(
  "an asynchronous node is never counted, nor waited for",
  async () => {
    await using cluster = await Cluster.of("async", [[], [], ["--replication-quorum", "false"]]);
    await telling(cluster, async () => {
      const primary = await cluster.healthy(10_000);
      const asynchronous = cluster.node("node3");
      const quorum = cluster.nodes.find((node) => node !== primary && node !== asynchronous);
      if (primary === asynchronous || !quorum) throw new Error("the first node is the primary");
      await using writer = await cluster.writer();
      expect(await names(primary)).toBe("ANY 1 (pgautofailover_standby_2)");
      const since = await cluster.lastEventId();
      await Promise.all([quorum.die(), primary.die()]);
      await cluster.waitFor("the group to say that it is blocked", 15_000, async () => {
        return (await cluster.blocked(since)).length > 0;
      });
      expect(await cluster.writableNodes()).toEqual([]);
      quorum.start();
      await writer.waitForWrites(20, 15_000);
      primary.start();
      await cluster.healthy(30_000);
      await nothingLost(cluster, writer);
    });
  },
  TIMEOUT_MS,
);

test(
  "a node is added and another dropped in the middle of a failover",
  async () => {
    await using cluster = await Cluster.of("resize", [[], [], []]);
    await telling(cluster, async () => {
      const primary = await cluster.healthy(10_000);
      const [one = primary, two = primary] = cluster.nodes.filter((node) => node !== primary);
      await using writer = await cluster.writer();
      primary.killPostgres();
      const added = cluster.addNode("node4");
      const [created] = await Promise.all([
        added.tryCreate(),
        // refused while it takes part in the election; then it is tried again, as an operator would
        cluster.waitFor("node two to be dropped", 20_000, async () => {
          return (await two.command("drop", [])).code === 0;
        }),
      ]);
      if (created.code !== 0) await added.create();
      added.start();
      const left = [primary, one, added];
      await writer.waitForWrites(20, 15_000);
      // where the drop came first, too few were left for an election, and the primary has gone on
      const settled = await cluster.healthy(30_000, left);
      expect(["node1", "node2"]).toContain(settled.label);
      await nothingLost(cluster, writer, left);
    });
  },
  TIMEOUT_MS,
);
