/** Three nodes: who is promoted when the primary dies, and when nobody is. */
import { expect } from "bun:test";
import { runRole } from "../helpers/command.ts";
import { freezeSender, type Scene, scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("election", [[], [], []]);
const TIMEOUT_MS = 90_000;
/** Longest time that clients may be without an acknowledgement; the bench measures the real ones. */
const OUTAGE_LIMIT_MS = 3000;

/** The standby receives nothing from here on, and commits go on with the other; yields how the primary dies then. */
async function fallBehind(scene: Scene, standby: Service): Promise<() => void> {
  const end = await freezeSender(scene, standby);
  await scene.writer.waitForWrites(20, 3000);
  return () => {
    scene.primary.killPostgres();
    end("SIGKILL");
  };
}

scenario(
  "the primary dies: the standby with the higher priority takes over",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [, preferred = primary] = standbys;
    await cluster.setPriority(preferred, 70);
    const timeMs = nowMs();
    primary.killPostgres();
    await writer.waitForWrites(20, 10_000);
    expect(await cluster.healthy(20_000)).toBe(preferred);
    expect(writer.longestGapMs(timeMs)).toBeLessThan(OUTAGE_LIMIT_MS);
    await cluster.setPriority(preferred, 50);
  },
);

scenario("of equal priority, the most advanced standby takes over", TIMEOUT_MS, async (scene) => {
  const { cluster, primary, standbys, writer } = scene;
  const [behind = primary, ahead = primary] = standbys;
  const die = await fallBehind(scene, behind);
  const mark = behind.mark();
  die();
  await writer.waitForWrites(20, 10_000);
  expect(await cluster.healthy(20_000)).toBe(ahead);
  expect(behind.path(mark)).toEqual([
    "secondary",
    "report_lsn",
    "join_secondary",
    "catchingup",
    "secondary",
  ]);
});

scenario(
  "the most advanced standby has priority 0: the other one fetches what it lacks, and takes over",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [behind = primary, ahead = primary] = standbys;
    await cluster.setPriority(ahead, 0);
    const die = await fallBehind(scene, behind);
    const mark = behind.mark();
    die();
    await writer.waitForWrites(20, 10_000);
    expect(await cluster.healthy(20_000)).toBe(behind);
    expect(behind.path(mark).slice(0, 7)).toEqual([
      "secondary",
      "report_lsn",
      "fast_forward",
      "prepare_promotion",
      "stop_replication",
      "wait_primary",
      "primary",
    ]);
    await cluster.setPriority(ahead, 50);
  },
);

scenario("two failures, with time between them", TIMEOUT_MS, async (scene) => {
  const { cluster, primary, writer } = scene;
  primary.killPostgres();
  await writer.waitForWrites(20, 10_000);
  const second = await cluster.healthy(20_000);
  second.killPostgres();
  await writer.waitForWrites(20, 10_000);
  expect(await cluster.healthy(20_000)).not.toBe(second);
});

scenario(
  "the primary and one of two standbys die at once: nobody is promoted until it is back",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [left = primary, gone = primary] = standbys;
    const since = await cluster.lastEventId();
    const mark = left.mark();
    await Promise.all([gone.die(), primary.die()]);
    await cluster.waitFor("the group to say that it is blocked", 15_000, async () => {
      return (await cluster.blocked(since)).length > 0;
    });
    const [said = ""] = await cluster.blocked(since);
    expect(said).toContain(`"${await cluster.nameOf(gone)}"`);
    expect(said).toContain("--allow-data-loss");
    expect(await cluster.writableNodes()).toEqual([]);
    gone.start();
    await writer.waitForWrites(20, 15_000);
    expect(left.path(mark)).toContain("report_lsn");
    expect(await cluster.blocked(since)).toEqual([said]);
    primary.start();
    await cluster.healthy(30_000);
  },
);

scenario(
  "the primary and one of two standbys die at once: an operator accepts the loss",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [left = primary, gone = primary] = standbys;
    // what the one that is left has at this moment is not lost, whatever is allowed
    await writer.stop();
    await cluster.waitFor("all rows on the standby that is left", 5000, async () => {
      return (await writer.compareWith(left.address)).lost.length === 0;
    });
    const since = await cluster.lastEventId();
    await Promise.all([gone.die(), primary.die()]);
    await cluster.waitFor("the group to say that it is blocked", 15_000, async () => {
      return (await cluster.blocked(since)).length > 0;
    });
    const where = ["--monitor", cluster.monitorUri];
    const words = ["failover", ...where, "--allow-data-loss", "--yes", "--wait"];
    const accepted = await runRole("formation", words, { env: cluster.env });
    expect(accepted).toMatchObject({ code: 0, stderr: "" });
    expect(accepted.stdout).toContain(`"${await cluster.nameOf(left)}"`);
    expect(await cluster.writableNodes()).toEqual([left]);
    const told = (await cluster.events(since)).map(({ description }) => description);
    expect(told.filter((text) => text.includes("bytes ahead"))).toHaveLength(1);
    primary.start();
    gone.start();
    expect(await cluster.healthy(30_000)).toBe(left);
  },
);

scenario(
  "a standby is killed: commits go on with the other, and it is waited for again",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [one = primary] = standbys;
    const mark = primary.mark();
    const timeMs = nowMs();
    one.killPostgres();
    await writer.waitForWrites(50, 5000);
    expect(await cluster.healthy(20_000)).toBe(primary);
    expect(writer.longestGapMs(timeMs)).toBeLessThan(1000);
    expect(primary.path(mark)).not.toContain("wait_primary");
  },
);

scenario("everything is killed at once, and comes back", TIMEOUT_MS, async (scene) => {
  const { cluster, writer } = scene;
  await Promise.all(cluster.nodes.map((node) => node.die()));
  for (const node of cluster.nodes) node.start();
  await writer.waitForWrites(20, 20_000);
  await cluster.healthy(30_000);
});
