/** What an operator may ask of the monitor's database, and the sentence of each refusal. */
import { expect } from "bun:test";
import { recordHealth } from "../../lib/monitor/store.ts";
import {
  healthyGroup,
  identityOf,
  PRIMARY,
  refused,
  register,
  type Scene,
  SECONDARY,
  scene,
} from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;

/** Calls a function of the schema as an operator; "" when it's not refused. */
const callsOf =
  ({ keeper }: Scene) =>
  (call: string): Promise<string> =>
    refused(keeper.query(`select pgautofailover.${call}`));

const goal = ({ own }: Scene, nodeId: number, state: string): Promise<unknown> =>
  own.query("update pgautofailover.node set goalstate = $2 where nodeid = $1", [nodeId, state]);

story(
  here,
  "a failover that was asked for is carried out, and the request is done",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const { says, decide, row, news } = group;
    const call = callsOf(group);
    const heard: string[] = [];
    const listener = group.monitor.open();
    await new Promise<void>((resolve) => {
      void listener.listen("report", (text) => heard.push(text), resolve);
    });
    expect(await call("perform_promotion('default', 'node_2')")).toBe("");
    expect((await row()).request).toEqual({ target: 2, allowDataLoss: false, planned: false });
    expect(await news()).toEqual(['A failover of group 0 was asked for, to node 2 "node_2"']);
    await says(1, PRIMARY);
    expect(heard.length).toBeGreaterThan(0);
    expect(await decide()).toBe("R320 R322 R322");
    const promised = { state: "report_lsn", inRecovery: true };
    await says(3, { ...promised, lsn: "0/6000000" });
    await says(2, { ...promised, lsn: "0/6000000" });
    expect(await decide()).toBe("R323 R328");
    expect(await group.goals()).toEqual({
      1: "draining",
      2: "prepare_promotion",
      3: "join_secondary",
    });
    await says(2, { ...promised, state: "prepare_promotion", lsn: "0/6000000" });
    await decide();
    await says(1, { state: "demote_timeout", pgIsRunning: false });
    const promotion = { timeline: 2, forkLsn: "0/6000000" };
    await says(2, { state: "stop_replication", inRecovery: false, timeline: 2, promotion });
    expect((await row()).request).toBeDefined();
    expect(await decide()).toBe("R304");
    expect((await row()).request).toBeUndefined();
    await group.monitor.close();
  },
);

story(here, "a request that can't be met is dropped after 60 s", async (world) => {
  const group = await healthyGroup(world, 2);
  const { own, row, decide, news, keeper } = group;
  await keeper.query("select pgautofailover.set_node_candidate_priority('default', 'node_2', 0)");
  await keeper.query("select pgautofailover.perform_failover()");
  await news();
  expect(await decide()).toBe("");
  expect(await news()).toEqual([
    expect.stringContaining(
      "Blocked: the failover that was asked for, and every standby that is there has",
    ),
  ]);
  const age = (seconds: number) =>
    own.query(
      `update pgautofailover."group" set requesttime = clock_timestamp() - $1 * interval '1 s'`,
      [seconds],
    );
  await age(58);
  expect((await row()).request).toBeDefined();
  await age(61);
  expect((await row()).request).toBeUndefined();
  expect(await decide()).toBe("");
  expect(await news()).toEqual(["Nothing is in the way of a failover any more"]);
  await group.monitor.close();
});

story(
  here,
  "failover and promotion: every refusal has its code and its sentence",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const call = callsOf(group);
    expect(await call("perform_failover('none')")).toBe('PA001: formation "none" has no group 0');
    expect(await call("perform_failover('default', 7)")).toBe(
      'PA001: formation "default" has no group 7',
    );
    expect(await call("perform_promotion('default', 'nobody')")).toBe(
      'PA008: formation "default" has no node "nobody"',
    );
    expect(await call("perform_promotion('default', 'node_1')")).toBe(
      'PA032: node 1 ("node_1") is the primary',
    );
    await goal(group, 3, "dropped");
    expect(await call("perform_promotion('default', 'node_3')")).toBe(
      'PA030: node 3 ("node_3") is no standby that could take over: its goal is "dropped"',
    );
    for (const state of ["fast_forward", "prepare_promotion", "stop_replication"]) {
      await goal(group, 3, state);
      expect(await call("perform_failover()")).toBe(
        'PA031: node 3 ("node_3") is being promoted already',
      );
    }
    // it may be gone, with what nobody else has
    expect(await call("perform_failover('default', 0, true)")).toBe("");
    await goal(group, 2, "wait_standby");
    await goal(group, 3, "demoted");
    expect(await call("perform_failover()")).toBe(
      'PA030: group 0 of formation "default" has no standby that could take over',
    );
    await group.monitor.close();
  },
);

story(here, "settings of a node", async (world) => {
  const group = await healthyGroup(world, 2);
  const { row, news } = group;
  const call = callsOf(group);
  for (const priority of [0, 100]) {
    expect(await call(`set_node_candidate_priority('default', 'node_2', ${priority})`)).toBe("");
    expect((await row()).nodes[1]?.candidatePriority).toBe(priority);
  }
  for (const priority of ["101", "-1", "null"]) {
    expect(await call(`set_node_candidate_priority('default', 'node_2', ${priority})`)).toMatch(
      /^PA009: a candidate priority is a number from 0 to 100, not /,
    );
  }
  expect(await call("set_node_candidate_priority('default', 'nobody', 1)")).toStartWith("PA008");
  expect(await call("set_node_replication_quorum('default', 'node_2', false)")).toBe("");
  expect((await row()).nodes[1]).toMatchObject({
    candidatePriority: 100,
    replicationQuorum: false,
  });
  expect(await call("set_node_replication_quorum('none', 'node_2', false)")).toStartWith("PA008");
  expect(await news()).toEqual([
    'Candidate priority of node 2 "node_2" is 0 now',
    'Candidate priority of node 2 "node_2" is 100 now',
    'Replication quorum of node 2 "node_2" is false now',
  ]);
  await group.monitor.close();
});

story(
  here,
  "settings of a formation: each is set, told, and part of every answer",
  async (world) => {
    const group = await healthyGroup(world, 2);
    const { row, news, says } = group;
    const call = callsOf(group);
    const values = {
      number_sync_standbys: "2",
      durability: "protection",
      strict_fencing: "true",
      maximum_lag_on_failover: "1048576",
      heartbeat_ms: "500",
      network_partition_timeout_ms: "1000",
      node_timeout_ms: "2500",
      unreachable_primary_timeout_ms: "9000",
      postgres_timeout_ms: "700",
      fast_forward_timeout_ms: "5000",
      switchover_timeout_ms: "6000",
      caught_up_bytes: "4096",
    };
    for (const [name, value] of Object.entries(values)) {
      expect({ name, said: await call(`set_formation('default', '${name}', '${value}')`) }).toEqual(
        {
          name,
          said: "",
        },
      );
    }
    expect(await news()).toEqual(
      Object.entries(values).map(
        ([name, value]) => `Setting ${name} of formation "default" is "${value}" now`,
      ),
    );
    const policy = {
      heartbeatMs: 500,
      networkPartitionTimeoutMs: 1000,
      fenceStopTimeoutMs: 1200,
      nodeTimeoutMs: 2500,
      unreachablePrimaryTimeoutMs: 9000,
      postgresTimeoutMs: 700,
      fastForwardTimeoutMs: 5000,
      switchoverTimeoutMs: 6000,
      caughtUpBytes: 4096n,
    };
    expect(await row()).toMatchObject({
      policy,
      settings: {
        numberSyncStandbys: 2,
        durability: "protection",
        strictFencing: true,
        maximumLagBytes: 1048576n,
      },
    });
    expect((await says(1, PRIMARY)).policy).toEqual(policy);
    expect(await call("set_formation_number_sync_standbys('default', 1)")).toBe("");
    expect((await row()).settings.numberSyncStandbys).toBe(1);
    await group.monitor.close();
  },
);

story(
  here,
  "settings of a formation: what would break a promise is refused, and says why",
  async (world) => {
    const group = await healthyGroup(world, 2);
    const before = await group.row();
    const set = (name: string, value: string, formation = "default"): Promise<string> =>
      callsOf(group)(`set_formation('${formation}', '${name}', '${value}')`);
    const sentences: [string, string, RegExp][] = [
      [
        "node_timeout_ms",
        "3700",
        /^PA009: node_timeout_ms can't be 3700 here: node_timeout_ms must be more than network_partition_timeout_ms \+ fence_stop_timeout_ms, which/,
      ],
      [
        "network_partition_timeout_ms",
        "2800",
        /must be more than network_partition_timeout_ms \+ fence_stop_timeout_ms/,
      ],
      [
        "heartbeat_ms",
        "1300",
        /network_partition_timeout_ms must be at least twice heartbeat_ms, or one late report/,
      ],
      ["unreachable_primary_timeout_ms", "3000", /must not be less than node_timeout_ms$/],
      ["fence_stop_timeout_ms", "399", /it is 400 or more$/],
      ["heartbeat_ms", "50", /heartbeat_ms can't be 50 here: it is a number from 100 to 10000$/],
      ["postgres_timeout_ms", "499", /it is 500 or more$/],
      ["fast_forward_timeout_ms", "0", /it is 1000 or more$/],
      ["number_sync_standbys", "-1", /it is 0 or more$/],
      ["maximum_lag_on_failover", "-1", /it is 0 or more$/],
      ["caught_up_bytes", "-1", /it is 0 or more$/],
      ["durability", "fast", /it is protection, availability or performance$/],
      [
        "node_timeout_ms",
        "soon",
        /^PA009: node_timeout_ms can't be "soon": invalid input syntax for type integer/,
      ],
      ["number_sync_standbys", "99999999999", /out of range/],
      ["strict_fencing", "perhaps", /boolean/],
      ["dbname", "x", /^PA009: a formation has no setting "dbname"$/],
      ["formationid", "x", /^PA009: a formation has no setting "formationid"$/],
    ];
    for (const [name, value, says] of sentences) expect(await set(name, value)).toMatch(says);
    expect(await set("node_timeout_ms", "5000", "none")).toBe(
      'PA001: formation "none" does not exist',
    );
    const { policy, settings } = await group.row();
    expect({ policy, settings }).toEqual({ policy: before.policy, settings: before.settings });
    expect(await group.news()).toEqual([]);
    await group.monitor.close();
  },
);

story(here, "the third node of the quorum raises number_sync_standbys to 1", async (world) => {
  const group = await scene(world, 2);
  const { keeper, row, monitor } = group;
  const count = async () => (await row()).settings.numberSyncStandbys;
  expect(await count()).toBe(0);
  const third = { port: 5003, identity: identityOf(3) };
  await callsOf(group)("set_node_replication_quorum('default', 'node_2', false)");
  await register(keeper, third);
  expect(await count()).toBe(0);
  await callsOf(group)("set_node_replication_quorum('default', 'node_2', true)");
  await keeper.query("select pgautofailover.remove_node(3, true)");
  await register(keeper, third);
  expect(await count()).toBe(1);
  // what an operator has chosen since is left alone
  await callsOf(group)("set_formation_number_sync_standbys('default', 0)");
  await register(keeper, { port: 5004, identity: identityOf(4) });
  expect(await count()).toBe(0);
  await monitor.close();
});

// ------------------------------------------------------------ accept_timeline

/** The primary is gone, and its standby was promoted behind our back. */
async function dispute(group: Scene): Promise<void> {
  const { own, says, decide, row } = group;
  await own.query(
    "update pgautofailover.node set reporttime = clock_timestamp() - interval '1 hour' where nodeid = 1",
  );
  await recordHealth(own, 1, "bad", 1);
  const promotion = { timeline: 2, forkLsn: "0/4000000" };
  await says(2, { ...SECONDARY, inRecovery: false, timeline: 2, lsn: "0/5000000", promotion });
  await decide();
  expect((await row()).disputed).toBe(true);
}

story(
  here,
  "accept_timeline: refused where nothing is disputed, or the node can't know",
  async (world) => {
    const group = await healthyGroup(world, 2);
    const { own, says } = group;
    const accept = (name: string, group_id = 0): Promise<string> =>
      callsOf(group)(`accept_timeline('default', ${group_id}, '${name}')`);
    expect(await accept("node_1")).toBe(
      'PA033: nothing is disputed in group 0 of formation "default": it is on timeline 1',
    );
    await dispute(group);
    expect(await accept("nobody")).toStartWith("PA008");
    expect(await accept("node_2", 3)).toBe('PA008: node 2 ("node_2") belongs to group 0, not 3');
    expect(await accept("node_1")).toBe('PA033: node 1 ("node_1") has not reported for 3600 s');
    await says(1, { ...PRIMARY, pgIsRunning: false });
    expect(await accept("node_1")).toBe('PA033: node 1 ("node_1") has no PostgreSQL that runs');
    // written to without a promotion: nobody can tell its WAL from that of the real timeline 1
    await says(2, { ...SECONDARY, inRecovery: false, timeline: 1 });
    expect(await accept("node_2")).toStartWith(
      'PA033: node 2 ("node_2") takes writes on timeline 1, which the group has from node 1 ("node_1"): restart it as a standby',
    );
    expect((await group.row()).disputed).toBe(true);
    expect(await own.query("select from pgautofailover.timeline_history")).toHaveLength(1);
    await group.monitor.close();
  },
);

story(here, "accept_timeline: the history goes on with the promoted standby's", async (world) => {
  const group = await healthyGroup(world, 2);
  await dispute(group);
  await group.news();
  expect(await callsOf(group)("accept_timeline('default', 0, 'node_2')")).toBe("");
  expect(await group.row()).toMatchObject({
    disputed: false,
    history: [
      { timeline: 1, parent: 0, forkLsn: 0n },
      { timeline: 2, parent: 1, forkLsn: 0x4000000n },
    ],
    request: { target: 2, allowDataLoss: true },
  });
  expect(await group.news()).toEqual([
    'Timeline 2 of node 2 "node_2" was accepted as that of group 0',
  ]);
  expect(
    await group.own.query(
      "select timeline, nodeid::int as id, nodename as name from pgautofailover.timeline_history order by 1",
    ),
  ).toEqual([
    { timeline: 1, id: 1, name: "node_1" },
    { timeline: 2, id: 2, name: "node_2" },
  ]);
  await group.monitor.close();
});

story(
  here,
  "accept_timeline: a fork point that nobody reported counts as the parent's start",
  async (world) => {
    const group = await healthyGroup(world, 3);
    const { own, says, row } = group;
    await own.query(
      `insert into pgautofailover.timeline_history (formationid, groupid, timeline, parent, forklsn, nodeid, nodename)
     values ('default', 0, 2, 1, '0/2000000', 1, 'node_1'), ('default', 0, 5, 2, '0/2800000', 9, 'node_9')`,
    );
    await own.query(`update pgautofailover."group" set disputed = true`);
    const forked = { ...SECONDARY, inRecovery: false, lsn: "0/5000000" };
    await says(2, { ...forked, timeline: 3 });
    expect(await callsOf(group)("accept_timeline('default', 0, 'node_2')")).toBe("");
    expect((await row()).history.slice(1)).toEqual([
      { timeline: 2, parent: 1, forkLsn: 0x2000000n },
      { timeline: 3, parent: 2, forkLsn: 0x2000000n },
    ]);
    // it left timeline 1, before timeline 2 began
    await own.query(`update pgautofailover."group" set disputed = true`);
    await says(3, { ...forked, timeline: 4, promotion: { timeline: 4, forkLsn: "0/1000000" } });
    expect(await callsOf(group)("accept_timeline('default', 0, 'node_3')")).toBe("");
    expect((await row()).history.at(-1)).toEqual({ timeline: 4, parent: 1, forkLsn: 0x1000000n });
    await group.monitor.close();
  },
);

story(
  here,
  "accept_timeline: the primary is back, and its word holds: the fork is taken back",
  async (world) => {
    const group = await healthyGroup(world, 2);
    const { says, decide, goals, row } = group;
    await dispute(group);
    await says(1, PRIMARY);
    expect(await decide()).toBe("");
    expect(await callsOf(group)("accept_timeline('default', 0, 'node_1')")).toBe("");
    expect((await row()).request).toBeUndefined();
    expect(await decide()).toMatch(/^R203/);
    expect(await goals()).toMatchObject({ 2: "demoted" });
    expect(await row()).toMatchObject({ disputed: false, blocked: undefined });
    await group.monitor.close();
  },
);
