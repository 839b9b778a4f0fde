/** What roles/state.ts shows while it runs, against a monitor's database that comes and goes. */
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import {
  type Outcome,
  RunningRole,
  readLog,
  roleCommand,
  runRole,
  waitForLog,
} from "../helpers/command.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { TerminalRun } from "../helpers/terminal.ts";
import { waitFor } from "../helpers/wait.ts";
import { healthyOn, type Scene } from "./monitor_story.ts";
import { commandsAt, endOperated, type Operated, startOperated } from "./operator_story.ts";

let world: Operated;
/** node_1 is the primary, and one of the two others must have each commit. */
let group: Scene;

beforeAll(async () => {
  world = await startOperated("state");
  group = await healthyOn(world.monitor, 3);
}, 60_000);
afterAll(() => endOperated(world), 20_000);

const commands = commandsAt(() => world);
const state = (...args: string[]): Promise<Outcome> => commands.role("state", ...args);
const says = (...args: string[]): Promise<string> => commands.says("state", ...args);

const remarks: string[] = [];

/** An event whose description nobody else writes. */
async function remark(): Promise<string> {
  const text = `remark ${remarks.length + 1}`;
  await group.own.query(
    "select pgautofailover.log_event(n, null, $1) from pgautofailover.node n where n.nodeid = 1",
    [text],
  );
  remarks.push(text);
  return text;
}

async function block(reason: string | null): Promise<void> {
  await group.own.query(`update pgautofailover."group" set blocked = $1`, [reason]);
}

afterEach(() => block(null));

// ------------------------------------------------------------ watch

const watching = (columns = 140, rows = 20): TerminalRun =>
  new TerminalRun(roleCommand("state", ["watch", "--monitor", world.uri]), world.env, {
    columns,
    rows,
  });

test("watch: nodes and events on the whole terminal, drawn again on a change; q gives it back", async () => {
  await using terminal = watching();
  const lines = await terminal.shows(/node_3 .* secondary +\| +secondary/, 5000);
  expect(lines[0]).toMatch(/^Formation default {3}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC/);
  expect(lines.join("\n")).toMatch(/Name \| Node \| +Host:Port .*Last Report/);
  const text = await remark();
  await terminal.shows(new RegExp(`primary / primary \\| +- \\| ${text}`), 3000);
  const [before] = terminal.lines;
  await terminal.shows(new RegExp(`^(?!${before})`), 3000);

  await block("Blocked: node 1 is down, and nobody is there who could take over");
  await terminal.shows(/\nBlocked: node 1 is down/, 3000);
  terminal.type("q");
  expect(await terminal.ended(3000)).toEqual({ code: 0, restored: true });
}, 20_000);

test("watch: another size of the terminal; columns go, the rest is cut and never wrapped", async () => {
  await block(`Blocked: ${"a sentence that is longer than the terminal is wide ".repeat(3)}end`);
  await using terminal = watching();
  await terminal.shows(/Host:Port/, 5000);
  for (const [columns, rows] of [
    [60, 16],
    [42, 13],
    [200, 30],
  ] as const) {
    terminal.resize(columns, rows);
    const lines = await terminal.shows(/Reported State +\| +Assigned State/, 3000);
    expect(Math.max(...lines.map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(columns);
    expect(lines.some((line) => line.includes("Quorum"))).toBe(columns === 200);
    expect(lines.join(" ")).toMatch(/Blocked: a sentence that is .* end /);
  }
  terminal.type("\u0003");
  expect(await terminal.ended(3000)).toEqual({ code: 0, restored: true });
}, 20_000);

test.each(["SIGTERM", "SIGHUP", "SIGINT"] as const)(
  "watch: the terminal is given back after %s",
  async (name) => {
    await using terminal = watching();
    await terminal.shows(/node_3/, 5000);
    terminal.signal(name);
    expect(await terminal.ended(3000)).toEqual({ code: 0, restored: true });
  },
  20_000,
);

test("watch: an error before the first look is told on a terminal that is as it was", async () => {
  const nowhere = ["watch", "--monitor", world.uri, "--formation", "none"];
  await using terminal = new TerminalRun(roleCommand("state", nowhere), world.env, {
    columns: 90,
    rows: 9,
  });
  expect(await terminal.ended(5000)).toEqual({ code: 6, restored: true });
  expect(terminal.output.split("\u001b[?1049l").at(-1)).toContain(
    'formation \\"none\\" does not exist',
  );
}, 20_000);

test("watch: the monitor goes away and comes back, and so does what is shown", async () => {
  await using terminal = watching();
  await terminal.shows(/node_3/, 5000);
  await world.server.stop();
  try {
    const lines = await terminal.shows(/The monitor is away.*could not reach/, 5000);
    expect(lines.join("\n")).toMatch(/node_3 .* secondary/);
    await terminal.shows(/knew [2-9] s ago/, 5000);
  } finally {
    await world.server.start();
  }
  const text = await remark();
  const lines = await terminal.shows(new RegExp(text), 5000);
  expect(lines.join("\n")).not.toContain("away");
  terminal.type("q");
  expect(await terminal.ended(3000)).toEqual({ code: 0, restored: true });
}, 30_000);

test("watch: refused where nothing can be drawn, with what to use instead", async () => {
  expectRefusal(await state("watch"), { code: 2, says: /needs a terminal/ });
  expect((await state("watch")).stderr).toContain("events --follow");
  const command = roleCommand("state", ["watch", "--monitor", world.uri]);
  await using dumb = new TerminalRun(
    command,
    { ...world.env, TERM: "dumb" },
    { columns: 80, rows: 9 },
  );
  await waitFor("the refusal", 5000, () => dumb.output.includes("needs a terminal"));
  expect(dumb.output).not.toContain("\u001b[?1049h");
});

// ------------------------------------------------------------ for programs, and line by line

const started: RunningRole[] = [];
afterAll(() => {
  for (const role of started) role.signal("SIGKILL");
});

/** A role that goes on until it's told to stop; what it prints is in a file. */
function running(label: string, ...args: string[]): RunningRole {
  const command = roleCommand("state", [...args, "--monitor", world.uri]);
  const role = new RunningRole(command, world.env, join(world.base, label));
  started.push(role);
  return role;
}

test("watch --json: a line for each change, none for what stays", async () => {
  const role = running("watch.json", "watch", "--json");
  await waitForLog(role.logFile, /"blocked":\[\]/, 5000);
  await block("Blocked: so it is");
  await waitForLog(role.logFile, /"blocked":\["Blocked: so it is"\]/, 3000);
  await block(null);
  await waitForLog(role.logFile, /so it is[\s\S]*"blocked":\[\]/, 3000);
  role.signal("SIGTERM");
  expect(await role.ended(3000)).toBe(0);
  const lines = readLog(role.logFile)
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines).toHaveLength(3);
  expect(lines[0]).toMatchObject({ formation: "default", monitor: "there" });
  expect(lines[0].nodes).toHaveLength(3);
}, 20_000);

test("events --follow: each event once and in order, also over a restart of the monitor", async () => {
  const first = await remark();
  const role = running("follow", "events", "--follow", "--count", "1");
  await waitForLog(role.logFile, new RegExp(first), 5000);
  const wanted = [first, await remark()];
  await waitForLog(role.logFile, new RegExp(wanted.at(-1) ?? ""), 3000);
  await world.server.stop();
  await waitForLog(role.logFile, /the monitor is away/, 5000);
  await world.server.start();
  wanted.push(await remark(), await remark());
  await waitForLog(role.logFile, new RegExp(wanted.at(-1) ?? ""), 5000);
  // committed after one with a greater id
  const late = group.monitor.open();
  await late.transaction(async (query) => {
    await query(
      "select pgautofailover.log_event(n, null, 'late') from pgautofailover.node n limit 1",
    );
    wanted.push(await remark());
    await waitForLog(role.logFile, new RegExp(wanted.at(-1) ?? ""), 3000);
  });
  wanted.push("late");
  await waitForLog(role.logFile, /late$/m, 3000);
  role.signal("SIGINT");
  expect(await role.ended(3000)).toBe(0);
  const told = [...readLog(role.logFile).matchAll(/primary \/ primary +- +(.+)$/gm)].map(
    ([, text]) => text,
  );
  expect(told).toEqual(wanted);
}, 30_000);

test("events --since: what is not older, and as many as asked for", async () => {
  await group.own.query(
    "update pgautofailover.event set eventtime = clock_timestamp() - interval '2 h'",
  );
  const [one, two] = [await remark(), await remark()];
  const since = await says("events", "--since", "1h");
  expect(
    since
      .split("\n")
      .slice(2)
      .map((line) => line.split("| ").at(-1)),
  ).toEqual([one, two]);
  const json = JSON.parse(await says("events", "--since", "1h", "--count", "1", "--json"));
  expect(json).toMatchObject([{ description: two }]);
  expect(JSON.parse(await says("events", "--since", "3h", "--json")).length).toBeGreaterThan(4);
  // none is recent enough: those that follow are told, and no older one
  const role = running("since", "events", "--since", "1ms", "--follow", "--json");
  await waitFor("its subscription", 5000, async () => {
    const sql =
      "select pid from pg_stat_activity where query = 'select 1' and usename = 'autoctl_node'";
    return (await group.own.query(sql)).length > 0;
  });
  const three = await remark();
  await waitForLog(role.logFile, new RegExp(three), 3000);
  const told = readLog(role.logFile).trimEnd().split("\n");
  expect(told.map((line) => JSON.parse(line).description)).toEqual([three]);
  expectRefusal(await state("events", "--since", "yesterday"), { code: 2, says: /takes a time/ });
}, 20_000);

// ------------------------------------------------------------ settings and names

test("settings: the formation's, the primary's, and what nodes have of their own", async () => {
  await group.own.query("update pgautofailover.node set candidatepriority = 90 where nodeid = 2");
  const text = await says("settings");
  expect(text).toMatch(/formation \| default \| +durability \| +availability \|/);
  expect(text).toMatch(/formation \| default \| +node-timeout \| +4000 \| +ms \|/);
  expect(text).toMatch(/primary \| +node_1 \| +synchronous_standby_names \| 'ANY 1 \(/);
  expect(text).toMatch(/node \| +node_2 \| +candidate-priority \| +90 \| +- \| +no/);
  expect(text).toMatch(/node \| +node_3 \| +candidate-priority \| +50 \| +- \| +yes/);
  expect(JSON.parse(await says("settings", "--json"))).toContainEqual({
    ...{ context: "node", name: "node_2", setting: "candidate-priority", value: 90 },
    ...{ unit: null, isDefault: false },
  });
  await group.own.query("update pgautofailover.node set candidatepriority = 50");
}, 20_000);

test("standby-names: as they should be, as assigned, and as in force", async () => {
  const both = "ANY 1 (pgautofailover_standby_2, pgautofailover_standby_3)";
  expect(JSON.parse(await says("standby-names", "--json"))).toEqual([
    { groupId: 0, primary: "node_1", desired: both, assigned: both, inForce: both },
  ]);
  await group.own.query(
    `update pgautofailover.node set replicationquorum = false where nodeid = 3`,
  );
  await group.own.query(`update pgautofailover."group" set syncinforce = null`);
  const text = await says("standby-names");
  expect(text).toContain("desired | 'ANY 1 (pgautofailover_standby_2)'");
  expect(text).toContain(`assigned | '${both}'`);
  expect(text).toContain("in force | not known");
}, 20_000);

test("fsm: Markdown, Mermaid or JSON, without a monitor", async () => {
  const fsm = (...args: string[]) => runRole("state", ["fsm", ...args], { env: world.env });
  expect((await fsm()).stdout).toContain("| R301 |");
  expect((await fsm("--format", "mermaid")).stdout).toStartWith("stateDiagram-v2\n");
  expect(JSON.parse((await fsm("--json")).stdout).rules[0]).toMatchObject({ id: "R101" });
  expectRefusal(await fsm("--format", "dot"), { code: 2, says: /dot/ });
}, 20_000);
