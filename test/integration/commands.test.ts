/** Commands on a group that lives: what they say for people, and with --json for programs. */
import { expect } from "bun:test";
import { type RoleName, runRole } from "../helpers/command.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";

const scenario = scenariosOf("commands", [[], []]);
const TIMEOUT_MS = 120_000;

type Words = readonly [role: RoleName, ...args: string[]];
type Case = { words: Words; text: RegExp; json: unknown };

/** @param at how the command is told where: `monitor` by its URI, or a directory */
async function both(
  { cluster }: Scene,
  { words: [role, ...args], text, json }: Case,
  at: readonly string[],
): Promise<void> {
  const run = async (...more: string[]): Promise<string> => {
    const { command, code, stdout, stderr } = await runRole(role, [...args, ...at, ...more], {
      env: cluster.env,
    });
    expect({ command, code, stderr }).toEqual({ command, code: 0, stderr: "" });
    return stdout;
  };
  expect(await run()).toMatch(text);
  expect(JSON.parse(await run("--json"))).toMatchObject(json as object);
}

scenario("what is asked of a group", TIMEOUT_MS, async (scene) => {
  const { cluster, primary } = scene;
  const name = await cluster.nameOf(primary);
  const any = expect.anything();
  const asked: Case[] = [
    { words: ["state", "show"], text: /read-write/, json: [any, any] },
    { words: ["state", "events", "--count", "3"], text: /Event|Node/, json: [any, any, any] },
    { words: ["state", "explain"], text: /would take over/, json: any },
    { words: ["state", "failovers"], text: /./, json: any },
    { words: ["state", "settings"], text: /node-timeout/, json: any },
    { words: ["state", "standby-names"], text: /pgautofailover_standby_/, json: any },
    { words: ["state", "timeline"], text: new RegExp(name), json: any },
    { words: ["formation", "list"], text: /default/, json: [{ formation: "default" }] },
    { words: ["formation", "get"], text: /durability/, json: { durability: "availability" } },
    {
      words: ["node", "get", "--name", name],
      text: /candidate-priority/,
      json: { "candidate-priority": 50 },
    },
  ];
  for (const each of asked) await both(scene, each, ["--monitor", cluster.monitorUri]);
  const tables = await runRole("state", ["fsm"], { env: cluster.env });
  expect(tables.stdout).toContain("R301");
  expect(
    JSON.parse((await runRole("state", ["fsm", "--json"], { env: cluster.env })).stdout),
  ).toBeObject();
  for (const { role, pgdata } of [cluster.monitor, primary]) {
    const status = { words: [role, "status"] as Words, text: /running with pid/, json: { pgdata } };
    await both(scene, status, ["--pgdata", pgdata]);
    const own = { words: [role, "config", "get"] as Words, text: /pgport/, json: { pgdata } };
    await both(scene, own, ["--pgdata", pgdata]);
  }
  const { stdout } = await runRole("uri", ["--monitor", cluster.monitorUri], { env: cluster.env });
  expect(stdout).toContain("target_session_attrs=read-write");
});

scenario("what is changed", TIMEOUT_MS, async (scene) => {
  const { cluster, secondary } = scene;
  const name = await cluster.nameOf(secondary);
  const changed: Case[] = [
    { words: ["formation", "set", "node-timeout", "5s"], text: /5000/, json: { value: "5000" } },
    { words: ["formation", "set", "node-timeout", "4s"], text: /4000/, json: { value: "4000" } },
    {
      words: ["node", "set", "candidate-priority", "60", "--name", name],
      text: /60/,
      json: { value: "60" },
    },
    { words: ["formation", "rotate-password"], text: /./, json: expect.anything() },
  ];
  for (const each of changed) await both(scene, each, ["--monitor", cluster.monitorUri]);
});

scenario("what is done to a group", TIMEOUT_MS, async ({ cluster, writer }) => {
  const at = ["--monitor", cluster.monitorUri];
  const done = async ([role, ...args]: Words): Promise<string> => {
    const outcome = await runRole(role, [...args, ...at], { env: cluster.env });
    const { command, code, stderr } = outcome;
    expect({ command, code, stderr }).toEqual({ command, code: 0, stderr: "" });
    return outcome.stdout;
  };
  const told = async (...words: Words): Promise<unknown> =>
    JSON.parse(await done([...words, "--json"]));
  expect(await done(["formation", "create", "one"])).toContain("one");
  expect(await told("formation", "create", "two")).toMatchObject({ formation: "two" });
  expect(await done(["formation", "drop", "one"])).toContain("one");
  expect(await told("formation", "drop", "two")).toMatchObject({ formation: "two" });
  for (const verb of ["switchover", "failover"]) {
    const words = verb === "failover" ? ["failover", "--wait"] : [verb];
    const first = await cluster.healthy(20_000);
    expect(await done(["formation", ...words])).toMatch(
      /is the primary; nobody took writes for \d+ ms/,
    );
    expect(await cluster.healthy(20_000)).not.toBe(first);
    expect(await told("formation", ...words)).toMatchObject({ port: first.port });
    expect(await cluster.healthy(20_000)).toBe(first);
  }
  for (const asks of [done, (words: Words) => told(...words)]) {
    const name = await cluster.nameOf(cluster.other(await cluster.healthy(20_000)));
    await asks(["node", "promote", "--name", name]);
    await cluster.waitFor("its promotion", 10_000, async () => {
      const primary = await cluster.healthy(20_000);
      return (await cluster.nameOf(primary)) === name;
    });
  }
  const name = await cluster.nameOf(cluster.other(await cluster.healthy(20_000)));
  const node = ["--name", name];
  expect(await done(["node", "maintenance", "on", ...node])).toContain("is left alone");
  expect(await told("node", "maintenance", "off", ...node)).toMatchObject({ state: "secondary" });
  expect(await told("node", "maintenance", "on", ...node)).toMatchObject({ state: "maintenance" });
  expect(await done(["node", "maintenance", "off", ...node])).toContain("is a secondary again");
  await writer.waitForWrites(20, 10_000);
});
