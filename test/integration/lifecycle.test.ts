/** A node's life by an operator's hand: stopped, reloaded, left, dropped, and made over data that is there. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { Cluster } from "../helpers/cluster.ts";
import { makeCluster, runAs } from "../helpers/plain_server.ts";
import { scenariosOf } from "../helpers/scenario.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("lifecycle");
const END_MS = 30_000;

scenario("stop of a primary hands over, and its next run rejoins", 60_000, async (scene) => {
  const { cluster, primary, secondary, writer } = scene;
  const timeMs = nowMs();
  expect((await primary.command("stop")).code).toBe(0);
  await cluster.waitForStates({ [secondary.label]: "wait_primary" }, END_MS);
  await writer.waitForWrites(20, 5000);
  expect(primary.postmaster()).toBeUndefined();
  expect(writer.longestGapMs(timeMs)).toBeLessThan(2000);
  expect((await primary.command("stop")).code).toBe(0);
  expect((await primary.command("status")).code).toBe(3);
  primary.start();
  await cluster.waitForStates(
    { [secondary.label]: "primary", [primary.label]: "secondary" },
    END_MS,
  );
});

scenario(
  "SIGQUIT leaves PostgreSQL, SIGHUP reloads",
  60_000,
  async ({ cluster, primary, writer }) => {
    const postmaster = primary.requirePostmaster();
    expect((await primary.command("reload")).code).toBe(0);
    await primary.waitForLog(/Reloading the settings/, 5000);
    process.kill(primary.process?.pid ?? 0, "SIGQUIT");
    await cluster.waitFor("the keeper to end", 5000, () => primary.process?.running === false);
    expect((await primary.command("reload")).code).toBe(3);
    await writer.waitForWrites(20, 5000);
    expect(primary.postmaster()).toBe(postmaster);
    primary.start();
    await cluster.healthy(END_MS);
  },
);

scenario("a standby is dropped, and made again over its own data", 90_000, async (scene) => {
  const { cluster, primary, secondary, writer } = scene;
  const refused = await primary.command("drop");
  expect(refused).toMatchObject({ code: 7 });
  expect(refused.stderr).toContain("hint:");

  expect((await secondary.command("drop")).code).toBe(0);
  await cluster.waitFor("the keeper to end", END_MS, () => secondary.process?.running === false);
  expect(secondary.process?.exitCode).toBe(121);
  expect(secondary.postmaster()).toBeUndefined();
  await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
  await writer.waitForWrites(20, 5000);
  await cluster.waitFor("the slot to go", END_MS, async () => {
    const rows = await primary.ask("select slot_name from pg_replication_slots");
    return rows.length === 0;
  });
  // what it had is of the same cluster, and needs no copy
  const identity = secondary.dataDirectoryIdentity();
  await secondary.create();
  secondary.start();
  await cluster.waitForStates(
    { [primary.label]: "primary", [secondary.label]: "secondary" },
    END_MS,
  );
  expect(secondary.dataDirectoryIdentity()).toBe(identity);
});

test("a node that was removed while its keeper was away stops its server, and ends", async () => {
  await using cluster = await Cluster.twoNodes("removed");
  const primary = await cluster.healthy(END_MS);
  const away = cluster.other(primary);
  await away.kill();
  expect(away.postmaster()).toBeDefined();
  const found = (await cluster.states()).find(({ port }) => port === away.port);
  await cluster.askMonitor("select pgautofailover.remove_node($1::text::bigint, true)", [
    String(found?.nodeId),
  ]);
  await cluster.waitForStates({ [primary.label]: "single" }, END_MS);
  const mark = away.mark();
  away.start();
  await cluster.waitFor("the keeper to end", END_MS, () => away.process?.running === false);
  expect(away.process?.exitCode).toBe(121);
  expect(away.postmaster()).toBeUndefined();
  expect(away.log(mark)).toContain("was removed from formation");
}, 60_000);

test("a standby promoted by hand draws no writers, is never elected, and is taken back", async () => {
  await using cluster = await Cluster.twoNodes("promoted");
  const primary = await cluster.healthy(END_MS);
  const stranger = cluster.other(primary);
  const mark = stranger.mark();
  // as long as its keeper stands still, nobody takes it back
  stranger.process?.signal("SIGSTOP");
  await stranger.ask("select pg_promote()", [], 10_000);
  expect(await stranger.ask("show default_transaction_read_only")).toEqual([
    { default_transaction_read_only: "on" },
  ]);
  const before = primary.killPostgres();
  stranger.process?.signal("SIGCONT");
  await stranger.waitForLog(/Rewinding with pg_rewind/, END_MS, mark);
  await primary.newPostmaster(before, END_MS);
  await cluster.waitForStates(
    { [primary.label]: "primary", [stranger.label]: "secondary" },
    END_MS,
  );
  expect(stranger.path(mark)).not.toContain("stop_replication");
  expect(stranger.path(mark).slice(-2)).toEqual(["catchingup", "secondary"]);
}, 90_000);

test("a cluster with data becomes the first node, stopped or running", async () => {
  await using cluster = new Cluster("existing");
  await cluster.startMonitor();
  const node = cluster.addNode("node1");
  await makeCluster(cluster.owner, node.pgdata);
  const { bindir } = await findBinaries({});
  const pgctl = (...words: string[]) =>
    runAs(cluster.owner, [join(bindir, "pg_ctl"), "-D", node.pgdata, "-w", "-s", ...words]);
  await pgctl(
    "-l",
    `${node.pgdata}.plain.log`,
    "-o",
    `-p ${node.port} -c unix_socket_directories=/tmp`,
    "start",
  );
  await node.ask("create table kept as select 42 as answer");

  // initdb's default has neither checksums nor hints: a running server would have to be restarted
  const refused = await node.tryCreate();
  expect(refused.code).toBe(3);
  expect(refused.stderr).toContain("wal_log_hints");
  const postmaster = node.requirePostmaster();
  await pgctl("-m", "fast", "stop");
  expect(node.postmaster()).not.toBe(postmaster);
  await node.create();
  node.start();
  await cluster.waitForStates({ node1: "single" }, END_MS);
  expect(await node.ask("select answer from kept")).toEqual([{ answer: 42 }]);

  const second = await cluster.startNode("node2");
  await cluster.waitForStates({ node1: "primary", node2: "secondary" }, END_MS);
  expect(await second.ask("select answer from kept")).toEqual([{ answer: 42 }]);
  expect((await second.command("drop", ["--destroy"])).code).toBe(0);
  expect(existsSync(second.pgdata)).toBe(false);

  // a copy that went on as a primary of its own has the same identifier and timeline
  await cluster.waitForStates({ node1: "single" }, END_MS);
  await node.terminate(END_MS);
  const fork = cluster.addNode("fork");
  await runAs(cluster.owner, ["cp", "-a", node.pgdata, fork.pgdata]);
  node.start();
  await cluster.waitForStates({ node1: "single" }, END_MS);
  await cluster.waitFor("the first node to run", END_MS, async () => {
    const rows = await node.ask("select 1 as up");
    return rows.length === 1;
  });
  const divided = await fork.tryCreate();
  expect(divided.code).toBe(7);
  expect(divided.stderr).toContain("may differ");
}, 90_000);
