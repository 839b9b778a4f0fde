/** Three nodes and a monitor, a host each: majorities and minorities of those that commits wait for. */
import { expect } from "bun:test";
import { type NetnsScene, netnsScenariosOf } from "../helpers/netns.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";
import { Writer } from "../helpers/writer.ts";
import { FAILOVER_LIMIT_MS, isolatedPrimary } from "./isolated.ts";

const scenario = netnsScenariosOf("netns3", 3);

scenario(
  "an isolated primary stops in time, one of the others takes over, and it rejoins",
  (scene) => isolatedPrimary(scene),
);

scenario(
  "a standby cut off with the old primary: nobody is promoted before it is back",
  async (scene) => {
    const { cluster, network, primary, writer } = scene;
    const { partner, third, event } = await blockedByPartner(scene);
    // Commits that only the old primary and its partner have.
    const backMs = nowMs();
    await writer.waitForWrites(20, 5000);
    expect(writer.firstElsewhere(primary.port, 0)).toBeUndefined();
    expect(third.path(event.mark)).toEqual([]);
    // The partner changes sides.
    network.cut([partner.label], [primary.label]);
    network.heal([partner.label], ["monitor", third.label]);
    await cluster.waitFor("a write on another node", FAILOVER_LIMIT_MS, () =>
      writer.firstElsewhere(primary.port, backMs),
    );
    network.heal();
    const next = await cluster.healthy(30_000);
    expect(next).not.toBe(primary);
    expect(await cluster.blocked(event.id)).toHaveLength(1);
  },
);

scenario(
  "a standby cut off with the old primary returns with it: nothing has happened",
  async (scene) => {
    const { cluster, network, primary, writer } = scene;
    const { event } = await blockedByPartner(scene);
    await writer.waitForWrites(20, 5000);
    network.heal();
    expect(await cluster.healthy(30_000)).toBe(primary);
    expect(await cluster.blocked(event.id)).toHaveLength(1);
  },
);

scenario(
  "a standby cut off with the old primary: the operator may give up what the two have",
  async (scene) => {
    const { cluster, network, writer } = scene;
    // What is acknowledged on the other side from here on is what the operator gives up.
    await writer.stop();
    const { third, event } = await blockedByPartner(scene);
    await cluster.askMonitor("select pgautofailover.perform_failover('default', 0, true)");
    await cluster.waitFor("the third node to take writes", 15_000, async () => {
      return (await cluster.writableNodes()).includes(third);
    });
    const { lost } = await writer.compareWith(third.address);
    expect(lost).toEqual([]);
    const uri = `postgres://${third.address.host}:${third.port}/postgres`;
    scene.writer = await Writer.start(uri, cluster.login);
    network.heal();
    expect(await cluster.healthy(40_000)).toBe(third);
    expect(await cluster.blocked(event.id)).toHaveLength(1);
  },
);

type Blocked = {
  /** The standby that is on the old primary's side, and the one that isn't. */
  partner: Service;
  third: Service;
  /** The last event before the cut, and the end of the third node's log then. */
  event: { id: number; mark: number };
};

/**
 * Cuts the primary and one standby off from the others: the two could go on acknowledging commits,
 * so that the third must not be promoted. Waits until the monitor says so.
 */
async function blockedByPartner(scene: NetnsScene): Promise<Blocked> {
  const { cluster, network, primary, standbys } = scene;
  const [partner, third] = standbys as [Service, Service];
  const event = { id: await cluster.lastEventId(), mark: third.mark() };
  network.cut([primary.label, partner.label], ["monitor", third.label]);
  await cluster.waitFor(
    "the event that says why nobody is promoted",
    FAILOVER_LIMIT_MS,
    async () => {
      return (await cluster.blocked(event.id)).length > 0;
    },
  );
  return { partner, third, event };
}
