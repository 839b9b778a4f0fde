/** Two nodes and a monitor, a host each: what becomes of the group when their links are cut. */
import { expect } from "bun:test";
import { PRESETS } from "../../lib/group/view.ts";
import { queryOnce } from "../../lib/sys/sql.ts";
import type { NetnsScene } from "../helpers/netns.ts";
import { netnsScenariosOf } from "../helpers/netns.ts";
import { usePreset } from "../helpers/preset.ts";
import { nowMs } from "../helpers/wait.ts";
import { HeldSession } from "./held_session.ts";
import { FAILOVER_LIMIT_MS, isolatedPrimary, STOP_LIMIT_MS, stopped } from "./isolated.ts";

const scenario = netnsScenariosOf("netns2", 2);

/** Twice the time after which a silent node could be taken for dead. */
const LONG_MS = 8000;

scenario("an isolated primary stops in time, its standby takes over, and it rejoins", (scene) =>
  isolatedPrimary(scene),
);

scenario("the same with the preset fast, in a third of the time", async (scene) => {
  await usePreset(scene.cluster, "fast", scene.standbys);
  await isolatedPrimary(scene, {
    stopMs: PRESETS.fast.networkPartitionTimeoutMs + 1500,
    failoverMs: FAILOVER_LIMIT_MS / 3,
  });
});

scenario(
  "a frozen keeper of an isolated primary wakes up: it fences before all else",
  async (scene) => {
    const { cluster, network, primary, secondary, writer } = scene;
    await using held = await HeldSession.open(primary);
    const cutMs = nowMs();
    primary.process?.signal("SIGSTOP");
    network.isolate(primary.label);
    const first = await cluster.waitFor("a write on the other node", FAILOVER_LIMIT_MS, () =>
      writer.firstElsewhere(primary.port, cutMs),
    );
    expect(primary.postmaster()).toBeDefined(); // Nobody was there to stop it.
    const mark = primary.mark();
    primary.process?.signal("SIGCONT");
    await stopped(primary, 1500);
    expect(primary.log(mark).split("\n")[0]).toContain("this primary stops itself");
    expect(held.acknowledgedSince(first.atMs)).toBe(0);
    network.heal();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(await held.lostOn(secondary)).toBe(0);
  },
);

scenario(
  "the keeper of an isolated primary is dead: its server acknowledges nothing, and a new keeper stops it first",
  async (scene) => {
    const { cluster, network, primary, secondary, writer } = scene;
    await using held = await HeldSession.open(primary);
    await primary.kill();
    const cutMs = nowMs();
    network.isolate(primary.label);
    const first = await cluster.waitFor("a write on the other node", FAILOVER_LIMIT_MS, () =>
      writer.firstElsewhere(primary.port, cutMs),
    );
    expect(primary.postmaster()).toBeDefined(); // Nobody was there to stop it.
    const mark = primary.mark();
    primary.start();
    await stopped(primary, STOP_LIMIT_MS);
    expect(primary.log(mark)).toContain("this primary stops itself");
    network.heal();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(held.acknowledgedSince(first.atMs)).toBe(0);
    expect(await held.lostOn(secondary)).toBe(0);
  },
);

scenario(
  "a whole host pauses and wakes up: it acknowledges nothing, and rejoins",
  async (scene) => {
    const { cluster, network, primary, secondary, writer } = scene;
    await using held = await HeldSession.open(primary);
    const pausedMs = nowMs();
    cluster.freezeHost(primary);
    network.isolate(primary.label);
    const first = await cluster.waitFor("a write on the other node", FAILOVER_LIMIT_MS, () =>
      writer.firstElsewhere(primary.port, pausedMs),
    );
    const mark = primary.mark();
    const before = primary.requirePostmaster();
    network.heal();
    cluster.thawHost(primary);
    await cluster.waitFor("the old server to end", 3000, () => primary.postmaster() !== before);
    expect(primary.log(mark).split("\n")[0]).toContain("this primary stops itself");
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(held.acknowledgedSince(first.atMs)).toBe(0);
    expect(await held.lostOn(secondary)).toBe(0);
  },
);

scenario(
  "a connection whose first packet is lost is made before the kernel repeats it",
  async (scene) => {
    const { cluster, network, primary } = scene;
    network.cutOneWay(["test"], [primary.label]);
    const beganMs = nowMs();
    const login = { user: cluster.login.user, database: "postgres", password: undefined };
    const target = {
      ...primary.address,
      ...login,
      applicationName: "test",
      connectTimeoutMs: 5000,
    };
    const asked = queryOnce(target, "select 1", [], { timeoutMs: 5000 });
    await Bun.sleep(100); // that its first packet is lost is what is tested
    network.heal();
    expect(await asked).toHaveLength(1);
    expect(nowMs() - beganMs).toBeLessThan(800);
  },
);

scenario("the link between the two is cut: the primary goes on alone, nobody fails over", (scene) =>
  aloneUntilHealed(scene, ({ network, primary, secondary }) =>
    network.cut([primary.label], [secondary.label]),
  ),
);

scenario("the primary doesn't hear its standby any more: it goes on alone", (scene) =>
  aloneUntilHealed(scene, ({ network, primary, secondary }) =>
    network.cutOneWay([secondary.label], [primary.label]),
  ),
);

scenario("the standby doesn't hear its primary any more: the primary goes on alone", (scene) =>
  aloneUntilHealed(scene, ({ network, primary, secondary }) =>
    network.cutOneWay([primary.label], [secondary.label]),
  ),
);

scenario("the monitor doesn't hear the primary, its standby does: writes go on", (scene) =>
  unharmed(scene, ({ network, primary }) => network.cutOneWay([primary.label], ["monitor"])),
);

scenario("the primary doesn't hear the monitor, but its standby: writes go on", (scene) =>
  unharmed(scene, ({ network, primary }) => network.cutOneWay(["monitor"], [primary.label])),
);

scenario("the monitor is cut off from everybody: writes go on, and nobody fails over", (scene) =>
  unharmed(scene, ({ network }) => network.isolate("monitor")),
);

scenario(
  "the monitor hears the primary again before its standby, whose silence proves nothing",
  (scene) =>
    unharmed(
      scene,
      async ({ cluster, network, primary }) => {
        network.isolate("monitor");
        await Bun.sleep(LONG_MS); // Both have been silent for longer than node_timeout.
        network.heal([primary.label], ["monitor"]);
        const heard =
          "select 1 from pgautofailover.node where nodeport = $1 and reporttime > now() - interval '1 s'";
        await cluster.waitFor("a report of the primary", 5000, async () => {
          return (await cluster.askMonitor(heard, [primary.port])).length > 0;
        });
      },
      1000,
    ),
);

scenario(
  "the monitor doesn't hear the primary for too long: its standby takes over",
  async (scene) => {
    const { cluster, network, primary, secondary, writer } = scene;
    await using held = await HeldSession.open(primary);
    await setUnreachableTimeout(scene, 8000);
    const cutMs = nowMs();
    network.cutOneWay([primary.label], ["monitor"]);
    const first = await cluster.waitFor("a write on the other node", 8000 + FAILOVER_LIMIT_MS, () =>
      writer.firstElsewhere(primary.port, cutMs),
    );
    await stopped(primary, STOP_LIMIT_MS);
    await writer.waitForWrites(20, 5000);
    network.heal();
    await setUnreachableTimeout(scene, 30_000);
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(first.atMs - cutMs).toBeGreaterThan(8000 - 1500); // The last report was no older than that.
    expect(held.acknowledgedSince(first.atMs)).toBe(0);
    expect(await held.lostOn(secondary)).toBe(0);
  },
);

const setUnreachableTimeout = ({ cluster }: NetnsScene, timeoutMs: number) =>
  cluster.askMonitor(
    "select pgautofailover.set_formation('default', 'unreachable_primary_timeout_ms', $1)",
    [String(timeoutMs)],
  );

/** After the cut the primary may no longer wait for its standby, and takes it back after the heal. */
async function aloneUntilHealed(
  scene: NetnsScene,
  cut: (scene: NetnsScene) => void,
): Promise<void> {
  const { cluster, network, primary, secondary, writer } = scene;
  const mark = secondary.mark();
  const cutMs = nowMs();
  cut(scene);
  await cluster.waitForStates({ [primary.label]: "wait_primary" }, 15_000);
  await writer.waitForWrites(20, 5000);
  expect(writer.firstElsewhere(primary.port, cutMs)).toBeUndefined();
  network.heal();
  expect(await cluster.healthy(20_000)).toBe(primary);
  expect(secondary.path(mark)).toEqual(["secondary", "catchingup", "secondary"]);
}

/** The cut takes the monitor's sight away, nothing else. */
async function unharmed(
  scene: NetnsScene,
  cut: (scene: NetnsScene) => Promise<void> | void,
  forMs = LONG_MS,
): Promise<void> {
  const { cluster, network, primary, secondary, writer } = scene;
  const marks = { primary: primary.mark(), secondary: secondary.mark() };
  const before = primary.requirePostmaster();
  const cutMs = nowMs();
  await cut(scene);
  await Bun.sleep(forMs); // That nothing happens for so long is the scenario.
  expect(writer.longestGapMs(cutMs)).toBeLessThan(1000);
  network.heal();
  expect(await cluster.healthy(20_000)).toBe(primary);
  expect(primary.postmaster()).toBe(before);
  expect(primary.path(marks.primary)).toEqual([]);
  expect(secondary.path(marks.secondary)).toEqual([]);
}
