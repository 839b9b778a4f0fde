/** Formations and nodes as operators make, change and remove them: by commands, and in SQL under upstream's names. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { randomUUID } from "node:crypto";
import type { RoleName } from "../helpers/command.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { waitFor } from "../helpers/wait.ts";
import { healthyOn, PRIMARY, refused, register, type Scene, SECONDARY } from "./monitor_story.ts";
import {
  commandsAt,
  endOperated,
  forgetAll,
  type Operated,
  startOperated,
} from "./operator_story.ts";

let world: Operated;
beforeAll(async () => {
  world = await startOperated("interface");
}, 60_000);
afterAll(() => endOperated(world), 20_000);

/** Three nodes: node_1 is the primary, and one of the others must have each commit. */
let group: Scene;
beforeEach(async () => {
  group = await healthyOn(world.monitor, 3);
});
afterEach(() => forgetAll(group));

const { role, says, tells } = commandsAt(() => world);

/** What an operator types into psql, as the login of operators and keepers. */
const psql = (text: string): Promise<Record<string, unknown>[]> =>
  group.keeper.query(text.replaceAll("@", "pgautofailover."));
const value = async (call: string): Promise<unknown> =>
  (await psql(`select @${call} as value`))[0]?.["value"];
const isRefused = (call: string): Promise<string> => refused(value(call));

const nodes = async (): Promise<unknown> =>
  (await psql("select nodename as name, goalstate as goal from @node order by nodeid")).map(
    ({ name, goal }) => `${name} ${goal}`,
  );

// ------------------------------------------------------------ SQL

test("SQL: nodes, the primary and the URI of a group", async () => {
  const local = { node_host: "localhost", node_lsn: "0/3000000" };
  const row = (id: number, primary: boolean) => ({
    ...{ ...local, node_id: String(id), node_name: `node_${id}`, node_port: 5000 + id },
    node_is_primary: primary,
  });
  const all = [row(1, true), row(2, false), row(3, false)];
  expect(await psql("select * from @get_nodes()")).toEqual(all);
  expect(await psql("select * from @get_nodes('default', 0)")).toEqual(all);
  expect(await psql("select * from @get_nodes('default', 1)")).toEqual([]);
  expect(await psql("select * from @get_other_nodes(2)")).toEqual([row(1, true), row(3, false)]);
  expect(await psql("select * from @get_primary()")).toEqual([
    {
      primary_node_id: "1",
      primary_name: "node_1",
      primary_host: "localhost",
      primary_port: 5001,
    },
  ]);
  expect(await isRefused("get_primary('default', 3)")).toStartWith("PA030: group 3 of");
  expect(await value("formation_uri()")).toBe(
    "postgres://localhost:5001,localhost:5002,localhost:5003/postgres?target_session_attrs=read-write&sslmode=prefer",
  );
  await psql("select @update_node_metadata(1, node_host => 'fd00::1')");
  await group.own.query(`update pgautofailover.formation set dbname = 'a/b é'`);
  expect(
    await value("formation_uri('default', 'default', 'verify-ca', '/etc/root ca.crt', '/crl')"),
  ).toBe(
    "postgres://[fd00::1]:5001,localhost:5002,localhost:5003/a%2Fb%20%C3%A9?target_session_attrs=read-write&sslmode=verify-ca&sslrootcert=%2Fetc%2Froot%20ca.crt&sslcrl=%2Fcrl",
  );
  expect(await value("formation_uri('none')")).toBeNull();
  expect(await psql("select nodename from @current_state('default', 1)")).toEqual([]);
  expect(await psql("select nodename, nodecluster from @current_state()")).toHaveLength(3);
});

test("SQL: events of all formations, of one, of a group", async () => {
  await value("create_formation('other', 'pgsql', 'postgres', true, 0)");
  const other = { formation: "other", port: 6001, identity: randomUUID(), name: "only" };
  await register(group.keeper, other);
  await value("set_node_candidate_priority('default', 'node_1', 60)");
  const told = async (call: string): Promise<unknown> =>
    (await psql(`select * from @${call}`)).map(({ description }) => description);
  const all = (await told("last_events(1000)")) as string[];
  expect(all.at(-1)).toBe('Candidate priority of node 1 "node_1" is 60 now');
  expect(await told("last_events(1)")).toEqual(all.slice(-1));
  const own = all.filter((text) => !text.includes('"other"'));
  expect(await told("last_events()")).toEqual(own.slice(-10));
  expect(await told("last_events('default', 2)")).toEqual(own.slice(-2));
  expect(await told("last_events('default', 0, 2)")).toEqual(own.slice(-2));
  expect(await told("last_events('default', 1, 2)")).toEqual([]);
  const registered = 'Registered node 4 "only" (localhost:6001) in formation "other", group 0';
  expect(await told("last_events('other')")).toEqual([registered]);
  expect(all.at(-2)).toBe(registered);
});

test("SQL: a formation is made once, and dropped when it has no nodes", async () => {
  expect(await psql("select * from @create_formation('app', 'pgsql', 'app', true, 1)")).toEqual([
    expect.objectContaining({ formationid: "app", dbname: "app", number_sync_standbys: 1 }),
  ]);
  expect(await isRefused("create_formation('app')")).toBe('PA014: formation "app" exists already');
  expect(await isRefused("create_formation('x', 'citus')")).toStartWith("PA009");
  expect(await isRefused("create_formation('x', opt_secondary => false)")).toStartWith("PA009");
  expect(await isRefused("create_formation('x', number_sync_standbys => -1)")).toStartWith("PA009");
  expect(await isRefused("create_formation('x', durability => 'none')")).toStartWith("PA009");
  expect(await isRefused("drop_formation('default')")).toBe(
    'PA015: formation "default" has 3 nodes',
  );
  expect(await value("drop_formation('app')")).toBe(true);
  expect(await isRefused("drop_formation('app')")).toStartWith("PA001");
});

test("SQL: names of formations, nodes, databases and hosts", async () => {
  for (const name of ["it''s \"mine\"/1", "x".repeat(63), "é"]) {
    expect(await isRefused(`create_formation('${name}')`)).toBe("");
    expect(await value(`drop_formation('${name}')`)).toBe(true);
  }
  const bad = ["", " a", "a ", "x".repeat(64), "é".repeat(32), "a\\nb", "a\\x7fb"];
  for (const name of bad) {
    for (const call of [
      `create_formation(e'${name}')`,
      `create_formation('x', dbname => e'${name}')`,
      `update_node_metadata(1, e'${name}')`,
    ]) {
      expect({ call, said: await isRefused(call) }).toEqual({
        call,
        said: expect.stringMatching(/^PA013: .* 1 to 63 bytes, [^\n]*$/),
      });
    }
  }
  for (const host of ["", "a b", "x\\nhost all all all trust", "h''", "a,b"]) {
    const call = `update_node_metadata(1, null, e'${host}')`;
    expect({ call, said: await isRefused(call) }).toEqual({
      call,
      said: expect.stringMatching(/^PA013: a host is a name or an address[^\n]*$/),
    });
  }
  expect(await refused(register(group.keeper, { port: 6001, name: "a\nb" }))).toStartWith("PA013");
  expect(await refused(register(group.keeper, { port: 6001, host: "a\nb" }))).toStartWith("PA013");
});

test("SQL: name, host and port of a node; its peers hear of them", async () => {
  expect(await value("update_node_metadata(2, 'b')")).toBe(true);
  expect(await value("update_node_metadata(3, 'c', 'db3.example', 5433)")).toBe(true);
  const { nodes: peers } = await group.says(1, PRIMARY);
  expect(peers).toMatchObject([
    { name: "b", host: "localhost", port: 5002 },
    { name: "c", host: "db3.example", port: 5433 },
  ]);
  expect((await group.says(2, SECONDARY)).name).toBe("b");
  expect(await group.news()).toContain('Node 3 is "c" at db3.example:5433 now');
  expect(await isRefused("update_node_metadata(2, 'c')")).toStartWith("PA007");
  expect(await isRefused("update_node_metadata(2, null, 'db3.example', 5433)")).toStartWith(
    "PA003",
  );
  expect(await isRefused("update_node_metadata(2, null, null, 70000)")).toStartWith("PA013");
  expect(await isRefused("update_node_metadata(9, 'x')")).toBe("PA008: there is no node 9");
});

test("SQL: a node is removed by id, by address, or by name", async () => {
  expect(await isRefused("remove_node('localhost', 5001)")).toStartWith("PA020");
  expect(await isRefused("remove_node('localhost', 5001, true)")).toStartWith("PA020");
  expect(await isRefused("remove_node('localhost', 9)")).toStartWith("PA008");
  expect(await isRefused("remove_node('default', 'nobody')")).toStartWith("PA008");
  expect(await value("remove_node('localhost', 5002)")).toBe(true);
  expect(await nodes()).toEqual(["node_1 primary", "node_2 dropped", "node_3 secondary"]);
  expect(await value("remove_node(2, true)")).toBe(true);
  expect(await value("remove_node('default', 'node_3', true)")).toBe(true);
  expect(await nodes()).toEqual(["node_1 primary"]);
});

// ------------------------------------------------------------ commands

test("formation create, list and drop", async () => {
  expect(
    await says("formation", "create", "it's", "--dbname", "app", "--durability", "protection"),
  ).toBe('Formation "it\'s" is there: make its nodes with roles/keeper.ts create --formation');
  expect(await tells("formation", "list")).toEqual([
    {
      ...{ formation: "default", dbname: "postgres", durability: "availability" },
      ...{ numberSyncStandbys: 1, groups: 1, nodes: 3 },
    },
    {
      ...{ formation: "it's", dbname: "app", durability: "protection" },
      ...{ numberSyncStandbys: 0, groups: 0, nodes: 0 },
    },
  ]);
  expect(await says("formation", "list")).toMatch(
    /\n +it's \| +app \| +protection \| +0 \| +0 \| +0$/,
  );
  expectRefusal(await role("formation", "create", "it's"), { code: 7, says: /exists already/ });
  expectRefusal(await role("formation", "drop", "default"), { code: 7, says: /has 3 nodes/ });
  expect(await tells("formation", "drop", "it's")).toEqual({ formation: "it's" });
  expectRefusal(await role("formation", "drop", "it's"), { code: 6, says: /does not exist/ });
}, 20_000);

test("node drop: a living standby is told, and has stopped when the command ends", async () => {
  const keeper = (async () => {
    await waitFor("the goal", 10_000, async () => (await group.goals())[3] === "dropped");
    await group.says(1, PRIMARY);
    await group.says(3, { state: "dropped", pgIsRunning: false });
    return group.decide();
  })();
  expect(await says("node", "drop", "--name", "node_3")).toBe(
    'Node "node_3" is removed from its group',
  );
  expect(await keeper).toMatch(/^R103/);
  expect(await nodes()).toEqual(["node_1 apply_settings", "node_2 secondary"]);
});

test("node drop: one that is gone goes at once with --force, and not without", async () => {
  await group.own.query(
    "update pgautofailover.node set reporttime = clock_timestamp() - interval '90 s' where nodeid = 3",
  );
  const silent = await role("node", "drop", "--name", "node_3");
  expectRefusal(silent, { code: 8, says: /does not report.*silent_s=9\d/ });
  expect(silent.stderr).toContain("--force");
  expect(await nodes()).toEqual(["node_1 primary", "node_2 secondary", "node_3 dropped"]);
  expect(await tells("node", "drop", "--name", "node_3", "--force")).toEqual({
    ...{ formation: "default", name: "node_3", removed: true },
  });
  expect(await nodes()).toEqual(["node_1 primary", "node_2 secondary"]);
  await group.says(1, PRIMARY);
  await group.says(2, SECONDARY);
  await group.decide();
  expect((await group.row()).sync).toMatchObject({ members: [2], number: 1 });
  expect(await tells("node", "drop", "--name", "node_2", "--no-wait")).toMatchObject({
    removed: false,
  });
});

test("node set name, from anywhere", async () => {
  expect(await says("node", "set", "name", "b", "--name", "node_2")).toBe(
    'name of node "node_2" is b',
  );
  expect(await tells("node", "get", "--name", "b")).toMatchObject({ name: "b", port: 5002 });
});

type Bad = { args: [RoleName, ...string[]]; code: number; says: RegExp };
const at = ["--name", "node_2"];

const BAD: readonly Bad[] = [
  { args: ["formation", "create"], code: 2, says: /NAME/ },
  { args: ["formation", "create", "a\nb"], code: 2, says: /no control characters/ },
  { args: ["formation", "create", "x".repeat(64)], code: 2, says: /1 to 63 bytes/ },
  { args: ["formation", "create", "x", "--durability", "none"], code: 2, says: /durability/ },
  { args: ["formation", "create", "x", "--number-sync-standbys=-1"], code: 2, says: /number-sync/ },
  { args: ["formation", "create", "x", "--dbname", "a\tb"], code: 2, says: /name of a database/ },
  { args: ["formation", "failover", "--group", "4"], code: 6, says: /has no group 4/ },
  { args: ["node", "drop", "--name", "nobody"], code: 6, says: /no node \\"nobody\\"/ },
  { args: ["node", "drop", "--name", "nobody", "--force"], code: 6, says: /no node/ },
  { args: ["node", "drop", "--name", "node_1"], code: 7, says: /is the primary/ },
  { args: ["node", "drop", "--name", "node_1", "--force"], code: 7, says: /is the primary/ },
  { args: ["node", "drop", ...at, "--destroy"], code: 2, says: /only on the node's own machine/ },
  { args: ["node", "drop", ...at, "--timeout", "soon"], code: 2, says: /--timeout takes a time/ },
  { args: ["node", "set", "name", "node_1", ...at], code: 7, says: /named \\"node_1\\" already/ },
  { args: ["node", "set", "name", "a\nb", ...at], code: 2, says: /no control characters/ },
  { args: ["node", "set", "host", "h", ...at], code: 2, says: /only on the node's own machine/ },
  { args: ["node", "set", "port", "5009", ...at], code: 2, says: /only on the node's own machine/ },
  { args: ["node", "set", "port", "0", ...at], code: 2, says: /1 to 65535/ },
];

test("bad input: one line that says what is wrong, one that helps, and the exit code", async () => {
  for (const { args, code, says: sentence } of BAD) {
    expectRefusal(await role(...args), { code, says: sentence });
  }
  expect(await nodes()).toEqual(["node_1 primary", "node_2 secondary", "node_3 secondary"]);
  expect(await tells("formation", "list")).toHaveLength(1);
}, 40_000);

// ------------------------------------------------------------ two at once

/** Holds the group's lock, as a decision does, until `until` is done. */
const holdLock = <T>(until: () => Promise<T>): Promise<T> =>
  world.monitor.open().transaction(
    async (query) => {
      await query("select pgautofailover.lock_group('default', 0)");
      return until();
    },
    { timeoutMs: 30_000 },
  );

test("a command that finds the group's lock held tries again until it's free", async () => {
  const starts = new Set<unknown>();
  const changed = await holdLock(async () => {
    const command = says("node", "set", "candidate-priority", "70", "--name", "node_2");
    await waitFor("a second attempt", 10_000, async () => {
      const rows = await group.own.query(
        "select query_start::text as at from pg_stat_activity where wait_event = 'advisory'",
      );
      for (const { at: start } of rows) starts.add(start);
      return starts.size > 1;
    });
    return { command };
  });
  expect(await changed.command).toBe('candidate-priority of node "node_2" is 70');
}, 20_000);

test("a command that waits for the group's lock in vain says what it has waited for", async () => {
  const outcome = await holdLock(() => role("node", "drop", "--name", "node_3"));
  expectRefusal(outcome, {
    ...{ code: 7, says: /another change of this group is under way/, withinMs: 15_000 },
  });
  expect(outcome.tookMs).toBeGreaterThan(10_000);
  expect(await nodes()).toEqual(["node_1 primary", "node_2 secondary", "node_3 secondary"]);
}, 30_000);

test("a formation is dropped, or gets its first node: never both", async () => {
  const first = { formation: "f", port: 6001, identity: randomUUID() };
  const waits = () =>
    waitFor("one to wait for the other", 5000, async () => {
      const rows = await group.own.query("select from pg_locks where not granted");
      return rows.length > 0;
    });
  await value("create_formation('f')");
  const dropped = await world.monitor.open().transaction(async (query) => {
    await query("select pgautofailover.drop_formation('f')");
    const registered = refused(register(group.keeper, first));
    await waits();
    return { registered };
  });
  expect(await dropped.registered).toStartWith("PA001");

  await value("create_formation('f')");
  const registered = await world.monitor.open().transaction(async (query) => {
    await query("select pgautofailover.register_node('f', 'localhost', 6001, $1, group_id => 5)", [
      randomUUID(),
    ]);
    const drop = isRefused("drop_formation('f')");
    await waits();
    return { drop };
  });
  expect(await registered.drop).toBe('PA015: formation "f" has 1 node');
});

test("several operators at once: each is served, or is told why not", async () => {
  const outcomes = await Promise.all([
    role("formation", "set", "node-timeout", "6s"),
    role("formation", "set", "number-sync-standbys", "2"),
    role("node", "set", "candidate-priority", "70", "--name", "node_2"),
    role("node", "set", "replication-quorum", "false", "--name", "node_2"),
    role("formation", "create", "twice"),
    role("formation", "create", "twice"),
    role("node", "drop", "--name", "node_3", "--no-wait"),
    role("node", "drop", "--name", "node_3", "--force"),
  ]);
  const [, , , , ...rest] = outcomes;
  expect(outcomes.slice(0, 4).map(({ code, stderr }) => ({ code, stderr }))).toEqual(
    Array.from({ length: 4 }, () => ({ code: 0, stderr: "" })),
  );
  expect(
    rest
      .slice(0, 2)
      .map(({ code }) => code)
      .toSorted(),
  ).toEqual([0, 7]);
  for (const { code, stderr } of rest) {
    if (code !== 0) expect(stderr).toMatch(/exists already|has no node/);
  }
  const { settings, policy, nodes: left } = await group.row();
  expect(settings.numberSyncStandbys).toBe(2);
  expect(policy.nodeTimeoutMs).toBe(6000);
  expect(left).toMatchObject([{}, { candidatePriority: 70, replicationQuorum: false }]);
}, 30_000);
