/** Keepers and monitor die or freeze; PostgreSQL and its clients don't notice. */
import { expect } from "bun:test";
import type { Cluster } from "../helpers/cluster.ts";
import { killUnder } from "../helpers/processes.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("processes");

/**
 * Every way in which these faults could stop writes lasts longer: the shortest timer is the 2.5 s of
 * `network_partition_timeout`. Below it, the disk of a busy machine alone has taken 0.8 s.
 */
const NO_OUTAGE_MS = 2000;

/** A restarted keeper must have reported by then. */
const UNDER_CONTROL_MS = 2000;

scenario(
  "kill -9 of a keeper: PostgreSQL stays, and is under control again 2 s after the restart",
  40_000,
  async (scene) => {
    const { cluster, writer } = scene;
    for (const node of [scene.primary, scene.secondary]) {
      const timeMs = nowMs();
      const postmaster = node.requirePostmaster();
      await node.kill();
      await writer.waitForWrites(20, 5000);
      const mark = node.mark();
      const before = await lastReport(cluster, node);
      node.start();
      await cluster.waitFor(`a report of ${node.label}`, UNDER_CONTROL_MS, async () => {
        const report = await lastReport(cluster, node);
        return report.number > before.number && report.running && report.state === before.state;
      });
      expect(node.postmaster()).toBe(postmaster);
      expect(node.path(mark)).toEqual([]);
      expect(writer.longestGapMs(timeMs)).toBeLessThan(NO_OUTAGE_MS);
      await cluster.healthy(5000);
    }
  },
);

scenario(
  "a keeper restarted after kill -9 still sees its adopted postmaster die",
  40_000,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await primary.kill();
    primary.start();
    await reportsArrive(cluster, UNDER_CONTROL_MS);
    await cluster.healthy(UNDER_CONTROL_MS);
    const timeMs = nowMs();
    primary.killPostgres();
    await cluster.waitForStates(
      { [secondary.label]: "primary", [primary.label]: "secondary" },
      30_000,
    );
    expect(writer.longestGapMs(timeMs)).toBeLessThan(3000);
  },
);

scenario(
  "kill -9 of the monitor's process: no write stops, nobody fails over",
  40_000,
  async (scene) => {
    await undisturbed(scene, async ({ cluster, primary, secondary, writer }) => {
      await cluster.monitor.kill();
      await pastNodeTimeout(scene);
      cluster.monitor.start();
      await cluster.monitor.waitForLog(/./, 3000, cluster.monitor.process?.logStart);
      await cluster.waitForStates(
        { [primary.label]: "primary", [secondary.label]: "secondary" },
        5000,
      );
      await writer.waitForWrites(50, 5000);
    });
  },
);

scenario(
  "kill -9 of the monitor's PostgreSQL: its process brings it back, no write stops",
  40_000,
  async (scene) => {
    await undisturbed(scene, async ({ cluster, writer }) => {
      const before = cluster.monitor.killPostgres();
      await cluster.monitor.newPostmaster(before, 10_000);
      await reportsArrive(cluster, 15_000);
      await writer.waitForWrites(50, 5000);
    });
  },
);

scenario(
  "the whole monitor is gone for longer than every timer: no write stops, nobody fails over",
  60_000,
  async (scene) => {
    await undisturbed(scene, async ({ cluster }) => {
      await killMonitor(cluster);
      await pastNodeTimeout(scene);
      cluster.monitor.start();
      await reportsArrive(cluster, 10_000);
      await pastNodeTimeout(scene);
    });
  },
);

scenario(
  "the primary dies while the monitor is gone: the group heals when the monitor is back",
  60_000,
  async (scene) => {
    const { cluster, primary, writer } = scene;
    await killMonitor(cluster);
    await writer.waitForWrites(20, 5000);
    const mark = primary.mark();
    primary.killPostgres();
    await primary.waitForLog(/PostgreSQL is not running|could not reach the monitor/, 5000, mark);
    cluster.monitor.start();
    await cluster.healthy(20_000);
    await writer.waitForWrites(20, 10_000);
  },
);

scenario(
  "the primary's keeper is frozen for 10 s: it wakes up, and nothing is lost",
  60_000,
  async (scene) => {
    const { primary, writer } = scene;
    const postmaster = primary.requirePostmaster();
    primary.process?.signal("SIGSTOP");
    await Bun.sleep(10_000); // The freeze is the scenario: longer than every timer of the formation.
    const frozenMs = nowMs();
    expect(primary.postmaster()).toBe(postmaster);
    primary.process?.signal("SIGCONT");
    await writer.waitForWrites(50, 15_000);
    expect(writer.longestGapMs(frozenMs)).toBeLessThan(8000);
  },
);

scenario("the secondary's keeper is frozen for 6 s: no write stops", 60_000, async (scene) => {
  const { secondary, writer } = scene;
  const timeMs = nowMs();
  secondary.process?.signal("SIGSTOP");
  await pastNodeTimeout(scene);
  secondary.process?.signal("SIGCONT");
  await writer.waitForWrites(50, 5000);
  expect(writer.longestGapMs(timeMs)).toBeLessThan(NO_OUTAGE_MS);
});

/** Runs `body` and expects that no client saw an outage, no postmaster ended, no state changed. */
async function undisturbed(scene: Scene, body: (scene: Scene) => Promise<void>): Promise<void> {
  const { primary, secondary, writer } = scene;
  const nodes = [primary, secondary];
  const before = nodes.map((node) => ({ mark: node.mark(), postmaster: node.postmaster() }));
  const timeMs = nowMs();
  await body(scene);
  for (const [index, node] of nodes.entries()) {
    expect(node.path(before[index]?.mark)).toEqual([]);
    expect(node.postmaster()).toBe(before[index]?.postmaster);
  }
  expect(writer.longestGapMs(timeMs)).toBeLessThan(NO_OUTAGE_MS);
}

/** Lets 6 s go by, counted in the writes that go on meanwhile: more than `node_timeout`. */
async function pastNodeTimeout({ cluster, writer }: Scene): Promise<void> {
  const endMs = nowMs() + 6000;
  await cluster.waitFor("6 s to go by", 10_000, () => nowMs() > endMs);
  await writer.waitForWrites(5, 2000);
}

async function killMonitor(cluster: Cluster): Promise<void> {
  await cluster.monitor.kill();
  killUnder(cluster.monitor.pgdata);
  await cluster.waitFor(
    "the monitor's end",
    3000,
    () => cluster.monitor.postmaster() === undefined,
  );
}

type LastReport = { number: bigint; state: string; running: boolean };

async function lastReport(cluster: Cluster, node: Service): Promise<LastReport> {
  const [row] = await cluster.askMonitor(
    "select reportno, reportedstate, reportedpgisrunning from pgautofailover.node where nodeport = $1",
    [node.port],
  );
  return {
    number: BigInt(String(row?.["reportno"])),
    state: String(row?.["reportedstate"]),
    running: row?.["reportedpgisrunning"] === true,
  };
}

/** Waits until every keeper has reported to this monitor after now. */
async function reportsArrive(cluster: Cluster, timeoutMs: number): Promise<void> {
  let first: bigint[] | undefined;
  await cluster.waitFor("a report of every keeper", timeoutMs, async () => {
    const reports = await Promise.all(cluster.nodes.map((node) => lastReport(cluster, node)));
    first ??= reports.map(({ number }) => number);
    return reports.every(({ number }, index) => number > (first?.[index] ?? 0n));
  });
}
