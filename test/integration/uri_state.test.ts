/** What applications and operators read: connection strings, the state table, the events. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import { type Outcome, type RoleName, runCommand, runRole } from "../helpers/command.ts";
import type { Service } from "../helpers/service.ts";

let cluster: Cluster;
let primary: Service;
let secondary: Service;

beforeAll(async () => {
  cluster = await Cluster.twoNodes("uri");
  primary = await cluster.healthy(10_000);
  secondary = cluster.other(primary);
}, 60_000);
afterAll(() => cluster?.[Symbol.asyncDispose](), 40_000);

const role = (name: RoleName, ...args: string[]): Promise<Outcome> =>
  runRole(name, args, { env: cluster.env });

/** Runs psql as an application that was handed nothing but the connection string. */
const psql = (uri: string, text: string): Promise<Outcome> =>
  runCommand(["psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", text, uri], {
    env: { ...cluster.env, PGUSER: cluster.owner.name, PGCONNECT_TIMEOUT: "5" },
  });

test("uri: one line for libpq, with every host, that finds the writable one", async () => {
  const { code, stdout, stderr } = await role("uri", "--monitor", cluster.monitorUri);
  expect(code).toBe(0);
  expect(stderr).toBe("");
  const hosts = [`localhost:${primary.port}`, `localhost:${secondary.port}`];
  expect(stdout).toMatch(
    /^postgres:\/\/localhost:\d+,localhost:\d+\/postgres\?target_session_attrs=read-write(&\S+)?\n$/,
  );
  for (const host of hosts) expect(stdout).toContain(host);
});

test("uri: the same from a node's PGDATA as from the monitor's URI", async () => {
  const fromMonitor = await cluster.uri(["--formation", "default"]);
  const fromNode = await role("uri", "--pgdata", secondary.pgdata, "--formation", "default");
  expect(fromNode).toMatchObject({ code: 0, stdout: `${fromMonitor}\n` });
});

test("uri: psql writes on the primary with it, whichever host comes first", async () => {
  const uri = await cluster.uri();
  const made = await psql(uri, "create table by_uri as select inet_server_port() as port");
  expect(made).toMatchObject({ code: 0 });
  expect(await primary.ask("select port from by_uri")).toEqual([{ port: primary.port }]);
});

test("uri: keyword format is taken by psql as well", async () => {
  const keywords = await cluster.uri(["--format", "keyword"]);
  expect(keywords).toMatch(/^host=localhost,localhost port=\d+,\d+ dbname=postgres /);
  const answer = await psql(keywords, "select inet_server_port()");
  expect(answer).toMatchObject({ code: 0, stdout: `${primary.port}\n` });
});

test("uri: jdbc and json formats, user name and sslmode", async () => {
  const flags = ["--username", "app user", "--sslmode", "prefer"];
  const jdbc = await cluster.uri(["--format", "jdbc", ...flags]);
  expect(jdbc).toMatch(
    /^jdbc:postgresql:\/\/localhost:\d+,localhost:\d+\/postgres\?targetServerType=primary/,
  );
  expect(jdbc).toContain("sslmode=prefer");
  const parsed = JSON.parse(await cluster.uri(["--format", "json", ...flags]));
  expect(parsed).toMatchObject({ database: "postgres", user: "app user" });
  const ports = parsed.hosts.map(({ port }: { port: number }) => port).sort();
  expect(ports).toEqual([primary.port, secondary.port].sort());
  expect(await cluster.uri(flags)).toContain("postgres://app%20user@localhost");
});

test("uri: an unknown format or formation is refused with a hint", async () => {
  const format = await role("uri", "--monitor", cluster.monitorUri, "--format", "odbc");
  expect(format).toMatchObject({ code: 2, stdout: "" });
  const formation = await role("uri", "--monitor", cluster.monitorUri, "--formation", "nowhere");
  expect(formation.code).not.toBe(0);
  expect(formation.stdout).toBe("");
  expect(formation.stderr).toMatch(/nowhere/);
});

test("state show: a table with a line for each node", async () => {
  const { code, stdout } = await role("state", "show", "--pgdata", primary.pgdata);
  expect(code).toBe(0);
  const lines = stdout.trimEnd().split("\n");
  const line = (node: Service) => lines.find((each) => each.includes(`localhost:${node.port}`));
  expect(line(primary)).toMatch(/\|\s+primary\s+\|/);
  expect(line(secondary)).toMatch(/\|\s+secondary\s+\|/);
});

test("state show --json: the same for programs", async () => {
  const { stdout } = await role("state", "show", "--monitor", cluster.monitorUri, "--json");
  const rows: Record<string, unknown>[] = JSON.parse(stdout);
  expect(rows).toHaveLength(2);
  expect(rows.find((row) => row["nodeport"] === primary.port)).toMatchObject({
    current_group_state: "primary",
    assigned_group_state: "primary",
  });
});

test("state events: what happened, with the rule that decided it", async () => {
  const text = await role("state", "events", "--monitor", cluster.monitorUri, "--count", "50");
  expect(text.code).toBe(0);
  expect(text.stdout).toContain("R101");
  expect(text.stdout).toContain("it is the first node of its group");
  const json = await role("state", "events", "--pgdata", primary.pgdata, "--count", "3", "--json");
  const events: Record<string, unknown>[] = JSON.parse(json.stdout);
  expect(events).toHaveLength(3);
  expect(events[0]).toHaveProperty("description");
});

test("state events: a count that isn't one is refused", async () => {
  for (const count of ["0", "-1", "many", "1.5"]) {
    const outcome = await role(
      "state",
      "events",
      "--monitor",
      cluster.monitorUri,
      `--count=${count}`,
    );
    expect(outcome).toMatchObject({ code: 2, stdout: "" });
  }
});

test("status: a running keeper and monitor say so, in text and JSON", async () => {
  for (const service of [cluster.monitor, primary]) {
    expect(await service.command("status")).toMatchObject({ code: 0 });
    const json = JSON.parse((await service.command("status", ["--json"])).stdout);
    expect(JSON.stringify(json)).toContain(String(service.process?.pid));
  }
});

test("keeper reload: the running keeper takes it and PostgreSQL stays", async () => {
  const postmaster = primary.requirePostmaster();
  expect(await primary.command("reload")).toMatchObject({ code: 0 });
  await cluster.healthy(5000);
  expect(primary.postmaster()).toBe(postmaster);
});
