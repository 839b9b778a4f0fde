/** Reading a group, deciding and writing goals on a real database, with others in the way. */
import { expect } from "bun:test";
import { decideAndWrite, groups, readGroup, recordHealth } from "../../lib/monitor/store.ts";
import { monitorOf, NODE_B, register, report } from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const KEY = { formation: "default", groupId: 0 };
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

story(here, "a group is made, fails over and loses a node, goal by goal", async (world) => {
  const monitor = await monitorOf(world);
  const keeper = monitor.open("autoctl_node");
  const db = monitor.open();
  const decide = async (): Promise<string> =>
    rulesOf(await decideAndWrite(db, KEY, FOR_EVER_MS)).join(" ");
  let reportNo = 0n;
  const says = (nodeId: number, change: object): Promise<unknown> => {
    reportNo += 1n;
    return report(keeper, nodeId, {
      reportNo,
      pgIsRunning: true,
      ...(nodeId === 2 ? { identity: NODE_B } : {}),
      ...change,
    });
  };
  await register(keeper, {});
  expect(await decide()).toBe("R101");
  await says(1, { state: "single" });
  await register(keeper, { port: 5002, identity: NODE_B });
  expect(await decide()).toBe("R102");
  await says(2, { state: "wait_standby", pgIsRunning: false });
  expect(await decide()).toBe("R111");
  await says(1, { state: "wait_primary" });
  expect(await decide()).toBe("R112");
  await says(2, { state: "catchingup", streaming: true });
  expect(await decide()).toBe("R113");
  await says(2, { state: "secondary", streaming: true });
  expect(await decide()).toBe("R114");
  const sync = (await readGroup(db, KEY))?.sync;
  expect(sync).toMatchObject({ primaryId: 1, members: [2], number: 1 });
  await says(1, { state: "primary", syncInForce: sync });
  expect(await decide()).toBe("");
  await says(1, { state: "primary", syncInForce: sync, pgIsRunning: false });
  expect(await decide()).toBe("R301");
  const asked = (await readGroup(db, KEY))?.nodes[0];
  expect(asked?.decidedReport).toBe(asked?.reportNo as bigint);
  await says(1, { state: "demote_timeout", pgIsRunning: false });
  await says(2, { state: "prepare_promotion" });
  expect(await decide()).toBe("R303");
  await says(2, { state: "stop_replication", timeline: 2 });
  expect(await decide()).toBe("R304");
  await says(2, { state: "wait_primary", timeline: 2 });
  await says(1, { state: "demoted", pgIsRunning: false });
  expect(await decide()).toBe("R311");
  await keeper.query("select pgautofailover.remove_node(1)");
  await says(1, { state: "dropped", pgIsRunning: false });
  expect(await decide()).toBe("R103 R104");
  expect((await readGroup(db, KEY))?.nodes).toMatchObject([{ nodeId: 2, goal: "single" }]);
  await monitor.close();
});

story(
  here,
  "nobody is judged on a silence or a probe from before the monitor's start",
  async (world) => {
    const monitor = await monitorOf(world);
    const keeper = monitor.open("autoctl_node");
    const db = monitor.open();
    await register(keeper, {});
    await register(keeper, { port: 5002, identity: NODE_B });
    const members = { version: 1, primaryId: 1, members: [2], number: 1 };
    await db.query(
      `update pgautofailover.node set goalstate = reportedstate, reportedpgisrunning = true,
       reporttime = clock_timestamp() - interval '1 hour', syncinforce = $1::text::jsonb where nodeid = 1`,
      [JSON.stringify(members)],
    );
    await db.query(
      `update pgautofailover.node set reportedstate = case nodeid when 1 then 'primary' else 'secondary' end,
       goalstate = case nodeid when 1 then 'primary' else 'secondary' end, reportedpgisrunning = true`,
    );
    await db.query(
      `update pgautofailover."group" set syncversion = 1, syncprimary = 1, syncmembers = '{2}', syncnumber = 1`,
    );
    await recordHealth(db, 1, "bad", 500);
    expect(rulesOf(await decideAndWrite(db, KEY, 100))).toEqual([]);
    expect(rulesOf(await decideAndWrite(db, KEY, FOR_EVER_MS))).toEqual(["R301"]);
    await monitor.close();
  },
);
