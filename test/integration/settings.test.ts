/** Settings of a node that runs, and of its monitor, changed by an operator. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { type Outcome, runRole } from "../helpers/command.ts";
import { onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

const story = onShared(async () => {
  const cluster = new Cluster("settings");
  await cluster.startMonitor();
  const node = await cluster.startNode("node1");
  await cluster.waitForStates({ [node.label]: "single" }, 20_000);
  return cluster;
}, test);

const config = (service: Service, verb: string, ...words: string[]): Promise<Outcome> =>
  runRole(service.role, ["config", verb, "--pgdata", service.pgdata, ...words], {
    env: service.env,
  });

const fileOf = (cluster: Cluster, service: Service): string =>
  join(cluster.base, "data/pg_auto_failover", service.pgdata, `${service.role}.json`);

async function lastReport(cluster: Cluster): Promise<bigint> {
  const [row] = await cluster.askMonitor("select reportno from pgautofailover.node");
  return BigInt(String(row?.["reportno"]));
}

async function goesOnReporting(cluster: Cluster): Promise<void> {
  const before = await lastReport(cluster);
  await cluster.waitFor(
    "two more reports",
    5000,
    async () => (await lastReport(cluster)) > before + 1n,
  );
}

story("what is shown, and what is refused", 30_000, async (cluster) => {
  const node = cluster.node("node1");
  const before = readFileSync(fileOf(cluster, node), "utf8");
  expect(await config(node, "get", "pgport")).toMatchObject({ stdout: `${node.port}\n` });
  const { stdout } = await config(node, "get", "--json");
  expect(JSON.parse(stdout)).toMatchObject({
    pgdata: node.pgdata,
    monitor: expect.stringContaining(`${cluster.monitorUri}?passfile=`),
    auth: "trust",
  });
  const refused: readonly [words: string[], code: number, says: string][] = [
    [["pgport", "5999"], 7, "the port of a node that runs can't be changed"],
    [["formation", "other"], 7, "drop the node and create it again"],
    [["candidate-priority", "0"], 7, "roles/node.ts set changes it there"],
    [["auth", "ldap"], 2, "auth can't have this value"],
    [["monitor", "http://x"], 2, "hint:"],
    [["pgctl", "/nowhere/pg_ctl"], 4, "found no PostgreSQL"],
    [["pgprot", "5999"], 2, "One of: pgdata, pgport"],
  ];
  for (const [words, code, says] of refused) {
    const outcome = await config(node, "set", ...words);
    expect(outcome).toMatchObject({ code });
    expect(outcome.stderr).toContain(says);
  }
  expect(await config(cluster.monitor, "set", "pgport", "5999")).toMatchObject({ code: 7 });
  expect(readFileSync(fileOf(cluster, node), "utf8")).toBe(before);
});

story("a running keeper takes up what is set", 30_000, async (cluster) => {
  const node = cluster.node("node1");
  const hba = () => readFileSync(join(node.pgdata, "pg_hba.conf"), "utf8");
  const postmaster = node.requirePostmaster();
  const wanted = "host all all 127.0.0.1/32 scram-sha-256";
  expect(hba()).not.toContain(wanted);
  expect(await config(node, "set", "auth", "scram-sha-256")).toMatchObject({ code: 0 });
  await cluster.waitFor("the new lines", 5000, () => hba().includes(wanted));
  expect(await config(node, "set", "auth", "trust")).toMatchObject({ code: 0 });
  await cluster.waitFor("the old lines", 5000, () => !hba().includes(wanted));

  // the monitor's port moves, and the keeper with it
  const { monitor } = cluster;
  const mark = node.mark();
  await monitor.terminate(20_000);
  const moved = cluster.anotherMonitor("unused").port;
  expect(await config(monitor, "set", "pgport", String(moved))).toMatchObject({ code: 0 });
  monitor.start();
  const uri = cluster.monitorUri.replace(String(monitor.port), String(moved));
  expect(await config(node, "set", "monitor", uri)).toMatchObject({ code: 0 });
  await node.waitForLog(/The monitor answers again/, 15_000, mark);
  await monitor.terminate(20_000);
  const back = [String(monitor.port), cluster.monitorUri] as const;
  expect(await config(monitor, "set", "pgport", back[0])).toMatchObject({ code: 0 });
  monitor.start();
  expect(await config(node, "set", "monitor", back[1])).toMatchObject({ code: 0 });
  await cluster.waitFor("reports", 15_000, () => goesOnReporting(cluster).then(() => true));
  expect(node.postmaster()).toBe(postmaster);
});

story(
  "a file that can't be believed: a running keeper goes on, a new one doesn't start",
  30_000,
  async (cluster) => {
    const node = cluster.node("node1");
    const path = fileOf(cluster, node);
    const good = readFileSync(path, "utf8");
    const settings = JSON.parse(good);
    const broken: readonly [text: string, says: RegExp][] = [
      [good.slice(0, -10), /not valid JSON/],
      [JSON.stringify({ ...settings, pgprot: 1 }), /pgprot/],
      [JSON.stringify({ ...settings, pgport: "5432" }), /pgport/],
      [JSON.stringify({ ...settings, pgport: 5999 }), /while the keeper runs .*setting=pgport/],
    ];
    for (const [text, says] of broken) {
      const mark = node.mark();
      writeFileSync(path, text);
      node.process?.signal("SIGHUP");
      const [line] = await node.waitForLog(/The settings are not taken up.*/, 5000, mark);
      expect(line).toMatch(says);
      await goesOnReporting(cluster);
    }
    writeFileSync(path, broken[1]?.[0] ?? "");
    const outcome = await node.command("run");
    expect(outcome).toMatchObject({ code: 2, stdout: "" });
    expect(outcome.stderr).toMatch(/^error keeper .*pgprot.*\n {2}hint: .*\n$/);
    writeFileSync(path, good);
  },
);
