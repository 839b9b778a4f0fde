/** Servers that hang instead of dying: the port is open, nobody answers. */
import { expect } from "bun:test";
import { signal } from "../helpers/processes.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";
import { nowMs } from "../helpers/wait.ts";
import { Writer } from "../helpers/writer.ts";

const scenario = scenariosOf("frozen");

/** node_timeout or postgres_timeout, one check, the stop and the promotion, on a busy machine. */
const FAILOVER_LIMIT_MS = 9000;

scenario(
  "kill -STOP of the primary's postmaster: failed over, and the old one rejoins",
  60_000,
  async (scene) => {
    const frozen = scene.primary.freezePostgres({ children: false });
    await failedOver(scene, () => thaw(frozen));
  },
);

scenario(
  "kill -STOP of the primary's whole PostgreSQL: failed over, and the old one rejoins",
  60_000,
  async (scene) => {
    const frozen = scene.primary.freezePostgres({ children: true });
    await failedOver(scene, () => thaw(frozen));
  },
);

scenario(
  "kill -STOP of keeper and PostgreSQL: thawed after the failover, they acknowledge nothing",
  60_000,
  async (scene) => {
    const { primary } = scene;
    // An application that knows only this server, and would be glad to go on with it.
    const only = `postgres://127.0.0.1:${primary.port}/postgres`;
    await using stubborn = await Writer.start(only, scene.cluster.login);
    primary.process?.signal("SIGSTOP");
    const frozen = primary.freezePostgres({ children: true });
    await failedOver(scene, () => {
      thaw(frozen);
      primary.process?.signal("SIGCONT");
    });
    await stubborn.stop();
    const { lost, unexpected } = await stubborn.compareWith(scene.secondary.address);
    expect({ lost, unexpected }).toEqual({ lost: [], unexpected: [] });
  },
);

scenario(
  "kill -STOP of the secondary's whole PostgreSQL: writes go on without it, and it comes back",
  60_000,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    const timeMs = nowMs();
    const frozen = secondary.freezePostgres({ children: true });
    await cluster.waitForStates({ [primary.label]: "wait_primary" }, FAILOVER_LIMIT_MS);
    await writer.waitForWrites(20, 5000);
    expect(writer.longestGapMs(timeMs)).toBeLessThan(FAILOVER_LIMIT_MS);
    thaw(frozen);
    expect(await cluster.healthy(20_000)).toBe(primary);
  },
);

/** Waits for the other node to take over, then thaws, then waits for the old one as its standby. */
async function failedOver(scene: Scene, thawAll: () => void): Promise<void> {
  const { cluster, primary, secondary, writer } = scene;
  const timeMs = nowMs();
  await cluster.waitFor("a write on the other node", FAILOVER_LIMIT_MS, () => {
    return writer.firstElsewhere(primary.port, timeMs) !== undefined;
  });
  await writer.waitForWrites(20, 5000);
  thawAll();
  expect(await cluster.healthy(30_000)).toBe(secondary);
  await writer.waitForWrites(20, 5000);
  expect(writer.longestGapMs(timeMs)).toBeLessThan(FAILOVER_LIMIT_MS);
}

function thaw(pids: readonly number[]): void {
  for (const pid of pids) signal(pid, "SIGCONT");
}
