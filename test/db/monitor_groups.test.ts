/** Formations and groups beside one another: what is said or done in one leaves the others as they are. */
import { expect } from "bun:test";
import { randomUUID } from "node:crypto";
import { decideAndWrite, groups, readGroup } from "../../lib/monitor/store.ts";
import { type Answer, parseAnswer } from "../../lib/shapes.ts";
import type { Db } from "../../lib/sys/sql.ts";
import { healthyGroup, PRIMARY, refused, report, SECONDARY } from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const FOR_EVER_MS = 1e9;

async function join(
  db: Db,
  formation: string,
  group: number,
  port: number,
  system: string,
  name: string,
): Promise<Answer> {
  const rows = await db.query(
    "select pgautofailover.register_node($1, 'localhost', $2, $3, $4, $5::text::numeric, $6) as value",
    [formation, port, randomUUID(), name, system, group],
  );
  return parseAnswer(rows[0]?.["value"]);
}

story(here, "two formations and two groups keep to themselves", async (world) => {
  const { own, keeper, says, monitor } = await healthyGroup(world, 2);
  const system = (id: string) => ({ systemIdentifier: id });
  await says(1, { ...PRIMARY, ...system("1") });
  await says(2, { ...SECONDARY, ...system("1") });
  await own.query("insert into pgautofailover.formation (formationid) values ('other')");
  const second = { formation: "default", groupId: 1 };
  const other = { formation: "other", groupId: 0 };
  // another cluster's system identifier, and a name that is taken in the first formation
  expect((await join(keeper, "default", 1, 6001, "2", "node_a")).nodes).toEqual([]);
  expect((await join(keeper, "other", 0, 6002, "3", "node_1")).nodes).toEqual([]);
  expect((await join(keeper, "other", 0, 6003, "3", "node_2")).nodes).toHaveLength(1);
  expect(await refused(join(keeper, "default", 1, 6004, "1", "node_b"))).toStartWith("PA004");
  expect(await groups(own)).toEqual([{ formation: "default", groupId: 0 }, second, other]);

  const before = await readGroup(own, { formation: "default", groupId: 0 });
  const first = async (): Promise<unknown> => {
    const row = await readGroup(own, { formation: "default", groupId: 0 });
    return row?.nodes.map(({ nodeId, goal, reported }) => [nodeId, goal, reported]);
  };
  const asItWas = before?.nodes.map(({ nodeId, goal, reported }) => [nodeId, goal, reported]);
  expect(asItWas).toHaveLength(2);
  // three nodes of the quorum in a formation are not three in a group
  expect(before?.settings.numberSyncStandbys).toBe(0);

  for (const key of [second, other]) {
    const outcome = await decideAndWrite(own, key, FOR_EVER_MS);
    const rules = outcome?.decisions.map(({ rule }) => rule.id);
    expect(rules).toEqual(key === other ? ["R101", "R102"] : ["R101"]);
    expect(outcome?.row.sync).toMatchObject({ version: 1, number: 0 });
  }
  expect(await first()).toEqual(asItWas);

  const call = (text: string): Promise<string> =>
    refused(keeper.query(`select pgautofailover.${text}`));
  expect(await call("set_formation('other', 'durability', 'performance')")).toBe("");
  expect(await call("set_node_candidate_priority('other', 'node_1', 7)")).toBe("");
  expect(await call("set_node_replication_quorum('other', 'node_2', false)")).toBe("");
  expect(await call("perform_failover('default', 1)")).toStartWith("PA030");
  expect(await call("perform_promotion('other', 'node_2')")).toStartWith("PA030");
  // a report under the name of another formation is a stranger's
  expect(await refused(report(keeper, 4, { reportNo: 1n }))).toBe(
    'PA012: the monitor does not know node 4 of formation "default"',
  );
  expect(await call("perform_failover('default', 0)")).toBe("");
  const rows = await Promise.all(
    [before ?? second, second, other].map((key) => readGroup(own, key)),
  );
  expect(rows.map((row) => row?.request !== undefined)).toEqual([true, false, false]);
  expect(rows.map((row) => row?.settings.durability)).toEqual([
    "availability",
    "availability",
    "performance",
  ]);
  expect(rows.map((row) => row?.nodes.map(({ candidatePriority }) => candidatePriority))).toEqual([
    [50, 50],
    [50],
    [7, 50],
  ]);
  expect(await first()).toEqual(asItWas);
  const names = await keeper.query(
    "select pgautofailover.synchronous_standby_names('default', 0) as a, pgautofailover.synchronous_standby_names('other', 0) as b",
  );
  expect(names).toEqual([{ a: "ANY 1 (pgautofailover_standby_2)", b: "" }]);
  expect(
    await keeper.query("select nodename from pgautofailover.current_state('other')"),
  ).toHaveLength(2);
  await monitor.close();
});
