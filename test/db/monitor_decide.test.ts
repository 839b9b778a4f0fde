/** Reading a group, deciding and writing goals on a real database, with others in the way. */
import { expect } from "bun:test";
import {
  decideAndWrite,
  groups,
  latestReports,
  recordHealth,
  refreshed,
} from "../../lib/monitor/store.ts";
import type { Db } from "../../lib/sys/sql.ts";
import {
  healthyGroup,
  identityOf,
  KEY,
  monitorOf,
  PRIMARY,
  refusal,
  register,
  report,
  SECONDARY,
  scene,
} from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const FOR_EVER_MS = 1e9;
const rulesOf = (outcome: Awaited<ReturnType<typeof decideAndWrite>>): string[] =>
  outcome?.decisions.map(({ rule }) => rule.id) ?? [];

story(here, "two deciders race: each decision is written once, with its event", async (world) => {
  const monitor = await monitorOf(world);
  const keeper = monitor.open("autoctl_node");
  const { nodeId } = await register(keeper, {});
  const deciders = [monitor.open(), monitor.open()];
  const outcomes = await Promise.all(deciders.map((db) => decideAndWrite(db, KEY, FOR_EVER_MS)));
  expect(outcomes.flatMap(rulesOf)).toEqual(["R101"]);
  const answer = await report(keeper, nodeId, {});
  expect(answer).toMatchObject({
    goal: "single",
    goalVersion: 2,
    sync: { version: 1, primaryId: nodeId },
  });
  const events = await keeper.query("select rule from pgautofailover.event where rule is not null");
  expect(events).toEqual([{ rule: "R101" }]);
  expect(await groups(keeper)).toEqual([KEY]);
  await monitor.close();
});

story(
  here,
  "twenty reports, deciders and operators at once, of a primary that is down: one promotion",
  async (world) => {
    const { monitor, own } = await healthyGroup(world, 2);
    const sessions = Array.from({ length: 6 }, () => monitor.open("autoctl_node"));
    const deciders = Array.from({ length: 3 }, () => monitor.open());
    const session = (index: number): Db => sessions[index % sessions.length] ?? own;
    const reports = Array.from({ length: 20 }, (_, index) => {
      const nodeId = 1 + (index % 2);
      const said = nodeId === 1 ? { ...PRIMARY, pgIsRunning: false } : SECONDARY;
      const number = { identity: identityOf(nodeId), reportNo: BigInt(100 + index) };
      return refusal(report(session(index), nodeId, { pgIsRunning: true, ...said, ...number }));
    });
    const requests = sessions.map((db) =>
      refusal(db.query("select pgautofailover.perform_failover('default', 0)")),
    );
    const decisions = Array.from({ length: 12 }, (_, index) =>
      refusal(decideAndWrite(deciders[index % deciders.length] ?? own, KEY, FOR_EVER_MS)),
    );
    const outcomes = await Promise.all([...reports, ...requests, ...decisions]);
    // a later report was there first; a failover is under way, or can't be asked for
    const known = ["", "PA011", "PA030", "PA031", "PA033", "PA034"];
    expect(outcomes.filter((code) => !known.includes(code))).toEqual([]);
    await decideAndWrite(own, KEY, FOR_EVER_MS);
    expect(
      await own.query(
        "select nodeid::int as node from pgautofailover.event where rule is not null and goalstate = 'prepare_promotion'",
      ),
    ).toEqual([{ node: 2 }]);
    await monitor.close();
  },
);

story(here, "a group is made, fails over and loses a node, goal by goal", async (world) => {
  const { says, decide, row, keeper, monitor } = await scene(world, 1);
  expect(await decide()).toBe("R101");
  await says(1, { state: "single", inRecovery: false });
  expect(await decide()).toBe("");
  expect((await row()).history).toEqual([{ timeline: 1, parent: 0, forkLsn: 0n }]);
  await register(keeper, { port: 5002, identity: identityOf(2) });
  expect(await decide()).toBe("R102");
  await says(2, { state: "wait_standby", pgIsRunning: false });
  expect(await decide()).toBe("R111");
  await says(1, { state: "wait_primary", inRecovery: false });
  expect(await decide()).toBe("R112");
  await says(2, { ...SECONDARY, state: "catchingup" });
  expect(await decide()).toBe("R113");
  await says(2, SECONDARY);
  expect(await decide()).toBe("R114");
  const { sync } = await row();
  expect(sync).toMatchObject({ primaryId: 1, members: [2], number: 1 });
  await says(1, { ...PRIMARY, syncInForce: sync });
  expect(await decide()).toBe("");
  await says(1, { ...PRIMARY, syncInForce: sync, pgIsRunning: false });
  expect(await decide()).toBe("R301");
  const asked = (await row()).nodes[0];
  expect(asked?.decidedReport).toBe(asked?.reportNo as bigint);
  await says(1, { state: "demote_timeout", pgIsRunning: false });
  await says(2, { state: "prepare_promotion", inRecovery: true });
  expect(await decide()).toBe("R303");
  await says(1, { state: "demote_timeout", pgIsRunning: false });
  const promoted = {
    inRecovery: false,
    timeline: 2,
    promotion: { timeline: 2, forkLsn: "0/3000000" },
  };
  await says(2, { ...promoted, state: "stop_replication" });
  expect(await decide()).toBe("R304");
  expect((await row()).history.at(-1)).toEqual({ timeline: 2, parent: 1, forkLsn: 0x3000000n });
  await says(2, { ...promoted, state: "wait_primary" });
  await says(1, { state: "demoted", pgIsRunning: false });
  expect(await decide()).toBe("R311");
  await keeper.query("select pgautofailover.remove_node(1)");
  await says(1, { state: "dropped", pgIsRunning: false });
  expect(await decide()).toBe("R103 R104");
  expect((await row()).nodes).toMatchObject([{ nodeId: 2, goal: "single" }]);
  await monitor.close();
});

story(
  here,
  "nobody is judged on a silence or a probe from before the monitor's start",
  async (world) => {
    const { own, monitor } = await healthyGroup(world, 2);
    await own.query(
      `update pgautofailover.node set reporttime = clock_timestamp() - interval '1 hour' where nodeid = 1`,
    );
    await own.query("update pgautofailover.node set streaming = false where nodeid = 2");
    await recordHealth(own, 1, "bad", 500);
    expect(rulesOf(await decideAndWrite(own, KEY, 100))).toEqual([]);
    expect(rulesOf(await decideAndWrite(own, KEY, FOR_EVER_MS))).toEqual(["R301"]);
    await monitor.close();
  },
);

story(here, "a row that is refreshed is the row that a look would find", async (world) => {
  const { own, says, row, monitor } = await healthyGroup(world, 2);
  await says(2, { ...SECONDARY, streaming: false });
  const primary = { ...PRIMARY, syncInForce: (await row()).inForce ?? null };
  await says(1, primary);
  const before = await row();
  const beganMs = performance.now();
  await own.query("select pg_sleep(0.3)");
  await says(1, { ...primary, lsn: "0/7000000" });
  const { seen, clockMs } = await latestReports(own);
  const sinceMs = performance.now() - beganMs;
  const now = await row();
  const told = refreshed(before, sinceMs, seen);
  const AGES = /AgeMs$|^stalledMs$|^notSentToMs$|^promisedMs$/;
  for (const [index, node] of now.nodes.entries()) {
    for (const [name, value] of Object.entries(node)) {
      const other = (told.nodes[index] as Record<string, unknown>)[name];
      if (name === "reportNo") continue;
      if (AGES.test(name)) {
        expect({ name, far: Math.abs(Number(other ?? 0) - Number(value ?? 0)) > 200 }).toEqual({
          name,
          far: false,
        });
      } else expect({ name, is: other }).toEqual({ name, is: value });
    }
  }
  expect(Math.abs(clockMs - now.clockMs)).toBeLessThan(200);
  await monitor.close();
});

story(
  here,
  "a clock that was set back: what seems to come from the future counts from now on",
  async (world) => {
    const { own, says, row, monitor } = await healthyGroup(world, 2);
    await says(2, { ...SECONDARY, streaming: false });
    await own.query(
      `update pgautofailover.node set reporttime = now() + interval '1 hour', goaltime = now() + interval '1 hour',
         healthchecktime = now() + interval '1 hour', stalledsince = now() + interval '1 hour',
         promisedsince = now() + interval '1 hour',
         notsentto = jsonb_build_object('2', now() + interval '1 hour')
       where nodeid = 1`,
    );
    await own.query(
      "update pgautofailover.node set goaltime = clock_timestamp() - interval '1 hour' where nodeid = 2",
    );
    expect(rulesOf(await decideAndWrite(own, KEY, FOR_EVER_MS))).toEqual([]);
    const [left] = await own.query(
      `select greatest(reporttime, goaltime, healthchecktime, stalledsince, promisedsince) <= clock_timestamp() as past,
         notsentto::text as unsent from pgautofailover.node where nodeid = 1`,
    );
    expect(left).toEqual({ past: true, unsent: "{}" });
    const [one, two] = (await row()).nodes;
    const ages = [one?.reportAgeMs, one?.goalAgeMs, one?.stalledMs, one?.promisedMs];
    for (const age of ages) expect(age).toBeWithin(0, 5000);
    // what was past stays as it was
    expect(two?.goalAgeMs).toBeGreaterThan(3_600_000);

    // and grows old like any other: nobody waits for the clock to get there again
    const { policy } = await row();
    await Bun.sleep(policy.nodeTimeoutMs + 100);
    await says(2, { ...SECONDARY, streaming: false });
    await recordHealth(own, 1, "bad", 50);
    expect(rulesOf(await decideAndWrite(own, KEY, FOR_EVER_MS))).toEqual(["R301"]);
    await monitor.close();
  },
);

story(
  here,
  "how long the monitor has had its senses about it is asked of what was read, before anything is decided",
  async (world) => {
    const { own, says, monitor } = await healthyGroup(world, 2);
    await says(2, { ...SECONDARY, streaming: false });
    await own.query(
      `update pgautofailover.node set reporttime = clock_timestamp() - interval '1 hour' where nodeid = 1`,
    );
    await recordHealth(own, 1, "bad", 50);
    const clocks: number[] = [];
    const deaf = await decideAndWrite(own, KEY, FOR_EVER_MS, (row) => {
      clocks.push(row.clockMs);
      return 0;
    });
    expect(rulesOf(deaf)).toEqual([]);
    expect(clocks).toHaveLength(1);
    // it can shorten the time that the monitor has watched, and not lengthen it
    const begun = await decideAndWrite(own, KEY, 100, () => FOR_EVER_MS);
    expect(rulesOf(begun)).toEqual([]);
    const awake = await decideAndWrite(own, KEY, FOR_EVER_MS, () => FOR_EVER_MS);
    expect(rulesOf(awake)).toEqual(["R301"]);
    await monitor.close();
  },
);

story(
  here,
  "a primary that comes back on a timeline of its own: the group goes on there, and its standbys are no forks",
  async (world) => {
    const { says, decide, row, goals, news, monitor } = await healthyGroup(world, 3);
    const { sync } = await row();
    const restored = {
      ...PRIMARY,
      timeline: 3,
      lsn: "0/5000000",
      syncInForce: sync,
    };
    await says(2, SECONDARY);
    await says(3, SECONDARY);
    await says(1, restored);
    await news();
    // those that have not followed are late, and none of the history's any more
    expect(await decide()).toBe("R203 R122 R203 R121");
    const history = [
      { timeline: 1, parent: 0, forkLsn: 0n },
      { timeline: 3, parent: 1, forkLsn: 0n },
    ];
    expect((await row()).history).toEqual(history);
    expect(await news()).toEqual([
      "The primary is on timeline 3, which the monitor has not assigned: it is the group's from here on",
    ]);
    await says(1, { ...restored, state: "wait_primary", syncInForce: (await row()).sync });
    for (const id of [2, 3]) await says(id, { state: "demoted", pgIsRunning: false });
    expect(await decide()).toBe("R311 R311");
    const follows = { ...SECONDARY, state: "catchingup", timeline: 3, lsn: "0/5000000" };
    for (const id of [2, 3]) await says(id, follows);
    expect(await decide()).toBe("R113 R113");
    for (const id of [2, 3]) await says(id, { ...follows, state: "secondary" });
    expect(await decide()).toMatch(/^R114/);
    expect(await goals()).toMatchObject({ 2: "secondary", 3: "secondary" });
    expect((await row()).history).toEqual(history);
    expect((await row()).disputed).toBe(false);
    await monitor.close();
  },
);

story(
  here,
  "a primary on a later timeline than the history's, with its standbys already there: nobody is a fork",
  async (world) => {
    const { says, decide, row, news, monitor } = await healthyGroup(world, 2);
    const { sync } = await row();
    const promotion = { timeline: 3, forkLsn: "0/4000000" };
    await says(2, { ...SECONDARY, timeline: 3, lsn: "0/5000000" });
    await says(1, { ...PRIMARY, timeline: 3, lsn: "0/5000000", syncInForce: sync, promotion });
    await news();
    expect(await decide()).toBe("");
    expect((await row()).history.at(-1)).toEqual({ timeline: 3, parent: 1, forkLsn: 0x4000000n });
    expect(await news()).toHaveLength(1);
    expect(await decide()).toBe("");
    expect(await news()).toEqual([]);
    await monitor.close();
  },
);

story(here, "who is silent because nobody was heard leaves no fork undecided", async (world) => {
  const { own, says, row, monitor } = await healthyGroup(world, 2);
  await own.query(
    `update pgautofailover.node set reporttime = clock_timestamp() - interval '1 hour' where nodeid = 1`,
  );
  await says(2, { ...SECONDARY, timeline: 2, inRecovery: false, streaming: false });
  await decideAndWrite(own, KEY, FOR_EVER_MS, () => 0);
  expect((await row()).disputed).toBe(false);
  await monitor.close();
});
