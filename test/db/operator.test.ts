/** What an operator types, against a monitor's database that no process decides on but the test. */

import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { PRESETS } from "../../lib/group/view.ts";
import { type RoleName, roleCommand, runRole } from "../helpers/command.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { waitFor, within } from "../helpers/wait.ts";
import { healthyOn, PRIMARY, type Scene, SECONDARY } from "./monitor_story.ts";
import {
  commandsAt,
  endOperated,
  forgetAll,
  type Operated,
  startOperated,
} from "./operator_story.ts";

let world: Operated;
beforeAll(async () => {
  world = await startOperated("operator");
}, 60_000);
afterAll(() => endOperated(world), 20_000);

/** Three nodes: node_1 is the primary, and one of the others must have each commit. */
let group: Scene;
beforeEach(async () => {
  group = await healthyOn(world.monitor, 3);
});
afterEach(() => forgetAll(group));

const { role, says, tells } = commandsAt(() => world);

const isSilent = ({ own }: Scene, nodeId: number): Promise<unknown> =>
  own.query(
    `update pgautofailover.node set reporttime = clock_timestamp() - interval '90 s',
       health = 0, healthchecktime = clock_timestamp() where nodeid = $1`,
    [nodeId],
  );

// ------------------------------------------------------------ refusals

type Bad = { args: [RoleName, ...string[]]; code: number; says: RegExp };

const BAD: readonly Bad[] = [
  // said before the monitor is asked
  { args: ["formation", "get", "--formatoin", "x"], code: 2, says: /--formatoin/ },
  { args: ["formation", "set", "nod-timeout", "1"], code: 2, says: /no such setting.*nod-timeout/ },
  { args: ["formation", "set", "node-timeout"], code: 2, says: /VALUE/ },
  {
    args: ["formation", "set", "node-timeout", "soon"],
    code: 2,
    says: /node-timeout takes a time/,
  },
  { args: ["formation", "set", "node-timeout", "1.0005s"], code: 2, says: /takes a time/ },
  {
    args: ["formation", "set", "maximum-lag-on-failover", "16Mb"],
    code: 2,
    says: /takes a size in whole bytes/,
  },
  { args: ["formation", "failover", "--group", "first"], code: 2, says: /--group/ },
  { args: ["formation", "failover", "--timeout", "x"], code: 2, says: /--timeout takes a time/ },
  { args: ["formation", "accept-timeline"], code: 2, says: /NODE/ },
  { args: ["node", "get"], code: 2, says: /no node given/ },
  {
    args: ["node", "set", "candidate-priority", "101", "--name", "node_2"],
    code: 2,
    says: /0 to 100/,
  },
  {
    args: ["node", "set", "candidate-priority", "high", "--name", "node_2"],
    code: 2,
    says: /0 to 100/,
  },
  {
    args: ["node", "set", "replication-quorum", "yes", "--name", "node_2"],
    code: 2,
    says: /true or false/,
  },
  { args: ["node", "set", "weight", "1", "--name", "node_2"], code: 2, says: /no such setting/ },
  // said by the monitor
  {
    args: ["formation", "get", "--formation", "none"],
    code: 6,
    says: /formation \\"none\\" does not exist/,
  },
  {
    args: ["formation", "set", "durability", "protection", "--formation", "none"],
    code: 6,
    says: /does not exist/,
  },
  {
    args: ["formation", "set", "durability", "fast"],
    code: 2,
    says: /protection, availability or performance/,
  },
  {
    args: ["formation", "set", "node-timeout", "3s"],
    code: 2,
    says: /must be more than network_partition_timeout_ms/,
  },
  { args: ["formation", "set", "heartbeat", "2s"], code: 2, says: /at least twice heartbeat_ms/ },
  { args: ["formation", "failover", "--group", "4"], code: 6, says: /has no group 4/ },
  { args: ["formation", "accept-timeline", "node_1"], code: 7, says: /nothing is disputed/ },
  { args: ["formation", "accept-timeline", "nobody"], code: 6, says: /no node \\"nobody\\"/ },
  { args: ["node", "get", "--name", "nobody"], code: 6, says: /no node \\"nobody\\"/ },
  {
    args: ["node", "set", "candidate-priority", "1", "--name", "nobody"],
    code: 6,
    says: /no node/,
  },
  { args: ["node", "promote", "--name", "nobody"], code: 6, says: /no node/ },
  { args: ["node", "promote", "--name", "node_1"], code: 7, says: /is the primary/ },
  { args: ["state", "failovers", "--count", "0"], code: 2, says: /whole number from 1/ },
];

test("bad input: one line that says what is wrong, one that helps, and the exit code", async () => {
  for (const { args, code, says: sentence } of BAD) {
    expectRefusal(await role(...args), { code, says: sentence });
  }
  expect((await group.row()).request).toBeUndefined();
}, 40_000);

test("a formation that doesn't exist is no empty one, whatever is asked of it", async () => {
  const asked = ["show", "events", "explain", "failovers", "timeline", "settings", "standby-names"];
  const commands: [RoleName, ...string[]][] = [
    ...asked.map((verb): [RoleName, string] => ["state", verb]),
    ...[
      ["show", "--json"],
      ["watch", "--json"],
      ["events", "--since", "1h"],
    ].map((words): [RoleName, ...string[]] => ["state", ...words]),
    ["uri"],
  ];
  for (const words of commands) {
    const refused = await role(...words, "--formation", "none");
    expectRefusal(refused, { code: 6, says: /formation \\"none\\" .*does not exist/ });
  }
}, 40_000);

test("node --pgdata: a directory without a keeper, or none at all", async () => {
  const empty = join(world.base, "empty");
  const outcome = await runRole("node", ["get", "--pgdata", empty], { env: world.env });
  expectRefusal(outcome, { code: 3, says: /there is no keeper/ });
  expectRefusal(await runRole("node", ["promote"], { env: world.env }), {
    code: 2,
    says: /no node given/,
  });
  const here = ["--pgdata", empty];
  for (const args of [["get"], ["failover"], ["accept-timeline", "node_1"]]) {
    const refused = await runRole("formation", [...args, ...here], { env: world.env });
    expectRefusal(refused, { code: 3, says: /there is no keeper/ });
  }
});

test("--help of every new command", async () => {
  const commands: [RoleName, ...string[]][] = [
    ["formation"],
    ["formation", "create"],
    ["formation", "drop"],
    ["formation", "list"],
    ["formation", "get"],
    ["formation", "set"],
    ["formation", "failover"],
    ["formation", "accept-timeline"],
    ["node"],
    ["node", "get"],
    ["node", "set"],
    ["node", "promote"],
    ["node", "drop"],
    ["state", "explain"],
    ["state", "timeline"],
    ["state", "watch"],
    ["state", "events"],
    ["state", "failovers"],
    ["state", "settings"],
    ["state", "standby-names"],
    ["state", "fsm"],
  ];
  for (const [name, ...words] of commands) {
    const outcome = await runRole(name, [...words, "--help"], { env: world.env });
    expect(outcome).toMatchObject({ code: 0, stderr: "", stdout: expect.stringMatching(/usage/i) });
  }
}, 20_000);

// ------------------------------------------------------------ settings

test("formation set and get: names and units as operators type them", async () => {
  expect(await says("formation", "set", "node-timeout", "6.5s")).toBe(
    'node-timeout of formation "default" is 6500 ms',
  );
  expect(await tells("formation", "set", "maximum-lag-on-failover", "1MB")).toEqual({
    formation: "default",
    setting: "maximum-lag-on-failover",
    value: "1048576",
  });
  expect(await says("formation", "set", "durability", "protection")).toBe(
    'durability of formation "default" is protection',
  );
  expect(await tells("formation", "get")).toEqual({
    preset: null,
    durability: "protection",
    "number-sync-standbys": 1,
    "strict-fencing": false,
    "maximum-lag-on-failover": 1048576,
    heartbeat: 1000,
    "network-partition-timeout": 2500,
    "fence-stop-timeout": 1200,
    "node-timeout": 6500,
    "unreachable-primary-timeout": 30000,
    "postgres-timeout": 2000,
    "fast-forward-timeout": 30000,
    "switchover-timeout": 30000,
    "caught-up-distance": 16777216,
  });
  expect(await says("formation", "get")).toMatch(
    /\n +node-timeout \| +6500 \| +ms \| no report for/,
  );
  const { settings, policy } = await group.row();
  expect(settings).toMatchObject({ durability: "protection", maximumLagBytes: 1048576n });
  expect(policy.nodeTimeoutMs).toBe(6500);
});

test("formation set preset: timers that go together change together, there and back", async () => {
  expect(await says("formation", "set", "preset", "fast")).toBe(
    'preset of formation "default" is fast',
  );
  expect((await group.row()).policy).toMatchObject(PRESETS.fast);
  expect(await says("formation", "get")).toMatch(/\n +preset \| +fast \|/);
  expect(await says("formation", "set", "preset", "default")).toContain("is default");
  expect((await group.row()).policy).toMatchObject(PRESETS.default);
});

test("node set and get, by name from anywhere", async () => {
  const which = ["--name", "node_2"];
  expect(await says("node", "set", "candidate-priority", "90", ...which)).toBe(
    'candidate-priority of node "node_2" is 90',
  );
  expect(await says("node", "set", "replication-quorum", "false", ...which)).toBe(
    'replication-quorum of node "node_2" is false',
  );
  expect(await tells("node", "get", ...which)).toEqual({
    name: "node_2",
    host: "localhost",
    port: 5002,
    "candidate-priority": 90,
    "replication-quorum": false,
  });
  expect(await says("node", "get", ...which)).toContain(
    "candidate-priority |        90 | 0 to 100",
  );
});

// ------------------------------------------------------------ failover

test("failover and promote: the request is recorded, and the answer says what follows", async () => {
  expect(await says("formation", "failover")).toBe(
    'Asked for: group 0 of formation "default" fails over as soon as a standby can take over',
  );
  expect((await group.row()).request).toEqual({
    target: undefined,
    allowDataLoss: false,
    planned: false,
  });
  expect(await says("node", "promote", "--name", "node_3")).toBe(
    'Asked for: node "node_3" takes over as soon as it can',
  );
  expect((await group.row()).request).toEqual({ target: 3, allowDataLoss: false, planned: false });
});

/** What the three keepers and the monitor do, from the request to the new primary. */
async function failsOver({ says: report, decide, row }: Scene): Promise<void> {
  await waitFor("the request", 10_000, async () => (await row()).request !== undefined);
  const promised = { state: "report_lsn", inRecovery: true };
  expect(await decide()).toBe("R320 R322 R322");
  await report(2, promised);
  await report(3, promised);
  expect(await decide()).toBe("R323 R328");
  await report(1, { state: "draining", pgIsRunning: false });
  await report(2, { ...promised, state: "prepare_promotion" });
  await decide();
  await report(1, { state: "demote_timeout", pgIsRunning: false });
  const promotion = { timeline: 2, forkLsn: "0/3000000" };
  const promoted = { inRecovery: false, timeline: 2, promotion };
  await report(2, { ...promoted, state: "stop_replication" });
  expect(await decide()).toBe("R304");
  await Bun.sleep(300); // longer than one look of the command: an open goal alone is not enough
  await report(2, { ...promoted, state: "wait_primary" });
}

test("failover --wait: ends when the new primary takes writes, and says for how long nobody did", async () => {
  await group.says(1, PRIMARY);
  await group.says(2, SECONDARY);
  await group.says(3, SECONDARY);
  const [outcome] = await Promise.all([
    role("formation", "failover", "--wait", "--json"),
    failsOver(group),
  ]);
  expect(outcome).toMatchObject({ code: 0, stderr: "" });
  const answer = JSON.parse(outcome.stdout);
  expect(answer).toMatchObject({ nodeId: 2, name: "node_2", host: "localhost", port: 5002 });
  expect(answer.outageMs).toBeGreaterThan(300);
  expect(answer.outageMs).toBeLessThan(outcome.tookMs);
}, 20_000);

test("failover --wait: a blocked one ends at its deadline, and says who is missing", async () => {
  await group.says(2, SECONDARY);
  await isSilent(group, 3);
  await isSilent(group, 1);
  const decided = (async () => {
    await waitFor("the request", 10_000, async () => (await group.row()).request !== undefined);
    await group.decide();
  })();
  const outcome = await role("formation", "failover", "--wait", "--timeout", "1s");
  await decided;
  expectRefusal(outcome, {
    code: 8,
    says: /a new primary.*node 3 .*may hold acknowledged commits/,
  });
}, 20_000);

test("failover --wait: one that was called off says so", async () => {
  const undone = (async () => {
    await waitFor("the request", 10_000, async () => (await group.row()).request !== undefined);
    await group.own.query(`update pgautofailover."group" set request = null`);
  })();
  const outcome = await role("formation", "failover", "--wait");
  await undone;
  expectRefusal(outcome, { code: 3, says: /the old primary goes on/ });
}, 20_000);

test("failover --allow-data-loss: not without a word from somebody", async () => {
  await group.own.query(
    "update pgautofailover.node set reportedlsn = '0/3000400' where nodeid = 1",
  );
  const refused = await role("formation", "failover", "--allow-data-loss");
  expectRefusal(refused, { code: 2, says: /must be confirmed: at least 1024 bytes/ });
  expect((await group.row()).request).toBeUndefined();
  await says("formation", "failover", "--allow-data-loss", "--yes");
  expect((await group.row()).request).toEqual({
    target: undefined,
    allowDataLoss: true,
    planned: false,
  });
});

/** The same on a terminal, with something typed there. */
async function onTerminal(typed: string): Promise<{ code: number; seen: string }> {
  let [seen, asked] = ["", false];
  const args = ["failover", "--allow-data-loss", "--monitor", world.uri];
  const child = Bun.spawn(roleCommand("formation", args), {
    env: world.env,
    cwd: "/",
    terminal: {
      data: (terminal, data) => {
        seen += data.toString();
        if (!asked && seen.includes("type that number: ")) {
          asked = true;
          terminal.write(typed);
        }
      },
    },
  });
  const code = await within(10_000, "the command's end", child.exited);
  return { code, seen };
}

test("failover --allow-data-loss on a terminal: the number of bytes must be typed", async () => {
  await group.own.query(
    "update pgautofailover.node set reportedlsn = '0/3000400' where nodeid = 1",
  );
  const wrong = await onTerminal("y\r");
  expect(wrong).toMatchObject({ code: 2, seen: expect.stringContaining("nothing was done") });
  expect((await group.row()).request).toBeUndefined();
  expect(await onTerminal("1024\r")).toMatchObject({ code: 0 });
  expect((await group.row()).request).toEqual({
    target: undefined,
    allowDataLoss: true,
    planned: false,
  });
}, 30_000);

// ------------------------------------------------------------ explain and timeline

type Told = {
  groupId: number;
  primary: string | null;
  ifPrimaryDied: string;
  blocked: string | null;
  nodes: {
    name: string;
    waitsFor: string | null;
    sinceMs: number | null;
    command: string | null;
  }[];
};
const explained = async (): Promise<Told> =>
  ((await tells("state", "explain")) as Told[])[0] as Told;

test("explain: a healthy group waits for nothing, and would lose nothing", async () => {
  await group.says(1, PRIMARY);
  await group.says(2, SECONDARY);
  await group.says(3, SECONDARY);
  const told = await explained();
  expect(told).toMatchObject({
    groupId: 0,
    primary: "node_1",
    ifPrimaryDied: 'no acknowledged commit would be lost: node 2 "node_2" would take over',
    blocked: null,
  });
  expect(told.nodes.map(({ waitsFor, sinceMs }) => [waitsFor, sinceMs])).toEqual([
    [null, null],
    [null, null],
    [null, null],
  ]);
  expect(await says("state", "explain")).toMatch(
    /^Group 0: the primary is node_1\nIf it died now: no acknowledged .*\n.*Waits for.*\n[-+]+\n.*\| nothing +\| -\n/,
  );
});

test("explain: what each node waits for, since when, and what helps", async () => {
  await group.says(1, { ...PRIMARY, state: "apply_settings" });
  await group.own.query(
    "update pgautofailover.node set goalstate = 'apply_settings' where nodeid = 1",
  );
  await group.own.query("update pgautofailover.node set goalstate = 'catchingup' where nodeid = 2");
  await group.own.query("update pgautofailover.node set goaltime = goaltime - interval '1 h'");
  await group.says(2, { ...SECONDARY, state: "catchingup", streaming: false });
  await isSilent(group, 3);
  const { nodes } = await explained();
  expect(nodes).toMatchObject([
    { waitsFor: "the synchronous standbys 2, 3 to be in force, 1 for each commit", command: null },
    { waitsFor: 'its connection to node 1 "node_1"' },
    {
      waitsFor: "a report of its keeper",
      command: "on localhost: roles/keeper.ts run --pgdata DIR",
    },
  ]);
  expect(nodes[0]?.sinceMs).toBeGreaterThan(3_600_000);
  expect(nodes[1]?.sinceMs).toBeLessThan(60_000);
  expect(nodes[2]?.sinceMs).toBeGreaterThan(90_000);
  expect(await says("state", "explain")).toMatch(/node_3 .* 9\d s \| a report of its keeper/);
});

test("explain: blocked, and what would be lost", async () => {
  await group.own.query(
    "update pgautofailover.node set reportedlsn = '0/3000400' where nodeid = 1",
  );
  await group.says(2, { ...SECONDARY, streaming: false });
  await isSilent(group, 3);
  const before = await explained();
  expect(before.ifPrimaryDied).toBe(
    'nobody would take over, because node 3 "node_3" may hold acknowledged commits and can\'t be asked; a promotion that may lose commits would lose at least 1024 bytes',
  );
  expect(before.blocked).toBeNull();
  await isSilent(group, 1);
  const { blocked } = await explained();
  expect(blocked).toStartWith('Blocked: node 1 "node_1" is down, and node 3 "node_3" may hold');
  expect(blocked).toContain("roles/formation.ts failover --allow-data-loss");
  expect(await says("state", "explain")).toContain(`\n${blocked}\n`);
});

test("explain: a lone node", async () => {
  await group.own.query("delete from pgautofailover.node where nodeid > 1");
  await group.own.query(
    "update pgautofailover.node set goalstate = 'single', reportedstate = 'single'",
  );
  expect((await explained()).ifPrimaryDied).toBe(
    "everything since the last backup would be lost: there is no other node",
  );
});

test("timeline and accept-timeline: the history, who left it, and whose holds", async () => {
  await group.says(3, SECONDARY);
  await isSilent(group, 1);
  const promotion = { timeline: 2, forkLsn: "0/3000000" };
  await group.says(2, {
    ...SECONDARY,
    inRecovery: false,
    timeline: 2,
    lsn: "0/5000000",
    promotion,
  });
  expect(await group.decide()).toBe("");
  const text = await says("state", "timeline");
  expect(text).toContain(
    'node 2 "node_2" is not part of the group\'s history: it is on timeline 2 at 0/5000000',
  );
  expect(text).toContain("Disputed: roles/formation.ts accept-timeline NODE");
  expect(await says("formation", "accept-timeline", "node_2")).toBe(
    'Group 0 goes on with timeline 2 of node "node_2"',
  );
  expect(await tells("state", "timeline")).toMatchObject([
    {
      groupId: 0,
      disputed: false,
      timelines: [
        { timeline: 1, parent: 0, nodeName: "node_1" },
        { timeline: 2, parent: 1, forkLsn: "0/3000000", nodeId: 2, nodeName: "node_2" },
      ],
    },
  ]);
});

const REFUSED = 7;

async function refuses(
  [name, ...args]: [RoleName, ...string[]],
  code: number,
  sentence: RegExp,
  hint: RegExp,
): Promise<void> {
  const outcome = await role(name, ...args);
  expectRefusal(outcome, { code, says: sentence });
  expect(outcome.stderr).toMatch(hint);
}

test("switchover: the request, what is in the way, and what can't be", async () => {
  await refuses(
    ["formation", "switchover", "--to", "node_1"],
    REFUSED,
    /is the primary/,
    /--to|show/,
  );
  await refuses(["formation", "switchover", "--to", "nobody"], 6, /has no node .*nobody/, /show/);
  await refuses(["formation", "switchover", "--group", "9"], 6, /no group 9/, /group/);
  const waiting = role("formation", "switchover", "--to", "node_3", "--timeout", "20s", "--json");
  await waitFor("the request", 5000, async () => (await group.row()).request !== undefined);
  expect((await group.row()).request).toEqual({ target: 3, allowDataLoss: false, planned: true });
  await refuses(["formation", "switchover"], REFUSED, /under way/, /explain/);
  expect(await group.decide()).toBe("R330");
  await group.says(1, {
    ...PRIMARY,
    state: "draining",
    pgIsRunning: false,
    shutdown: { lsn: "0/3000100", tookMs: 33 },
  });
  expect(await group.decide()).toContain("R331");
  await group.says(3, { ...SECONDARY, state: "prepare_promotion", lsn: "0/3000100" });
  expect(await group.decide()).toContain("R303");
  await group.says(1, { state: "demote_timeout", pgIsRunning: false });
  await group.says(3, {
    state: "stop_replication",
    inRecovery: false,
    timeline: 2,
    promotion: { timeline: 2, forkLsn: "0/3000100" },
  });
  expect(await group.decide()).toContain("R304");
  await group.says(3, { state: "wait_primary", inRecovery: false, timeline: 2 });
  const { code, stdout } = await waiting;
  expect(code).toBe(0);
  const { outageMs, ...answer } = JSON.parse(stdout);
  expect(answer).toEqual({ nodeId: 3, name: "node_3", host: "localhost", port: 5003 });
  expect(outageMs).toBeGreaterThanOrEqual(33);
});

test("switchover: one that fails is called off, and says so", async () => {
  const waiting = role("formation", "switchover", "--to", "node_3", "--timeout", "20s");
  await waitFor("the request", 5000, async () => (await group.row()).request !== undefined);
  await group.decide();
  await group.says(1, {
    ...PRIMARY,
    state: "draining",
    pgIsRunning: false,
    shutdown: { lsn: "0/3000100", tookMs: 33 },
  });
  await group.decide();
  await group.says(3, { ...SECONDARY, state: "prepare_promotion", lsn: "0/3000000" });
  expect(await group.decide()).toContain("R332");
  await group.says(1, { ...PRIMARY, state: "wait_primary" });
  const { code, stderr } = await waiting;
  expect(code).toBe(3);
  expect(stderr).toContain("the old primary goes on");
});

test("switchover: nobody to hand over to, or nobody who could", async () => {
  await group.own.query("update pgautofailover.node set candidatepriority = 0");
  await refuses(["formation", "switchover"], REFUSED, /no standby that could take over/, /explain/);
  await group.own.query(
    "update pgautofailover.node set goalstate = 'wait_primary' where nodeid = 1",
  );
  await refuses(
    ["formation", "switchover", "--to", "node_2"],
    REFUSED,
    /no primary with a healthy secondary/,
    /explain/,
  );
});

test("maintenance: a standby is left out first, and what is refused", async () => {
  await refuses(["node", "maintenance", "maybe", "--name", "node_2"], 2, /on or off/, /on|off/);
  await refuses(
    ["node", "maintenance", "on", "--name", "nobody"],
    6,
    /has no node .*nobody/,
    /show/,
  );
  await refuses(
    ["node", "maintenance", "on", "--name", "node_1"],
    REFUSED,
    /is the primary/,
    /--allow-failover/,
  );
  const waiting = role("node", "maintenance", "on", "--name", "node_2", "--json");
  await waitFor("the wish", 5000, async () => (await group.row()).nodes[1]?.maintenance === true);
  expect(await group.decide()).toContain("R131");
  await group.says(2, { ...SECONDARY, state: "catchingup" });
  expect(await group.decide()).not.toContain("R132");
  const set = (await group.row()).sync;
  expect(set.members).toEqual([3]);
  await group.says(1, { ...PRIMARY, state: "apply_settings", syncInForce: set });
  expect(await group.decide()).toContain("R132");
  await group.says(2, { state: "maintenance", pgIsRunning: false });
  expect(JSON.parse((await waiting).stdout)).toEqual({
    nodeId: 2,
    name: "node_2",
    state: "maintenance",
  });
  await says("formation", "set", "durability", "protection");
  await refuses(
    ["node", "maintenance", "on", "--name", "node_3"],
    REFUSED,
    /the last standby that commits can wait for/,
    /durability/,
  );
  const back = role("node", "maintenance", "off", "--name", "node_2");
  await waitFor(
    "the wish to end",
    5000,
    async () => (await group.row()).nodes[1]?.maintenance === false,
  );
  expect(await group.decide()).toContain("R133");
  await group.says(2, { ...SECONDARY, state: "catchingup" });
  await group.says(1, PRIMARY);
  expect(await group.decide()).toContain("R113");
  await group.says(2, SECONDARY);
  expect((await back).code).toBe(0);
});
