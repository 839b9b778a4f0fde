/** Three nodes through the monitor's database: elections, sets that may be in force, history, and what blocks. */
import { expect } from "bun:test";
import { recordHealth } from "../../lib/monitor/store.ts";
import { healthyGroup, PRIMARY, type Scene, SECONDARY } from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const DEAD = { ...PRIMARY, pgIsRunning: false };
const PROMISED = { state: "report_lsn", inRecovery: true };

/** Its host is gone: no report for an hour, and nobody answers there. */
async function dies({ own }: Scene, nodeId: number): Promise<void> {
  await own.query(
    "update pgautofailover.node set reporttime = clock_timestamp() - interval '1 hour' where nodeid = $1",
    [nodeId],
  );
  await recordHealth(own, nodeId, "bad", 1);
}

story(here, "the primary dies, and the most advanced of two standbys takes over", async (world) => {
  const { says, decide, goals, row, monitor } = await healthyGroup(world, 3);
  await says(2, SECONDARY);
  await says(3, SECONDARY);
  await says(1, DEAD);
  expect(await decide()).toBe("R321 R322 R322");
  expect(await goals()).toEqual({ 1: "draining", 2: "report_lsn", 3: "report_lsn" });
  await says(2, { ...PROMISED, lsn: "0/5000000" });
  expect(await decide()).toBe("");
  await says(3, { ...PROMISED, lsn: "0/6000000" });
  expect(await decide()).toBe("R323 R328");
  expect(await goals()).toEqual({ 1: "draining", 2: "join_secondary", 3: "prepare_promotion" });
  await says(2, { ...PROMISED, state: "join_secondary", lsn: "0/5000000" });
  await says(3, { ...PROMISED, state: "prepare_promotion", lsn: "0/6000000" });
  expect(await decide()).toBe("R303");
  await says(1, { state: "demote_timeout", pgIsRunning: false });
  const promotion = { timeline: 2, forkLsn: "0/6000028" };
  const promoted = { inRecovery: false, timeline: 2, lsn: "0/6000100", promotion };
  await says(3, { ...promoted, state: "stop_replication" });
  expect((await row()).history).toHaveLength(1);
  expect(await decide()).toBe("R304");
  expect(await row()).toMatchObject({
    history: [
      { timeline: 1, parent: 0 },
      { timeline: 2, parent: 1, forkLsn: 0x6000028n },
    ],
    sync: { version: 2, primaryId: 3, members: [], number: 0 },
    pending: [],
  });
  await says(3, { ...promoted, state: "wait_primary" });
  expect(await decide()).toBe("R329");
  await says(1, { state: "demoted", pgIsRunning: false });
  expect(await decide()).toBe("R311");
  expect(await goals()).toEqual({ 1: "catchingup", 2: "catchingup", 3: "wait_primary" });
  await monitor.close();
});

story(here, "the preferred standby first fetches what it lacks", async (world) => {
  const { says, decide, goals, row, keeper, monitor } = await healthyGroup(world, 3);
  await keeper.query("select pgautofailover.set_node_candidate_priority('default', 'node_2', 90)");
  await says(2, SECONDARY);
  await says(3, SECONDARY);
  await says(1, DEAD);
  await decide();
  await says(2, { ...PROMISED, lsn: "0/5000000" });
  await says(3, { ...PROMISED, lsn: "0/6000000" });
  expect(await decide()).toBe("R324 R328");
  expect(await goals()).toEqual({ 1: "draining", 2: "fast_forward", 3: "join_secondary" });
  const sources = async () => (await row()).nodes.map(({ fetchFrom }) => fetchFrom);
  expect(await sources()).toEqual([undefined, 3, undefined]);
  const other = await says(3, { ...PROMISED, state: "join_secondary", lsn: "0/6000000" });
  expect(other.fetchFrom).toBeUndefined();
  const told = await says(2, { ...PROMISED, state: "fast_forward", lsn: "0/5800000" });
  expect(told.fetchFrom).toBe(3);
  expect(await decide()).toBe("");
  await says(2, { ...PROMISED, state: "fast_forward", lsn: "0/6000000" });
  expect(await decide()).toBe("R325");
  expect(await sources()).toEqual([undefined, undefined, undefined]);
  await monitor.close();
});

story(
  here,
  "a standby that can't fetch is passed over, until it follows a primary again",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const { says, decide, goals, keeper, own, row, monitor } = group;
    await keeper.query(
      "select pgautofailover.set_node_candidate_priority('default', 'node_2', 90)",
    );
    await says(2, SECONDARY);
    await says(3, SECONDARY);
    await says(1, DEAD);
    await decide();
    await says(2, { ...PROMISED, lsn: "0/5000000" });
    await says(3, { ...PROMISED, lsn: "0/6000000" });
    expect(await decide()).toBe("R324 R328");
    await own.query(
      "update pgautofailover.node set goaltime = goaltime - interval '1 hour' where nodeid = 2",
    );
    expect(await decide()).toMatch(/^R326/);
    expect((await row()).nodes[1]?.passedOver).toBe(true);
    await says(2, { ...PROMISED, lsn: "0/5000000" });
    await says(3, { ...PROMISED, state: "join_secondary", lsn: "0/6000000" });
    expect(await decide()).toBe("R323 R328");
    expect(await goals()).toMatchObject({ 2: "join_secondary", 3: "prepare_promotion" });
    const promotion = { timeline: 2, forkLsn: "0/6000000" };
    const promoted = { inRecovery: false, timeline: 2, lsn: "0/6000100", promotion };
    await says(2, { ...PROMISED, state: "join_secondary", lsn: "0/5000000" });
    await says(3, { ...PROMISED, state: "prepare_promotion", lsn: "0/6000000" });
    await decide();
    await says(1, { state: "demote_timeout", pgIsRunning: false });
    await says(3, { ...promoted, state: "stop_replication" });
    await decide();
    await says(3, { ...promoted, state: "wait_primary" });
    expect(await decide()).toBe("R329");
    expect((await row()).nodes[1]?.passedOver).toBe(false);
    await monitor.close();
  },
);

story(
  here,
  "every set that may be in force is kept until a later one is reported",
  async (world) => {
    const { says, decide, row, monitor } = await healthyGroup(world, 3);
    const first = (await row()).sync;
    await says(1, { ...PRIMARY, syncInForce: first });
    await says(2, SECONDARY);
    await says(3, { ...SECONDARY, pgIsRunning: false });
    expect(await decide()).toBe("R201 R122");
    const second = (await row()).sync;
    expect(second).toEqual({ version: 2, primaryId: 1, members: [2], number: 1 });
    expect((await row()).pending).toEqual([first]);
    // the primary has not said that it has applied it, when the next one is due
    await says(3, { ...SECONDARY, state: "catchingup" });
    await says(1, { ...PRIMARY, state: "apply_settings", syncInForce: first });
    expect(await decide()).toBe("R113");
    await says(3, SECONDARY);
    expect(await decide()).toBe("R122");
    const third = (await row()).sync;
    expect(third).toEqual({ ...first, version: 3 });
    expect((await row()).pending).toEqual([first, second]);
    await says(1, { ...PRIMARY, state: "apply_settings", syncInForce: third });
    expect(await decide()).toBe("R124");
    await says(1, { ...PRIMARY, syncInForce: third });
    await says(2, { ...SECONDARY, pgIsRunning: false });
    expect(await decide()).toBe("R201 R122");
    expect(await row()).toMatchObject({ pending: [third], inForce: third });
    await monitor.close();
  },
);

story(
  here,
  "blocked: one event that names who is missing, and one when it's over",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const { says, decide, row, news, monitor } = group;
    await says(2, SECONDARY);
    await dies(group, 1);
    await dies(group, 3);
    await news();
    for (let time = 0; time < 3; time += 1) {
      expect(await decide()).toBe("");
      await says(2, { ...SECONDARY, streaming: false });
    }
    const [told, ...more] = await news();
    expect(told).toContain('node 1 "node_1" is down');
    expect(told).toContain('node 3 "node_3" may hold acknowledged commits');
    expect(told).toContain("roles/formation.ts failover --allow-data-loss");
    expect(more).toEqual([]);
    expect((await row()).blocked).toBe(told as string);
    await says(3, { ...SECONDARY, streaming: false });
    expect(await decide()).toBe("R321 R322 R322");
    expect(await news()).toEqual(["Nothing is in the way of a failover any more"]);
    expect((await row()).blocked).toBeUndefined();
    await monitor.close();
  },
);

story(here, "blocked, and the operator allows that commits are lost", async (world) => {
  const group = await healthyGroup(world, 3);
  const { says, decide, keeper, own, row, monitor } = group;
  await says(2, { ...SECONDARY, streaming: false });
  await own.query("update pgautofailover.node set reportedlsn = '0/4000000' where nodeid = 1");
  await dies(group, 1);
  await dies(group, 3);
  expect(await decide()).toBe("");
  await keeper.query("select pgautofailover.perform_failover('default', 0, true)");
  expect(await decide()).toBe("R320 R322 R322");
  await says(2, { ...PROMISED, lsn: "0/3000000" });
  expect(await decide()).toBe("R323");
  const [event] = await own.query<{ text: string }>(
    "select description as text from pgautofailover.event where rule = 'R323'",
  );
  expect(event?.text).toContain("16777216 bytes ahead: commits in them are lost");
  expect((await row()).request).toEqual({ target: undefined, allowDataLoss: true, planned: false });
  await says(2, { ...PROMISED, state: "prepare_promotion", lsn: "0/3000000" });
  expect(await decide()).toMatch(/^R303/);
  await monitor.close();
});

story(here, "a fork that nobody can judge is a dispute, told once", async (world) => {
  const group = await healthyGroup(world, 2);
  const { says, decide, row, news, monitor } = group;
  await dies(group, 1);
  await says(2, { ...SECONDARY, streaming: false, inRecovery: false, timeline: 2 });
  await news();
  expect(await decide()).toBe("");
  expect(await decide()).toBe("");
  expect((await row()).disputed).toBe(true);
  const told = await news();
  expect(told).toHaveLength(1);
  expect(told[0]).toContain("roles/formation.ts accept-timeline");
  // the primary is back, and it's still the operator who decides
  await says(1, PRIMARY);
  expect(await decide()).toBe("");
  expect((await row()).disputed).toBe(true);
  await monitor.close();
});

/** The primary is gone, and node 2 was promoted behind our back. */
async function promotedByHand(group: Scene): Promise<void> {
  const { own, says, decide, row } = group;
  await own.query("update pgautofailover.node set streaming = false where nodeid > 1");
  await dies(group, 1);
  const promotion = { timeline: 2, forkLsn: "0/4000000" };
  await says(2, {
    ...{ ...SECONDARY, inRecovery: false, streaming: false },
    ...{ timeline: 2, lsn: "0/5000000", promotion },
  });
  await says(3, { ...SECONDARY, streaming: false });
  expect(await decide()).toBe("");
  expect((await row()).disputed).toBe(true);
}

const accept = ({ keeper }: Scene, node: string): Promise<unknown> =>
  keeper.query("select pgautofailover.accept_timeline('default', 0, $1)", [node]);

story(
  here,
  "an accepted timeline: the server that was promoted by hand takes over",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const { says, decide, goals, row, monitor } = group;
    await promotedByHand(group);
    await accept(group, "node_2");
    expect(await decide()).toBe("R320 R322 R322");
    expect(await row()).toMatchObject({ disputed: false, blocked: undefined });
    // its keeper has made a standby of it, which is promoted once more
    const two = { inRecovery: true, timeline: 2, lsn: "0/5000000" };
    await says(3, PROMISED);
    await says(2, { ...two, state: "report_lsn" });
    expect(await decide()).toBe("R323 R328");
    await says(2, { ...two, state: "prepare_promotion" });
    expect(await decide()).toBe("R303");
    const promotion = { timeline: 3, forkLsn: "0/5000000" };
    const promoted = { inRecovery: false, timeline: 3, lsn: "0/6000000", promotion };
    await says(2, { ...promoted, state: "stop_replication" });
    expect(await decide()).toBe("R305");
    expect(await goals()).toEqual({ 1: "demoted", 2: "wait_primary", 3: "join_secondary" });
    expect(await row()).toMatchObject({
      request: undefined,
      history: [
        { timeline: 1, parent: 0 },
        { timeline: 2, parent: 1, forkLsn: 0x4000000n },
        { timeline: 3, parent: 2, forkLsn: 0x5000000n },
      ],
    });
    await monitor.close();
  },
);

story(here, "an accepted timeline: the standby that stayed on it takes over", async (world) => {
  const group = await healthyGroup(world, 3);
  const { says, decide, goals, row, monitor } = group;
  await promotedByHand(group);
  await accept(group, "node_3");
  expect(await decide()).toBe("R320 R322 R322");
  await says(2, { ...PROMISED, timeline: 2, lsn: "0/5000000" });
  await says(3, PROMISED);
  expect(await decide()).toBe("R323 R328");
  expect(await goals()).toEqual({ 1: "draining", 2: "join_secondary", 3: "prepare_promotion" });
  expect((await row()).disputed).toBe(false);
  await monitor.close();
});
