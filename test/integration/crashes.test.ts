/** Several things die at once, or one after another while the group still mends itself. */
import { expect } from "bun:test";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Cluster } from "../helpers/cluster.ts";
import { killUnder } from "../helpers/processes.ts";
import { scenariosOf } from "../helpers/scenario.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("crashes");

scenario(
  "both postmasters are killed at the same moment",
  60_000,
  async ({ cluster, primary, secondary, writer }) => {
    primary.killPostgres();
    secondary.killPostgres();
    await writer.waitForWrites(20, 20_000);
    await cluster.healthy(20_000);
  },
);

for (const delayMs of [5, 40, 120]) {
  scenario(`the secondary dies, and ${delayMs} ms later the primary`, 60_000, async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    secondary.killPostgres();
    await Bun.sleep(delayMs); // Where in the secondary's return the primary dies is the scenario.
    primary.killPostgres();
    await writer.waitForWrites(20, 20_000);
    await cluster.healthy(20_000);
  });

  scenario(`the primary dies, and ${delayMs} ms later the secondary`, 60_000, async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    primary.killPostgres();
    await Bun.sleep(delayMs); // Where in the promotion the candidate dies is the scenario.
    if (secondary.postmaster() !== undefined) secondary.killPostgres();
    await writer.waitForWrites(20, 20_000);
    await cluster.healthy(20_000);
  });
}

scenario(
  "the primary dies alone in wait_primary: the stale standby is not promoted",
  60_000,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await secondary.kill();
    secondary.killPostgres();
    await cluster.waitForStates({ [primary.label]: "wait_primary" }, 15_000);
    await writer.waitForWrites(50, 5000); // Only the primary has these.

    const timeMs = nowMs();
    const mark = secondary.mark();
    const before = primary.killPostgres();
    secondary.start();
    await primary.newPostmaster(before, 10_000);
    await writer.waitForWrites(20, 10_000);
    expect(writer.longestGapMs(timeMs)).toBeLessThan(5000);
    expect(await cluster.healthy(20_000)).toBe(primary);
    expect(secondary.path(mark)).not.toContain("prepare_promotion");
  },
);

scenario(
  "kill -9 of the candidate's keeper in the middle of a promotion",
  60_000,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    const mark = secondary.mark();
    primary.killPostgres();
    await secondary.waitForLog(/FSM transition from "prepare_promotion"/, 10_000, mark);
    await secondary.kill();
    secondary.start();
    await writer.waitForWrites(20, 20_000);
    expect(await cluster.healthy(20_000)).toBe(secondary);
  },
);

scenario("kill -9 of the old primary's keeper while it is demoted", 60_000, async (scene) => {
  const { cluster, primary, writer } = scene;
  const mark = primary.mark();
  primary.killPostgres();
  await primary.waitForLog(/FSM transition from "primary"/, 10_000, mark);
  await primary.kill();
  primary.start();
  await writer.waitForWrites(20, 20_000);
  await cluster.healthy(20_000);
});

scenario(
  "the secondary's whole host dies, then the primary, and the secondary's keeper comes back",
  60_000,
  async ({ cluster, primary, secondary, writer }) => {
    secondary.process?.signal("SIGSTOP");
    killUnder(secondary.pgdata);
    await secondary.kill();
    primary.killPostgres();
    secondary.start();
    await writer.waitForWrites(20, 20_000);
    await cluster.healthy(20_000);
  },
);

scenario(
  "a monitor that takes 2 s for each new session: its keepers get through all the same",
  60_000,
  async ({ cluster, writer }) => {
    const conf = join(cluster.monitor.pgdata, "postgresql.conf");
    const before = readFileSync(conf, "utf8");
    const reread = () => process.kill(cluster.monitor.requirePostmaster(), "SIGHUP");
    appendFileSync(conf, "post_auth_delay = 2\n");
    try {
      reread();
      const sessions = await cluster.askMonitor(
        "select pid from pg_stat_activity where application_name = 'pg_auto_failover keeper'",
      );
      expect(sessions).toHaveLength(2);
      for (const { pid } of sessions) process.kill(Number(pid), "SIGTERM");
      const [ended] = await cluster.askMonitor("select clock_timestamp()::text as at");
      await cluster.waitFor("both keepers to report over a new session", 20_000, async () => {
        const text = "select from pgautofailover.node where reporttime < $1::text::timestamptz";
        return (await cluster.askMonitor(text, [ended?.["at"]])).length === 0;
      });
    } finally {
      writeFileSync(conf, before);
      reread();
    }
    await writer.waitForWrites(20, 10_000);
  },
);

type Piece = "monitor" | "primary" | "secondary";

const ORDERS: readonly (readonly Piece[])[] = [
  ["monitor", "primary", "secondary"],
  ["secondary", "monitor", "primary"],
  ["secondary", "primary", "monitor"],
];

for (const order of ORDERS) {
  scenario(`everything is killed, and comes back as ${order.join(", ")}`, 60_000, async (scene) => {
    const { cluster, writer } = scene;
    await killEverything(cluster);
    for (const piece of order) {
      if (piece === "monitor") {
        expectNothingStarted(cluster);
        cluster.monitor.start();
        await cluster.waitFor("the monitor to answer", 10_000, async () => {
          return (await cluster.states()).length === 2;
        });
      } else {
        const node = scene[piece];
        node.start();
        // It has looked around once: found its monitor, or found that it can't.
        await node.waitForLog(/monitor|Calling node_active/i, 5000, node.process?.logStart);
      }
    }
    await cluster.healthy(30_000);
    await writer.waitForWrites(20, 10_000);
  });
}

/** Power off: no process gets to do anything after the first has gone. */
async function killEverything(cluster: Cluster): Promise<void> {
  const services = [...cluster.nodes, cluster.monitor];
  for (const service of services) service.process?.signal("SIGSTOP");
  killUnder(cluster.base);
  for (const service of services) await service.process?.ended(3000);
  await cluster.waitFor("the end of every process", 5000, () => {
    return services.every((service) => service.postmaster() === undefined);
  });
}

/** A keeper that has had no contact since its start touches nothing: another may be primary. */
function expectNothingStarted(cluster: Cluster): void {
  for (const node of cluster.nodes) expect(node.postmaster()).toBeUndefined();
}
