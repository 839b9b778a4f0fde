/** Passwords and certificates from end to end, and what is refused without them. */
import { afterAll, beforeAll, expect } from "bun:test";
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pingVerified } from "../../lib/pg/ping.ts";
import { runRole } from "../helpers/command.ts";
import { Overheard } from "../helpers/overheard.ts";
import { giveTo } from "../helpers/owner.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import { nothingLost, stepsOf, telling } from "../helpers/scenario.ts";
import { Authority, SecureCluster } from "../helpers/secure.ts";

const cluster = new SecureCluster("secure");
const overheard = new Overheard();
afterAll(() => cluster[Symbol.asyncDispose](), 40_000);

beforeAll(async () => {
  await telling(cluster, async () => {
    await cluster.startMonitor();
    cluster.logEverything(cluster.monitor);
    cluster.logEverything(await cluster.startNode("node1"));
    for (const label of ["node2", "node3"]) await cluster.startNode(label);
    await cluster.healthy(30_000);
  });
}, 90_000);

const step = stepsOf(cluster);

const RING = `select a.usename as login, s.ssl from pg_stat_replication a join pg_stat_ssl s using (pid) order by a.pid`;

step(
  "every connection of the formation is encrypted, and asks for a password",
  60_000,
  async () => {
    const primary = await cluster.healthy(30_000);
    const replicator = { login: "pgautofailover_replicator", ssl: true };
    expect(await primary.ask(RING)).toEqual([replicator, replicator]);
    const open = cluster.asOwner(
      cluster.monitor,
      "select bool_and(s.ssl) from pg_stat_activity a join pg_stat_ssl s using (pid) where a.usename = 'autoctl_node'",
      "pg_auto_failover",
    );
    expect(open).toBe("t");
    const password = cluster.asOwner(
      primary,
      "select left(rolpassword, 14) from pg_authid where rolname = 'pgautofailover_replicator'",
    );
    expect(password).toBe("SCRAM-SHA-256$");
    const asked = `host=127.0.0.1 port=${primary.port} user=pgautofailover_replicator dbname=postgres`;
    for (const [conninfo, says] of [
      [`${asked} sslmode=disable password=x`, /no encryption|SSL off/], // as 14 and 13 have it
      [`${asked} sslmode=require password=x`, /password authentication failed/],
    ] as const) {
      const { stderr } = Bun.spawnSync(["psql", "-XAtc", "select 1", conninfo], {
        env: cluster.env,
      });
      expect(stderr.toString()).toMatch(says);
    }
  },
);

step("uri: clients are told to verify as well", 20_000, async () => {
  expect(await cluster.uri()).toContain(
    `&sslmode=verify-full&sslrootcert=${encodeURIComponent(cluster.authority.ca)}`,
  );
});

step("the health check finds every node alive, and logs in nowhere", 20_000, async () => {
  await cluster.waitFor("good health", 15_000, async () =>
    (await cluster.states()).every(({ health }) => health === 1),
  );
  for (const node of cluster.nodes) {
    const log = readFileSync(join(cluster.ownDirectory(node), "postgres.log"), "utf8");
    const complaints = log.split("\n").filter((line) => {
      return /(FATAL|ERROR):.*pgautofailover_monitor|SASL response|unexpected EOF|accept SSL/.test(
        line,
      );
    });
    expect(complaints).toEqual([]);
  }
});

step("the health check believes no certificate of another authority", 20_000, async () => {
  const { port } = cluster.node("node1");
  const target = { host: "localhost", port, user: "pgautofailover_monitor", database: "postgres" };
  const other = new Authority(join(cluster.base, "other"), cluster.owner);
  const asked = ({ ca }: Authority) =>
    pingVerified(target, { sslmode: "verify-full", sslrootcert: ca }, 2000);
  expect(await asked(cluster.authority)).toBe("answered");
  expect(await asked(other)).toBe("refused");
});

step("another replication password in the middle of a failover: all get in", 60_000, async () => {
  const primary = await cluster.healthy(30_000);
  await using writer = await cluster.writer();
  const before = replicationPassword();
  await primary.killWithUnsentWal();
  await cluster.askMonitor("select pgautofailover.set_replication_password('default', 0)");
  const next = await cluster.healthy(30_000);
  expect(next).not.toBe(primary);
  const now = cluster.nodes.map((node) => replicationPassword(node.label));
  expect(new Set(now).size).toBe(1);
  expect(now).not.toContain(before);
  await nothingLost(cluster, writer);
});

step(
  "without an environment: a failover, a rewind, a new keeper, and nothing lost",
  90_000,
  async () => {
    const first = await cluster.healthy(30_000);
    const writer = await cluster.writer();
    cluster.forgetPasswords();
    first.killPostgres();
    await cluster.waitFor(
      "another primary",
      20_000,
      async () => (await cluster.healthy(30_000)) !== first,
    );
    const second = await cluster.healthy(30_000);
    const mark = second.mark();
    await second.killWithUnsentWal();
    await cluster.waitFor(
      "yet another one",
      20_000,
      async () => (await cluster.healthy(30_000)) !== second,
    );
    expect(second.log(mark)).toContain("Rewinding with pg_rewind");
    expect(second.log(mark)).not.toContain("falling back to pg_basebackup");
    const third = await cluster.healthy(30_000);
    await third.kill();
    third.start();
    await nothingLost(cluster, writer);
    expect(await third.ask(RING)).toHaveLength(2);
  },
);

step("another replication password: taken up by all, and nothing is cut", 60_000, async () => {
  const primary = await cluster.healthy(30_000);
  const began = "select pid, backend_start::text from pg_stat_replication order by pid";
  const before = await primary.ask(began);
  const verifier = () =>
    cluster.asOwner(
      primary,
      "select rolpassword from pg_authid where rolname = 'pgautofailover_replicator'",
    );
  const [old, stored] = [replicationPassword(), verifier()];
  await cluster.askMonitor("select pgautofailover.set_replication_password('default', 0)");
  await cluster.waitFor("the new password everywhere", 10_000, () => {
    const now = cluster.nodes.map((node) => replicationPassword(node.label));
    return now.every((each) => each !== old && each === now[0]) && verifier() !== stored;
  });
  expect(await primary.ask(began)).toEqual(before);
  // a file that is gone, or that others may read, would not be used: it's written again
  const file = join(cluster.ownDirectory(cluster.node("node2")), "pgpass");
  chmodSync(file, 0o644);
  await cluster.node("node2").command("reload");
  await cluster.waitFor(
    "a file that libpq takes",
    10_000,
    () => (statSync(file).mode & 0o777) === 0o600,
  );
  // it's what a connection that is made anew takes
  await primary.ask("select pg_terminate_backend(pid) from pg_stat_replication");
  await cluster.healthy(30_000);
});

step(
  "no secret is in a log, an event, a command line, an environment or a file for others",
  30_000,
  async () => {
    const secrets = [replicationPassword(), monitorPassword()];
    const everything = overheard.stop();
    expect(everything).toContain("pg_basebackup");
    expect(everything).toContain("pg_rewind");
    expect(everything).toContain("passfile=");
    const events = JSON.stringify(await cluster.askMonitor("select * from pgautofailover.event"));
    const own = [
      join(cluster.ownDirectory(cluster.monitor), "autoctl_node.pgpass"),
      ...cluster.nodes.map((node) => join(cluster.ownDirectory(node), "pgpass")),
    ];
    for (const secret of secrets) {
      expect(secret.length).toBeGreaterThan(30);
      expect(everything).not.toContain(secret);
      expect(events).not.toContain(secret);
      const { stdout } = Bun.spawnSync(["grep", "-rlaF", "--", secret, cluster.base]);
      const found = stdout.toString().trim().split("\n");
      // the monitor must know what it tells: in its tables, and their WAL
      const others = found.filter(
        (path) => !own.includes(path) && !/\/monitor\/(base|pg_wal)\//.test(path),
      );
      expect(others).toEqual([]);
      expect(found.length).toBeGreaterThan(2);
      for (const path of found)
        expect(`${path} ${(statSync(path).mode & 0o077).toString(8)}`).toBe(`${path} 0`);
    }
  },
);

const pgpassOf = (label: string): string =>
  readFileSync(join(cluster.ownDirectory(cluster.node(label)), "pgpass"), "utf8");
const passwordIn = (text: string, login: string): string =>
  text
    .split("\n")
    .find((line) => line.includes(`:${login}:`))
    ?.split(":")
    .at(-1) ?? "";
const replicationPassword = (label = "node1"): string =>
  passwordIn(pgpassOf(label), "pgautofailover_replicator");
const monitorPassword = (): string => passwordIn(pgpassOf("node1"), "autoctl_node");

// ------------------------------------------------------------ refused

type Refused = {
  why: string;
  says: RegExp;
  code: number;
  flags: () => string[];
  uri?: () => string;
};

const names = "DNS:localhost,IP:127.0.0.1";
const issue = (name: string, change: object = {}): string[] =>
  cluster.authority.issue(name, { names, ...change });
let strangers: Authority | undefined;
const stranger = (): Authority => {
  strangers ??= new Authority(join(cluster.base, "tls2"), cluster.owner);
  return strangers;
};
const readable = (): string[] => {
  const flags = issue("readable");
  chmodSync(join(cluster.authority.directory, "readable.key"), 0o644);
  return flags;
};
/** In one file, behind that of another authority. */
const revokedLists = (name: string): string => {
  const file = join(cluster.base, "revoked.crl");
  const lists = [stranger().revoked(), cluster.authority.revoked(name)];
  writeFileSync(file, lists.map((list) => readFileSync(list, "utf8")).join(""), { mode: 0o644 });
  return file;
};
const plainUri = (query: string): string => `${cluster.monitorUri.split("?")[0]}?${query}`;

// biome-ignore format: one row a mistake
const REFUSED: readonly Refused[] = [
  { why: "an expired certificate", code: 2, says: /certificate has expired.*expired\.crt/, flags: () => issue("expired", { expired: true }) },
  { why: "a certificate for another host", code: 2, says: /does not name this host.*localhost/, flags: () => issue("other", { names: "DNS:other.test", commonName: "other.test" }) },
  { why: "a certificate of another authority", code: 2, says: /was not issued by the authority/,
    flags: () => ["--ssl-ca-file", cluster.authority.ca, ...stranger().issue("foreign", { names }).slice(2)] },
  { why: "a key that others can read", code: 2, says: /key can be read by others.*readable\.key/, flags: readable },
  { why: "a key that isn't the certificate's", code: 2, says: /is not that of its certificate/,
    flags: () => [...issue("a").slice(0, 4), "--server-key", issue("b").at(-1) ?? ""] },
  { why: "a file that isn't there", code: 2, says: /could not read.*none\.crt/, flags: () => [...issue("c").slice(0, 3), "/nowhere/none.crt", ...issue("c").slice(4)] },
  { why: "a monitor of another authority", code: 6, says: /not issued by the authority in sslrootcert/, flags: () => issue("d"),
    uri: () => plainUri(`sslmode=verify-full&sslrootcert=${encodeURIComponent(stranger().ca)}`) },
  { why: "a monitor under a name that its certificate lacks", code: 6, says: /its certificate names another host/, flags: () => issue("e"),
    uri: () => cluster.monitorUri.replace("@localhost", "@127.0.0.1") },
  { why: "no encryption to the monitor", code: 6, says: /refused the login.*(no encryption|SSL off)/, flags: () => issue("f"), uri: () => plainUri("sslmode=disable") },
  { why: "an authority's file that isn't there", code: 6, says: /can't be read on this side/, flags: () => issue("g"),
    uri: () => plainUri("sslmode=verify-ca&sslrootcert=/nowhere/ca.crt") },
  { why: "a primary of another authority", code: 2, says: /could not connect to another node: .*not issued by the authority/,
    flags: () => stranger().issue("h", { names }) },
  { why: "a primary whose certificate was revoked", code: 2, says: /could not connect to another node: .*was revoked/,
    flags: () => [...issue("i"), "--ssl-crl-file", revokedLists("node1")] },
];

for (const { why, says, code, flags, uri } of REFUSED) {
  step(`create is refused, and leaves nothing: ${why}`, 30_000, async () => {
    if (why.includes("revoked")) await becomePrimary("node1");
    const node = cluster.addNode(`refused-${why.replaceAll(/\W+/g, "-")}`);
    cluster.nodes.pop();
    const before = (await cluster.states()).length;
    const file = writePassword(monitorPassword());
    const args = ["create", "--pgdata", node.pgdata, "--pgport", String(node.port)];
    const monitor = uri?.() ?? cluster.monitorUri;
    const outcome = await runRole(
      "keeper",
      [
        ...args,
        "--nodename",
        "localhost",
        "--monitor",
        monitor,
        "--auth",
        cluster.auth,
        ...flags(),
      ],
      { env: { ...cluster.env, PGPASSFILE: file } },
    );
    expectRefusal(outcome, { code, says });
    expect((await cluster.states()).length).toBe(before);
    expect(existsSync(cluster.ownDirectory(node))).toBe(false);
    expect(existsSync(node.pgdata) ? readdirSync(node.pgdata) : []).toEqual([]);
  });
}

async function becomePrimary(label: string): Promise<void> {
  const node = cluster.node(label);
  if ((await cluster.healthy(30_000)) === node) return;
  await cluster.askMonitor("select pgautofailover.perform_promotion('default', $1)", [
    await cluster.nameOf(node),
  ]);
  await cluster.waitFor(
    `${label} to be primary`,
    20_000,
    async () => (await cluster.healthy(30_000)) === node,
  );
}

function writePassword(password: string): string {
  const file = join(cluster.base, "typed");
  writeFileSync(file, `*:*:*:autoctl_node:${password}\n`, { mode: 0o600 });
  giveTo(cluster.owner, file);
  return file;
}

step("create is refused, and leaves nothing: a wrong password", 20_000, async () => {
  const node = cluster.addNode("guesser", ["--auth", cluster.auth, ...issue("guesser")]);
  cluster.nodes.pop();
  node.env = { ...cluster.env, PGPASSFILE: writePassword("guess") };
  const outcome = await node.tryCreate();
  expectRefusal(outcome, { code: 6, says: /refused the login.*password/ });
  expect(existsSync(cluster.ownDirectory(node))).toBe(false);
});
