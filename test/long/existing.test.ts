/** `create` over servers that somebody else has made: taken over as they are, or refused untouched. */
import { expect, test } from "bun:test";
import { appendFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { Cluster } from "../helpers/cluster.ts";
import { makeCluster, runAs } from "../helpers/plain_server.ts";
import { telling } from "../helpers/scenario.ts";
import { HERE, type Service } from "../helpers/service.ts";

const END_MS = 30_000;

/** The programs of a plain server on a node's PGDATA and port, run by its owner. */
async function operator(cluster: Cluster, node: Service) {
  const { bindir } = await findBinaries({});
  const options = `-p ${node.port} -c unix_socket_directories=/tmp`;
  const pgctl = (...words: string[]) =>
    runAs(cluster.owner, [join(bindir, "pg_ctl"), "-D", node.pgdata, "-w", "-s", ...words]);
  return {
    start: () => pgctl("-l", `${node.pgdata}.plain.log`, "-o", options, "start"),
    stop: () => pgctl("-m", "fast", "stop"),
    copyOf: (source: Service, ...words: string[]) =>
      runAs(cluster.owner, [
        ...[join(bindir, "pg_basebackup"), "-D", node.pgdata, "-R", "-c", "fast"],
        ...["-d", `host=127.0.0.1 port=${source.port}`, ...words],
      ]),
  };
}

const settingsOf = (node: Service): string =>
  readFileSync(join(node.pgdata, "postgresql.auto.conf"), "utf8");

test("a running primary is adopted without a restart, and its standbys without a new copy", async () => {
  await using cluster = new Cluster("adopt");
  await telling(cluster, async () => {
    await cluster.startMonitor();
    const first = cluster.addNode("node1");
    await makeCluster(cluster.owner, first.pgdata, ["--data-checksums"]);
    await (await operator(cluster, first)).start();
    await first.ask("create table kept as select 42 as answer");

    // a standby of it that runs already, by a slot of its own
    const second = cluster.addNode("node2");
    const theirs = await operator(cluster, second);
    await theirs.copyOf(first, "-C", "-S", "theirs");
    await theirs.start();
    expect(settingsOf(second)).toContain("primary_conninfo");

    // its primary's node has to be there before it
    const early = await second.tryCreate();
    expect(early.code).toBe(7);
    expect(early.stderr).toContain("first node of a group can't be a standby");
    expect(await cluster.states()).toEqual([]);
    expect(settingsOf(second)).toContain("primary_conninfo");
    expect(readdirSync(second.pgdata).join()).not.toContain("auto-failover");
    expect(await second.ask("select 1 from pg_stat_wal_receiver")).toHaveLength(1);

    const postmaster = first.requirePostmaster();
    await first.create();
    first.start();
    await cluster.waitForStates({ node1: "single" }, END_MS);
    expect(first.requirePostmaster()).toBe(postmaster);

    const running = second.dataDirectoryIdentity();
    const taken = await second.create();
    second.start();
    expect(taken.stderr).toMatch(/slot=theirs/);

    // one that has never been started
    const third = cluster.addNode("node3");
    await (await operator(cluster, third)).copyOf(first);
    const stopped = third.dataDirectoryIdentity();
    await third.create();
    third.start();

    expect(await cluster.healthy(END_MS)).toBe(first);
    expect(first.requirePostmaster()).toBe(postmaster);
    expect(second.dataDirectoryIdentity()).toBe(running);
    expect(third.dataDirectoryIdentity()).toBe(stopped);
    for (const node of [second, third]) {
      expect(settingsOf(node)).not.toContain("primary_conninfo");
      expect(await node.ask("select answer from kept")).toEqual([{ answer: 42 }]);
    }
    const slots = await first.ask(
      "select slot_name, active from pg_replication_slots order by slot_name",
    );
    expect(slots).toEqual([
      { slot_name: "pgautofailover_standby_3", active: true }, // the first attempt was node 1
      { slot_name: "pgautofailover_standby_4", active: true },
      { slot_name: "theirs", active: false },
    ]);
  });
}, 90_000);

test("the monitor takes its time: until it gives the node a place, a running server stays as it is", async () => {
  await using cluster = new Cluster("patience");
  await cluster.startMonitor();
  const node = cluster.addNode("node1");
  await makeCluster(cluster.owner, node.pgdata, ["--data-checksums"]);
  await (await operator(cluster, node)).start();
  cluster.monitor.process?.signal("SIGSTOP");
  const creating = node.create();
  const reports = async (): Promise<number> => {
    const [row] = await cluster.askMonitor("select reportno from pgautofailover.node");
    return Number(row?.["reportno"] ?? 0);
  };
  const first = await cluster.waitFor("a first report", END_MS, async () => {
    return (await reports()) || undefined;
  });
  await cluster.waitFor("another two", END_MS, async () => (await reports()) > first + 1);
  expect(readdirSync(node.pgdata).join()).not.toContain("auto-failover");
  expect(await node.ask("show default_transaction_read_only")).toEqual([
    { default_transaction_read_only: "off" },
  ]);
  cluster.monitor.process?.signal("SIGCONT");
  await creating;
  node.start();
  await cluster.waitForStates({ node1: "single" }, END_MS);
}, 60_000);

test("a primary whose settings don't fit: each is named, and nothing is touched", async () => {
  const placeOf = (label: string) => (label === "monitor" ? HERE : { ...HERE, host: "a.invalid" });
  await using cluster = new Cluster("unfit", { placeOf });
  await cluster.startMonitor();
  const node = cluster.addNode("node1");
  await makeCluster(cluster.owner, node.pgdata);
  const config = join(node.pgdata, "postgresql.conf");
  appendFileSync(config, "wal_level = minimal\nmax_wal_senders = 0\n");
  const before = readFileSync(config, "utf8");
  const refused = await node.tryCreate();
  expect(refused.code).toBe(3);
  expect(refused.stderr).toContain('wal_level is \\"minimal\\"');
  expect(refused.stderr).toContain("max_wal_senders is 0");
  expect(refused.stderr).toContain(config);

  appendFileSync(config, "wal_level = replica\nmax_wal_senders = 10\n");
  const theirs = await operator(cluster, node);
  await theirs.start();
  const running = await node.tryCreate();
  expect(running.code).toBe(3);
  expect(running.stderr).toContain("wal_log_hints is off");
  expect(running.stderr).toContain('listen_addresses is \\"localhost\\"');
  await theirs.stop();
  expect(await cluster.states()).toEqual([]);
  expect(readFileSync(config, "utf8").startsWith(before)).toBe(true);
  expect(readdirSync(node.pgdata).join()).not.toContain("auto-failover");
}, 60_000);

test("a cluster that lets nobody in without a password: its owner's keeper needs none", async () => {
  await using cluster = new Cluster("passwords");
  await cluster.startMonitor();
  const node = cluster.addNode("node1");
  await makeCluster(cluster.owner, node.pgdata, ["--data-checksums"]);
  const hba = join(node.pgdata, "pg_hba.conf");
  writeFileSync(hba, "local all all scram-sha-256\nhost all all all scram-sha-256\n");
  const theirs = await operator(cluster, node);
  await theirs.start();
  const refused = await node.tryCreate();
  expect(refused.code).toBe(4);
  expect(refused.stderr).toContain(`local all ${cluster.owner.name} peer`);
  await theirs.stop();
  await node.create();
  node.start();
  await cluster.waitForStates({ node1: "single" }, END_MS);
}, 60_000);
