/** Several formations and groups on one monitor, and nodes that are removed, moved and renamed. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defaultNodename } from "../../lib/pg/addresses.ts";
import { Cluster } from "../helpers/cluster.ts";
import { type Outcome, type RoleName, runRole } from "../helpers/command.ts";
import { freePort } from "../helpers/ports.ts";
import { onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { ask } from "../helpers/sql.ts";

const END_MS = 30_000;
const OTHER = "it's/other";
const FLAGS = ["--formation", OTHER, "--group", "1", "--name", "only"];

/** Two nodes in the formation "default", and one in group 1 of another. */
async function twoFormations(): Promise<Cluster> {
  const cluster = new Cluster("formations");
  try {
    await cluster.startMonitor();
    const made = await role(cluster, "formation", "create", OTHER, "--dbname", "app");
    expect(made).toMatchObject({ code: 0, stderr: "" });
    await cluster.startNode("node1");
    await cluster.startNode("node2");
    await cluster.startNode("node3", FLAGS);
    await cluster.waitForStates({ node3: "single" }, END_MS);
    await cluster.healthy(END_MS, pair(cluster));
    return cluster;
  } catch (error) {
    const story = await cluster.story();
    await cluster[Symbol.asyncDispose]().catch(() => {});
    throw new Error(`setting up two formations failed\n${story}`, { cause: error });
  }
}

const pair = (cluster: Cluster): Service[] => [cluster.node("node1"), cluster.node("node2")];
const standbyOf = (cluster: Cluster, primary: Service): Service => {
  const [first, second] = pair(cluster);
  const found = first === primary ? second : first;
  if (!found) throw new Error("no standby");
  return found;
};
const scenario = onShared(twoFormations, test);

const role = ({ monitorUri, env }: Cluster, name: RoleName, ...args: string[]): Promise<Outcome> =>
  runRole(name, [...args, "--monitor", monitorUri], { env });

async function slotsOf(node: Service): Promise<number> {
  return (await node.ask("select slot_name from pg_replication_slots")).length;
}

/** `run` ends by itself, says why, and tells the service manager not to try again. */
async function endsAsDropped(cluster: Cluster, node: Service): Promise<string> {
  const mark = node.mark();
  node.start();
  await cluster.waitFor("the keeper to end", END_MS, () => node.process?.running === false);
  expect(node.process?.exitCode).toBe(121);
  expect(node.postmaster()).toBeUndefined();
  return node.log(mark);
}

scenario("one formation fails over, the other sees nothing of it", 90_000, async (cluster) => {
  const primary = await cluster.healthy(END_MS, pair(cluster));
  const standby = standbyOf(cluster, primary);
  const alone = cluster.node("node3");
  const other = async (): Promise<unknown> =>
    cluster.askMonitor(
      `select n.goalversion, n.goalstate, g.syncversion, (select max(eventid) from pgautofailover.event e
         where e.formationid = n.formationid) as event
       from pgautofailover.node n join pgautofailover."group" g using (formationid, groupid) where n.formationid = $1`,
      [OTHER],
    );
  const [before, postmaster, mark] = [await other(), alone.requirePostmaster(), alone.mark()];
  primary.killPostgres();
  await cluster.waitForStates({ [standby.label]: "primary", [primary.label]: "secondary" }, END_MS);
  expect(await other()).toEqual(before);
  expect(alone.postmaster()).toBe(postmaster);
  expect(alone.path(mark)).toEqual([]);

  const wanted = `postgres://localhost:${alone.port}/app?target_session_attrs=read-write\n`;
  const uri = await role(cluster, "uri", "--formation", OTHER, "--group", "1");
  expect(uri).toMatchObject({ code: 0, stdout: wanted });
  expect((await runRole("uri", ["--pgdata", alone.pgdata], { env: cluster.env })).stdout).toBe(
    wanted,
  );
  const app = { ...cluster.login, database: "app" };
  expect(await ask(alone.address, app, "select current_database() as name")).toEqual([
    { name: "app" },
  ]);
  const list = await role(cluster, "formation", "list", "--json");
  expect(JSON.parse(list.stdout)).toMatchObject([
    { formation: "default", groups: 1, nodes: 2 },
    { formation: OTHER, dbname: "app", groups: 1, nodes: 1 },
  ]);
  expect((await role(cluster, "formation", "drop", OTHER)).code).toBe(7);
});

scenario(
  "a standby is dropped from anywhere, and stays so until it's made again",
  90_000,
  async (cluster) => {
    const primary = await cluster.healthy(END_MS, pair(cluster));
    const standby = standbyOf(cluster, primary);
    const refused = await role(cluster, "node", "drop", "--name", await cluster.nameOf(primary));
    expect(refused.code).toBe(7);
    const name = await cluster.nameOf(standby);
    await using writer = await cluster.writer();
    const dropped = await role(cluster, "node", "drop", "--name", name);
    expect(dropped).toMatchObject({ code: 0, stderr: "" });
    await cluster.waitFor("the keeper to end", END_MS, () => standby.process?.running === false);
    expect(standby.process?.exitCode).toBe(121);
    expect(standby.postmaster()).toBeUndefined();
    await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
    await writer.waitForWrites(20, 5000);
    await cluster.waitFor("the slot to go", END_MS, async () => (await slotsOf(primary)) === 0);
    // without the monitor as well
    await cluster.monitor.terminate(END_MS);
    expect(await endsAsDropped(cluster, standby)).toContain("is not part of its group any more");
    cluster.monitor.start();
    await cluster.waitFor("the monitor", END_MS, () => cluster.states().catch(() => false));
    // other flags than the first time
    await standby.create(["--name", "again"]);
    standby.start();
    await cluster.healthy(END_MS, pair(cluster));
    expect(await cluster.nameOf(standby)).toBe("again");

    // its keeper dies between having stopped and having said so
    await standby.die();
    const told = await role(cluster, "node", "drop", "--name", "again", "--no-wait");
    expect(told).toMatchObject({ code: 0, stderr: "" });
    const file = join(cluster.base, "data/pg_auto_failover", standby.pgdata, "state.json");
    const state = JSON.parse(readFileSync(file, "utf8"));
    const known = { goal: "dropped", goalVersion: state.goalVersion + 1 };
    writeFileSync(file, JSON.stringify({ ...state, state: "dropped", ...known }));
    await endsAsDropped(cluster, standby);
    await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
    await standby.create();
    standby.start();
    await cluster.healthy(END_MS, pair(cluster));
  },
);

scenario(
  "a standby whose host is gone is removed at once, and comes back by create only",
  90_000,
  async (cluster) => {
    const primary = await cluster.healthy(END_MS, pair(cluster));
    const standby = standbyOf(cluster, primary);
    const which = ["--name", await cluster.nameOf(standby)];
    await standby.die();
    const silent = await role(cluster, "node", "drop", ...which);
    expect(silent).toMatchObject({ code: 8, stderr: expect.stringContaining("--force") });
    expect(await role(cluster, "node", "drop", ...which, "--force")).toMatchObject({ code: 0 });
    await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
    await cluster.waitFor("the slot to go", END_MS, async () => (await slotsOf(primary)) === 0);
    expect(await endsAsDropped(cluster, standby)).toContain("was removed from formation");
    expect(await endsAsDropped(cluster, standby)).toContain("is not part of its group any more");
    await standby.create();
    standby.start();
    await cluster.healthy(END_MS, pair(cluster));

    // made again before its keeper has heard of it
    const again = await cluster.nameOf(standby);
    await standby.die();
    const forced = await role(cluster, "node", "drop", "--name", again, "--force", "--json");
    expect(forced).toMatchObject({ code: 0 });
    expect(JSON.parse(forced.stdout)).toMatchObject({ name: again, removed: true });
    await standby.create();
    standby.start();
    await cluster.healthy(END_MS, pair(cluster));
  },
);

scenario(
  "another address: the standby goes on to follow, and no commit waits",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(END_MS, pair(cluster));
    const standby = standbyOf(cluster, primary);
    const since = await cluster.lastEventId();
    await using writer = await cluster.writer();
    await cluster.askMonitor(
      "select pgautofailover.update_node_metadata(nodeid, node_host => '127.0.0.1') from pgautofailover.node where nodeport = $1::text::int",
      [String(primary.port)],
    );
    await cluster.waitFor("the new address", END_MS, async () => {
      const [row] = await standby.ask("select sender_host from pg_stat_wal_receiver");
      return row?.["sender_host"] === "127.0.0.1";
    });
    await writer.waitForWrites(20, 5000);
    await cluster.healthy(END_MS, pair(cluster));
    const rules = (await cluster.events(since))
      .map(({ rule }) => rule)
      .filter((rule) => rule !== "");
    expect(rules).toEqual([]);
  },
);

scenario("a node moves to another port, on its own machine", 60_000, async (cluster) => {
  const node = cluster.node("node3");
  const set = (...words: string[]): Promise<Outcome> =>
    runRole("node", ["set", ...words, "--pgdata", node.pgdata], { env: cluster.env });
  const port = freePort();
  const refused = await set("port", String(port));
  expect(refused).toMatchObject({ code: 7, stderr: expect.stringContaining("hint:") });
  expect((await set("name", "moved")).code).toBe(0);
  expect((await node.command("stop")).code).toBe(0);
  expect(await set("port", String(cluster.monitor.port))).toMatchObject({ code: 7 });
  expect(await set("host", "not a host")).toMatchObject({ code: 2 });
  expect(await set("port", String(port))).toMatchObject({ code: 0, stderr: "" });
  const host = defaultNodename();
  expect(await set("host", host)).toMatchObject({ code: 0, stderr: "" });
  node.start();
  const found = await cluster.waitFor("the node at its new port", END_MS, async () =>
    (await cluster.states()).find((each) => each.port === port && each.running),
  );
  expect(found).toMatchObject({ name: "moved", reported: "single" });
  const listens = { listen_addresses: host === "localhost" ? "localhost" : "*" };
  expect(await ask({ host, port }, cluster.login, "show listen_addresses")).toEqual([listens]);
  const create = ["create", "--pgdata", node.pgdata, "--pgport", String(port)];
  const again = await runRole(
    "keeper",
    [...create, "--monitor", cluster.monitorUri, "--nodename", host, ...FLAGS.slice(0, 4)],
    { env: cluster.env },
  );
  expect(again.stderr).toContain("The keeper exists already");
});

scenario("a group whose nodes are all gone begins anew", 90_000, async (cluster) => {
  const failover = await role(cluster, "formation", "failover", "--wait");
  expect(failover).toMatchObject({ code: 0, stderr: "" });
  const primary = await cluster.healthy(END_MS, pair(cluster));
  const standby = standbyOf(cluster, primary);
  expect((await standby.command("drop", ["--destroy"])).code).toBe(0);
  await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
  expect((await primary.command("drop", ["--destroy"])).code).toBe(0);
  for (const node of [primary, standby]) {
    await cluster.waitFor("the keeper to end", END_MS, () => node.process?.running === false);
    await node.create();
    node.start();
  }
  await cluster.healthy(END_MS, pair(cluster));
  const again = await role(cluster, "formation", "failover", "--wait");
  expect(again).toMatchObject({ code: 0, stderr: "" });
  await cluster.healthy(END_MS, pair(cluster));
  const ids = (await cluster.states()).map(({ nodeId }) => nodeId);
  const [told] = JSON.parse((await role(cluster, "state", "timeline", "--json")).stdout);
  expect(told).toMatchObject({ timelines: [{ timeline: 1 }, { timeline: 2 }], forks: [] });
  for (const { nodeId } of told.timelines) expect(ids).toContain(nodeId);
});
