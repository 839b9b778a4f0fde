/** Three nodes: planned work. The primary hands over, and nodes are left alone for maintenance. */
import { expect } from "bun:test";
import { type RoleName, runRole } from "../helpers/command.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("switchover", [[], [], []]);
const TIMEOUT_MS = 90_000;
/** Longest time that clients may be without an acknowledgement; the bench measures the real ones. */
const OUTAGE_LIMIT_MS = 3000;

const run = ({ cluster }: Scene, role: RoleName, ...words: string[]) =>
  runRole(role, [...words, "--monitor", cluster.monitorUri, "--json"], { env: cluster.env });

scenario("the primary hands over to the node that is named", TIMEOUT_MS, async (scene) => {
  const { cluster, primary, standbys, writer } = scene;
  const [, target = primary] = standbys;
  const name = await cluster.nameOf(target);
  const [before, after] = [primary.mark(), target.mark()];
  const timeMs = nowMs();
  const done = await run(scene, "formation", "switchover", "--to", name);
  expect(done).toMatchObject({ code: 0, stderr: "" });
  const { outageMs, ...answer } = JSON.parse(done.stdout);
  expect(answer).toMatchObject({ name, port: target.port });
  await writer.waitForWrites(20, 10_000);
  expect(writer.longestGapMs(timeMs)).toBeLessThan(OUTAGE_LIMIT_MS);
  expect(outageMs).toBeWithin(1, OUTAGE_LIMIT_MS);
  expect(await cluster.healthy(20_000)).toBe(target);
  expect(target.path(after).slice(0, 5)).toEqual([
    "secondary",
    "prepare_promotion",
    "stop_replication",
    "wait_primary",
    "primary",
  ]);
  expect(primary.path(before)).toEqual([
    "primary",
    "draining",
    "demote_timeout",
    "demoted",
    "catchingup",
    "secondary",
  ]);
});

scenario("the target says no more: the old primary goes on", TIMEOUT_MS, async (scene) => {
  const { cluster, primary, standbys, writer } = scene;
  const [target = primary] = standbys;
  target.process?.signal("SIGSTOP");
  const done = await run(scene, "formation", "switchover", "--to", await cluster.nameOf(target));
  expect(done).toMatchObject({ code: 3, stdout: "" });
  expect(done.stderr).toContain("the old primary goes on");
  await writer.waitForWrites(20, 10_000);
  target.process?.signal("SIGCONT");
  expect(await cluster.healthy(20_000)).toBe(primary);
});

scenario("a standby in maintenance is left alone", TIMEOUT_MS, async (scene) => {
  const { cluster, standbys, primary, writer } = scene;
  const [node = primary] = standbys;
  const name = await cluster.nameOf(node);
  const on = await run(scene, "node", "maintenance", "on", "--name", name);
  expect(on).toMatchObject({ code: 0, stderr: "" });
  expect(JSON.parse(on.stdout)).toMatchObject({ name, state: "maintenance" });
  // nobody waits for it, nobody starts it again, also a keeper that was restarted
  await node.die();
  node.start();
  await writer.waitForWrites(100, 10_000);
  expect(node.postmaster()).toBeUndefined();
  const off = await run(scene, "node", "maintenance", "off", "--name", name);
  expect(off).toMatchObject({ code: 0, stderr: "" });
  expect(await cluster.healthy(20_000)).toBe(primary);
});

scenario(
  "what a standby receives while it asks the primary where that is doesn't count as a fork",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, secondary } = scene;
    const name = await cluster.nameOf(secondary);
    const [mark, server] = [secondary.mark(), secondary.requirePostmaster()];
    for (const word of ["on", "off", "on", "off", "on", "off"]) {
      expect((await run(scene, "node", "maintenance", word, "--name", name)).code).toBe(0);
    }
    expect(secondary.log(mark)).not.toContain("is not part of the primary's");
    expect(secondary.postmaster()).toBe(server);
  },
);

scenario(
  "the primary goes into maintenance when another node may take over",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary } = scene;
    const name = await cluster.nameOf(primary);
    const refused = await run(scene, "node", "maintenance", "on", "--name", name);
    expect(refused).toMatchObject({ code: 7, stdout: "" });
    expect(refused.stderr).toContain("--allow-failover");
    const on = await run(scene, "node", "maintenance", "on", "--name", name, "--allow-failover");
    expect(on).toMatchObject({ code: 0, stderr: "" });
    expect(await cluster.writableNodes()).not.toContain(primary);
    const off = await run(scene, "node", "maintenance", "off", "--name", name);
    expect(off).toMatchObject({ code: 0, stderr: "" });
  },
);
