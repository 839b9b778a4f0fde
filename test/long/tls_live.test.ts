/** TLS turned on and off under a writer, and nodes that log in by certificate. */
import { expect, test } from "bun:test";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defaultNodename } from "../../lib/pg/addresses.ts";
import { Cluster } from "../helpers/cluster.ts";
import { runRole } from "../helpers/command.ts";
import { giveTo } from "../helpers/owner.ts";
import { freePort } from "../helpers/ports.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";
import { SecureCluster } from "../helpers/secure.ts";
import type { Service } from "../helpers/service.ts";

/** Of the one who streams from a primary: is it encrypted? */
async function streamsEncrypted(primary: Service): Promise<boolean | undefined> {
  const [row] = await primary.ask(
    "select s.ssl from pg_stat_replication r join pg_stat_ssl s using (pid) where r.state = 'streaming'",
  );
  return row?.["ssl"] as boolean | undefined;
}

test("where others connect over a network, TLS is the default", async () => {
  await using cluster = new Cluster("remote");
  const at = ["--pgdata", join(cluster.base, "remote")];
  const run = (verb: string, ...flags: string[]) =>
    runRole("monitor", [verb, ...at, ...flags], { env: cluster.env });
  const where = ["--nodename", defaultNodename(), "--pgport", String(freePort())];
  const made = await run("create", ...where);
  expect({ said: made.stderr, code: made.code }).toMatchObject({ code: 0 });
  expect(made.stdout.trim()).toEndWith("?sslmode=require");
  expect((await run("drop")).code).toBe(0);
  const plain = await run("create", ...where, "--no-ssl");
  expect(plain.stdout.trim()).toEndWith("/pg_auto_failover");
  expect((await run("drop")).code).toBe(0);
}, 60_000);

test("enable and disable ssl on a formation that is written to: nothing restarts, nothing is lost", async () => {
  await using cluster = await Cluster.twoNodes("live");
  await telling(cluster, async () => {
    const primary = await cluster.healthy(30_000);
    const secondary = cluster.other(primary);
    const all = [cluster.monitor, primary, secondary];
    const servers = () => all.map((service) => [service.postmaster(), service.process?.pid]);
    const before = servers();
    const writer = await cluster.writer();
    const ssl = (service: Service, verb: string, flags: string[] = []) =>
      runRole(service.role, [verb, "ssl", "--pgdata", service.pgdata, ...flags], {
        env: cluster.env,
      });
    const done = async (service: Service, verb: string, flags: string[] = []) => {
      const outcome = await ssl(service, verb, flags);
      expect({ said: outcome.stderr, code: outcome.code }).toMatchObject({ code: 0 });
      return outcome.stdout.trim();
    };
    expectRefusal(await ssl(secondary, "enable"), { code: 2, says: /no certificate is named/ });
    // in the wrong order: whom it would demand TLS of has none yet
    expectRefusal(await ssl(secondary, "enable", ["--ssl-self-signed"]), {
      code: 6,
      says: /it has no TLS/,
    });
    expect(await done(cluster.monitor, "enable", ["--ssl-self-signed"])).toBe(
      `${cluster.monitorUri}?sslmode=require`,
    );
    expectRefusal(await ssl(secondary, "enable", ["--ssl-self-signed"]), {
      code: 2,
      says: /another node: it has no TLS/,
    });
    expect(await streamsEncrypted(primary)).toBe(false);
    for (const node of [primary, secondary]) await done(node, "enable", ["--ssl-self-signed"]);
    await cluster.waitFor("encrypted replication", 10_000, () => streamsEncrypted(primary));
    const key = join(
      cluster.env["XDG_DATA_HOME"] ?? "",
      "pg_auto_failover",
      primary.pgdata,
      "server.key",
    );
    expect(statSync(key).mode & 0o777).toBe(0o600);
    await writer.waitForWrites(5, 5000);
    expect(servers()).toEqual(before);

    // create, run again with the flags of the first time, leaves it on
    for (const service of [cluster.monitor, primary]) {
      const again = await service.tryCreate();
      expect({ said: again.stderr, code: again.code }).toMatchObject({ code: 0 });
    }
    // a server that dies comes back with it, from both roles
    primary.killPostgres();
    await cluster.waitFor(
      "the other one as primary",
      20_000,
      async () => (await cluster.healthy(30_000)) === secondary,
    );
    expect(await streamsEncrypted(secondary)).toBe(true);

    const then = servers();
    for (const service of [primary, secondary, cluster.monitor]) await done(service, "disable");
    await cluster.healthy(30_000);
    await secondary.ask("select pg_terminate_backend(pid) from pg_stat_replication");
    await cluster.waitFor(
      "clear replication",
      10_000,
      async () => (await streamsEncrypted(secondary)) === false,
    );
    expect(servers()).toEqual(then);
    await nothingLost(cluster, writer);
  });
}, 90_000);

test("--auth cert: nodes log in by their certificates, and rejoin after a failover", async () => {
  await using cluster = new SecureCluster("certs", "cert");
  await telling(cluster, async () => {
    await cluster.startMonitor();
    const first = await cluster.startNode("node1");
    const second = await cluster.startNode("node2");
    expect(await cluster.healthy(30_000)).toBe(first);
    const login = (service: Service, who: string, database = "postgres"): string =>
      cluster.asOwner(
        service,
        `select distinct s.client_dn from pg_stat_activity join pg_stat_ssl s using (pid) where usename = '${who}'`,
        database,
      );
    expect(login(first, "pgautofailover_replicator")).toBe("/CN=localhost");
    expect(login(cluster.monitor, "autoctl_node", "pg_auto_failover").split("\n").sort()).toEqual([
      "/CN=localhost",
      "/CN=operator",
    ]);
    first.killPostgres();
    await cluster.waitFor(
      "a failover",
      20_000,
      async () => (await cluster.healthy(30_000)) === second,
    );
    expect(login(second, "pgautofailover_replicator")).toBe("/CN=localhost");

    // a certificate of the same authority, for another host
    cluster.authority.issue("thief", { names: "DNS:thief", commonName: "thief" });
    const file = (suffix: string) => join(cluster.authority.directory, `thief.${suffix}`);
    const { stderr } = Bun.spawnSync(
      [
        "psql",
        "-XAtc",
        "select 1",
        `host=localhost port=${second.port} user=pgautofailover_replicator dbname=postgres sslmode=require sslcert=${file("crt")} sslkey=${file("key")}`,
      ],
      { env: cluster.env },
    );
    expect(stderr.toString()).toMatch(/certificate authentication failed/);
  });
}, 90_000);

test("--auth md5, --skip-pg-hba, --pg-hba-lan, and a replication password from a file", async () => {
  await using cluster = new Cluster("hba", { auth: "md5" });
  await cluster.startMonitor();
  const own = (service: Service) =>
    join(cluster.env["XDG_DATA_HOME"] ?? "", "pg_auto_failover", service.pgdata);
  writeFileSync(
    cluster.passwords,
    readFileSync(join(own(cluster.monitor), "autoctl_node.pgpass")),
    { mode: 0o600 },
  );
  giveTo(cluster.owner, cluster.passwords);
  const secret = join(cluster.base, "secret");
  writeFileSync(secret, "It's: a \\secret\n", { mode: 0o644 });
  giveTo(cluster.owner, secret);
  const node = cluster.addNode("lan", [
    "--auth",
    "md5",
    "--pg-hba-lan",
    "--replication-password-file",
    secret,
  ]);
  expectRefusal(await node.tryCreate(), { code: 5, says: /can be read by others/ });
  Bun.spawnSync(["chmod", "600", secret]);
  await node.create();
  expect(readFileSync(join(own(node), "pgpass"), "utf8")).toContain(
    ":pgautofailover_replicator:It's\\: a \\\\secret\n",
  );
  const hba = readFileSync(join(node.pgdata, "pg_hba.conf"), "utf8");
  expect(hba).toMatch(/^host all all 127\.0\.0\.1\/32 md5$/m);
  node.start();
  // a password in the environment is that of the monitor's login, and of no other
  const line = readFileSync(cluster.passwords, "utf8").trim();
  const env = { PGPASSWORD: line.split(":").at(-1) ?? "", PGPASSFILE: "/nowhere" };
  const second = cluster.addNode("second", ["--auth", "md5"], { env });
  await second.create();
  const left = cluster.addNode("left", ["--auth", "md5", "--skip-pg-hba", "--group", "1"]);
  await left.create();
  expect(readFileSync(join(left.pgdata, "pg_hba.conf"), "utf8")).not.toContain("pg_auto_failover");
  for (const each of [second, left, node]) await each.command("stop");
}, 60_000);
