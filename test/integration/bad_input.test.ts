/** Wrong flags, wrong directories, wrong monitors: one clear line, an exit code, nothing lost. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import {
  type Environment,
  type Outcome,
  REPOSITORY,
  type RoleName,
  runCommand,
  runRole,
} from "../helpers/command.ts";
import { silentListener, talkingListener } from "../helpers/listener.ts";
import { isRoot, osUser } from "../helpers/owner.ts";
import { makeCluster, startPlainServer } from "../helpers/plain_server.ts";
import { freePort } from "../helpers/ports.ts";
import { expectRefusal } from "../helpers/refusal.ts";
import type { Service } from "../helpers/service.ts";

/** One monitor and one single node, both running, which none of these commands may disturb. */
let cluster: Cluster;
let single: Service;

beforeAll(async () => {
  cluster = new Cluster("bad");
  await cluster.startMonitor();
  single = await cluster.startNode("single");
  await cluster.waitForStates({ single: "single" }, 15_000);
}, 60_000);
afterAll(() => cluster?.[Symbol.asyncDispose](), 40_000);

const role = (name: RoleName, args: readonly string[], env: Environment = {}): Promise<Outcome> =>
  runRole(name, args, { env: { ...cluster.env, ...env } });

/** A directory that doesn't exist yet, below the test's own. */
let made = 0;
function newPath(name: string): string {
  made += 1;
  return join(cluster.base, `${name}${made}`);
}

const keeperFlags = (pgdata: string, port = freePort(), monitor = cluster.monitorUri): string[] => [
  ...["create", "--pgdata", pgdata, "--pgport", String(port)],
  ...["--nodename", "localhost", "--monitor", monitor],
];

/** Everything below a directory, with sizes: what a refused command must not have touched. */
function contents(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .map((path) => `${path} ${statSync(path).size} ${statSync(path).mtimeMs}`)
    .sort();
}

/** Nodes that the monitor knows; a refused `create` leaves none behind. */
const nodeCount = async (): Promise<number> => (await cluster.states()).length;

/** Nothing of a refused `create` stands in the way of the next one. */
function expectNothingLeft(pgdata: string): void {
  for (const path of [pgdata, `${pgdata}.new`, `${pgdata}.initdb`]) {
    expect({ path, exists: existsSync(path) && readdirSync(path).length > 0 }).toEqual({
      path,
      exists: false,
    });
  }
  const own = join(cluster.env["XDG_DATA_HOME"] ?? "", "pg_auto_failover", pgdata);
  expect({ own, exists: existsSync(own) }).toEqual({ own, exists: false });
}

// ------------------------------------------------------------ flags

type BadLine = { role: RoleName; args: readonly string[]; says: RegExp };

const BAD_LINES: readonly BadLine[] = [
  { role: "keeper", args: ["create", "--pgdta", "/nowhere"], says: /--pgdta/ },
  { role: "keeper", args: ["run", "--pgdata", "/nowhere", "--frobnicate"], says: /--frobnicate/ },
  { role: "keeper", args: ["crate", "--pgdata", "/nowhere"], says: /crate/ },
  { role: "keeper", args: ["run", "--pgdata", "/nowhere", "surplus"], says: /surplus/ },
  { role: "keeper", args: ["run", "--pgdata", "/nowhere", "--http", "x"], says: /\[HOST:\]PORT/ },
  { role: "keeper", args: ["status", "--pgdata"], says: /pgdata/ },
  { role: "keeper", args: ["status"], says: /data directory/ },
  { role: "keeper", args: [], says: /command/ },
  { role: "keeper", args: ["create", "--pgdata", "/nowhere/x"], says: /monitor/ },
  {
    role: "keeper",
    args: ["create", "--pgdata", "/nowhere/x", "--monitor", "localhost:5432"],
    says: /monitor|URI|connection string/i,
  },
  {
    role: "keeper",
    args: ["create", "--pgdata", "/nowhere/x", "--monitor", "mysql://localhost/x"],
    says: /monitor|URI|connection string/i,
  },
  ...["0", "65536", "http", "-1", "54 32", "5432x", "0x1538"].map(
    (port): BadLine => ({
      role: "keeper",
      args: [
        "create",
        "--pgdata",
        "/nowhere/x",
        "--monitor",
        "postgres://localhost:1/x",
        `--pgport=${port}`,
      ],
      says: /port/,
    }),
  ),
  {
    role: "monitor",
    args: ["create", "--pgdata", "/nowhere/x", "--auth", "password"],
    says: /auth/,
  },
  {
    role: "monitor",
    args: ["create", "--pgdata", "/nowhere/x", "--pgport", "65536"],
    says: /port/,
  },
  { role: "monitor", args: ["run", "--pgdata", "/nowhere", "--jsn"], says: /--jsn/ },
  { role: "monitor", args: ["run", "--pgdata", "/nowhere", "--http", "0"], says: /\[HOST:\]PORT/ },
  { role: "uri", args: ["--monitr", "postgres://localhost/x"], says: /--monitr/ },
  { role: "uri", args: [], says: /monitor|data directory/ },
  { role: "state", args: ["shwo", "--pgdata", "/nowhere"], says: /shwo/ },
  { role: "state", args: ["show", "--pgdata", "/nowhere", "--jsom"], says: /--jsom/ },
];

for (const { role: name, args, says } of BAD_LINES) {
  test(`refused with exit code 2: ${name} ${args.join(" ")}`, async () => {
    expectRefusal(await role(name, args), { code: 2, says, withinMs: 3000 });
  });
}

test("a misspelt flag is answered with the right one", async () => {
  const { stderr } = await role("keeper", ["create", "--pgdta", "/nowhere"]);
  expect(stderr).toContain("--pgdata");
});

test("--help prints the usage to stdout and ends with 0, for every role and command", async () => {
  const commands: [RoleName, ...string[]][] = [
    ["keeper"],
    ["keeper", "create"],
    ["keeper", "run"],
    ["keeper", "drop"],
    ["monitor"],
    ["monitor", "create"],
    ["uri"],
    ["state"],
    ["state", "events"],
  ];
  for (const [name, ...words] of commands) {
    const outcome = await role(name, [...words, "--help"]);
    expect(outcome).toMatchObject({ code: 0, stdout: expect.stringMatching(/usage/i) });
  }
}, 20_000);

// ------------------------------------------------------------ directories and ports

test("commands on a directory that has no node say so, with exit code 3", async () => {
  const empty = newPath("empty");
  for (const [name, verb] of [
    ["keeper", "run"],
    ["keeper", "status"],
    ["keeper", "reload"],
    ["monitor", "run"],
  ] as const) {
    expectRefusal(await role(name, [verb, "--pgdata", empty]), { code: 3, says: /there is no/ });
  }
  expectNothingLeft(empty);
}, 20_000);

test("port in use: refused, and the same create works once the port is free", async () => {
  const pgdata = newPath("port");
  const listener = silentListener();
  const nodes = await nodeCount();
  try {
    const outcome = await role("keeper", keeperFlags(pgdata, listener.port));
    expectRefusal(outcome, { code: [4, 7], says: new RegExp(`${listener.port}|port`) });
    expectNothingLeft(pgdata);
    expect(await nodeCount()).toBe(nodes);
  } finally {
    listener[Symbol.dispose]();
  }
  const second = await role("keeper", keeperFlags(pgdata, listener.port));
  expect(second.code, second.stderr).toBe(0);
  const dropped = await role("keeper", ["drop", "--pgdata", pgdata, "--destroy"]);
  expect(dropped.code, dropped.stderr).toBe(0);
  expectNothingLeft(pgdata);
  await cluster.waitForStates({ single: "single" }, 10_000);
}, 60_000);

test("the monitor's port in use: refused, and nothing is left", async () => {
  const pgdata = newPath("monitor");
  const flags = [
    "create",
    "--pgdata",
    pgdata,
    "--nodename",
    "localhost",
    "--pgport",
    String(single.port),
  ];
  expectRefusal(await role("monitor", flags), {
    code: [4, 7],
    says: new RegExp(`${single.port}|port`),
  });
  expectNothingLeft(pgdata);
}, 30_000);

test("a PGDATA that holds something else than a cluster is refused and left as it is", async () => {
  for (const name of ["keeper", "monitor"] as const) {
    const pgdata = newPath("documents");
    mkdirSync(pgdata);
    if (isRoot) chownSync(pgdata, cluster.owner.uid, cluster.owner.gid);
    writeFileSync(join(pgdata, "thesis.txt"), "three years of work\n");
    const before = contents(pgdata);
    const flags =
      name === "keeper"
        ? keeperFlags(pgdata)
        : ["create", "--pgdata", pgdata, "--pgport", String(freePort())];
    expectRefusal(await role(name, flags), {
      code: [2, 7],
      says: /not empty|not a (data directory|cluster)/,
    });
    expect(contents(pgdata)).toEqual(before);
  }
}, 30_000);

test("a PGDATA of another cluster is refused and left as it is", async () => {
  const pgdata = newPath("foreign");
  await makeCluster(cluster.owner, pgdata);
  const before = contents(pgdata);
  const nodes = await nodeCount();
  expectRefusal(await role("keeper", keeperFlags(pgdata)), {
    code: 7,
    says: /system identifier|another cluster/,
  });
  expect(contents(pgdata)).toEqual(before);
  expect(await nodeCount()).toBe(nodes);
}, 30_000);

test("a PGDATA of another major version is refused and left as it is", async () => {
  const pgdata = newPath("version");
  await makeCluster(cluster.owner, pgdata);
  writeFileSync(join(pgdata, "PG_VERSION"), "13\n");
  const before = contents(pgdata);
  expectRefusal(await role("keeper", keeperFlags(pgdata)), { code: [4, 7], says: /13/ });
  expect(contents(pgdata)).toEqual(before);
}, 30_000);

test.if(isRoot)("started as root on a PGDATA of root: refused, with what to do", async () => {
  const pgdata = newPath("roots");
  mkdirSync(pgdata, { mode: 0o700 });
  expectRefusal(await role("keeper", keeperFlags(pgdata)), {
    code: 5,
    says: /root|permission|belongs/,
  });
});

test("a PGDATA of another user is refused, naming both", async () => {
  const somebody = osUser("nobody");
  if (!isRoot || !somebody) {
    // Without root there is always a directory that isn't ours.
    const outcome = await role("keeper", keeperFlags("/usr/lib"));
    expectRefusal(outcome, { code: 5, says: new RegExp(`root.*${cluster.owner.name}`) });
    return;
  }
  const pgdata = newPath("nobodys");
  mkdirSync(pgdata, { mode: 0o700 });
  chownSync(pgdata, somebody.uid, somebody.gid);
  const outcome = await asOwner(keeperFlags(pgdata));
  expectRefusal(outcome, { code: 5, says: new RegExp(`nobody.*${cluster.owner.name}`) });
}, 30_000);

test("no PostgreSQL where --pgctl points: refused, and nothing is left", async () => {
  const empty = cluster.directory("nobin");
  for (const name of ["keeper", "monitor"] as const) {
    const pgdata = newPath("nobin");
    const flags =
      name === "keeper"
        ? keeperFlags(pgdata)
        : ["create", "--pgdata", pgdata, "--pgport", String(freePort())];
    const outcome = await role(name, [...flags, "--pgctl", join(empty, "pg_ctl")]);
    expectRefusal(outcome, { code: 4, says: /pg_ctl|PostgreSQL/ });
    expectNothingLeft(pgdata);
  }
}, 20_000);

// ------------------------------------------------------------ monitors

test("a monitor that is down: refused at once, and nothing is left", async () => {
  const pgdata = newPath("down");
  const uri = `postgres://autoctl_node@localhost:${freePort()}/pg_auto_failover`;
  const outcome = await role("keeper", keeperFlags(pgdata, freePort(), uri));
  expectRefusal(outcome, { code: 6, says: /could not reach the monitor/ });
  expectNothingLeft(pgdata);
  for (const [name, args] of [
    ["uri", []],
    ["state", ["show"]],
    ["state", ["events"]],
  ] as const) {
    expectRefusal(await role(name, [...args, "--monitor", uri]), {
      code: 6,
      says: /could not reach the monitor/,
    });
  }
}, 60_000);

test("a monitor that accepts and says nothing: refused within 15 s", async () => {
  const pgdata = newPath("slow");
  using listener = silentListener();
  const uri = `postgres://autoctl_node@localhost:${listener.port}/pg_auto_failover`;
  const outcome = await role("keeper", keeperFlags(pgdata, freePort(), uri));
  expectRefusal(outcome, { code: [6, 8], says: /monitor/, withinMs: 15_000 });
  expectNothingLeft(pgdata);
}, 30_000);

test("something that speaks another protocol is not a monitor", async () => {
  const pgdata = newPath("http");
  using listener = talkingListener();
  const uri = `postgres://autoctl_node@localhost:${listener.port}/pg_auto_failover`;
  const outcome = await role("keeper", keeperFlags(pgdata, freePort(), uri));
  expectRefusal(outcome, { code: 6, says: /monitor/, withinMs: 15_000 });
  expectNothingLeft(pgdata);
}, 30_000);

test("an ordinary PostgreSQL is not a monitor", async () => {
  const pgdata = newPath("plain");
  await using server = await startPlainServer(cluster.owner, newPath("ordinary"), freePort());
  const uri = `postgres://${cluster.owner.name}@localhost:${server.port}/postgres`;
  const outcome = await role("keeper", keeperFlags(pgdata, freePort(), uri));
  expectRefusal(outcome, { code: 6, says: /not a monitor/ });
  expectNothingLeft(pgdata);
}, 30_000);

test("a wrong password: refused, without showing it", async () => {
  await using guarded = new Cluster("scram", { auth: "scram-sha-256" });
  await guarded.startMonitor();
  const flags = keeperFlags(join(guarded.base, "node"), freePort(), guarded.monitorUri);
  const wrong = await runRole("keeper", flags, {
    env: { ...guarded.env, PGPASSWORD: "s3cret-but-wrong" },
  });
  expectRefusal(wrong, { code: 6, says: /password|login/ });
  expect(wrong.stderr).not.toContain("s3cret");
  const inUri = guarded.monitorUri.replace("autoctl_node@", "autoctl_node:s3cret-but-wrong@");
  const wrongUri = await runRole("state", ["show"], {
    env: { ...guarded.env, PG_AUTOCTL_MONITOR: inUri },
  });
  expectRefusal(wrongUri, { code: 6, says: /password|login/ });
  const onLine = await runRole("state", ["show", "--monitor", inUri], { env: guarded.env });
  expectRefusal(onLine, { code: 2, says: /password must not stand on a command line/ });
  for (const { stderr } of [wrongUri, onLine]) expect(stderr).not.toContain("s3cret");
  const none = await runRole("state", ["show", "--monitor", guarded.monitorUri], {
    env: guarded.env,
  });
  expectRefusal(none, { code: 6, says: /password|login/ });
}, 60_000);

test("an unknown formation is refused, and nothing is left", async () => {
  const pgdata = newPath("formation");
  const outcome = await role("keeper", [...keeperFlags(pgdata), "--formation", "nowhere"]);
  expectRefusal(outcome, { code: [2, 6, 7], says: /formation/ });
  expectNothingLeft(pgdata);
}, 20_000);

// ------------------------------------------------------------ twice

test("two keepers on one PGDATA: the second is refused, the first goes on", async () => {
  const before = single.process?.pid;
  const outcome = await single.command("run");
  expectRefusal(outcome, { code: 7, says: new RegExp(`${before}`) });
  expect(single.process?.running).toBe(true);
  const monitor = await cluster.monitor.command("run");
  expectRefusal(monitor, { code: 7, says: new RegExp(`${cluster.monitor.process?.pid}`) });
}, 20_000);

test("create twice with the same flags: says so, ends with 0, changes nothing", async () => {
  for (const service of [single, cluster.monitor]) {
    const postmaster = service.postmaster();
    const again = await service.tryCreate();
    expect(again.code, again.stderr).toBe(0);
    expect(service.postmaster()).toBe(postmaster);
  }
  expect(await nodeCount()).toBe(1);
}, 20_000);

test("create twice with another port: says so, changes nothing", async () => {
  const config = join(
    cluster.env["XDG_DATA_HOME"] ?? "",
    "pg_auto_failover",
    single.pgdata,
    "keeper.json",
  );
  const before = readFileSync(config, "utf8");
  const other = String(freePort());
  const again = await single.tryCreate(["--pgport", other]);
  expect(again.stdout + again.stderr).toMatch(/port/);
  expectRefusal(again, { code: [2, 7], says: /./ });
  expect(readFileSync(config, "utf8")).toBe(before);
  await cluster.waitForStates({ single: "single" }, 5000);
}, 20_000);

test("stop of a stopped one ends with 0; status of one says that it doesn't run", async () => {
  const node = cluster.addNode("stopped");
  const created = await node.tryCreate();
  expect(created.code, created.stderr).toBe(0);
  try {
    const status = await node.command("status");
    expect(status.code).not.toBe(0);
    for (let time = 0; time < 2; time += 1) {
      const stopped = await node.command("stop");
      expect(stopped.code, stopped.stderr).toBe(0);
    }
    expect(node.postmaster()).toBeUndefined();
  } finally {
    const dropped = await node.command("drop", ["--destroy", "--force"]);
    expect(dropped.code, dropped.stderr).toBe(0);
    cluster.nodes.splice(cluster.nodes.indexOf(node), 1);
  }
  expectNothingLeft(node.pgdata);
  await cluster.waitForStates({ single: "single" }, 10_000);
}, 60_000);

/**
 * Runs keeper.ts not as root but as the servers' owner. That user may be unable to read this
 * clone, so it gets the program as one file, with a Bun of its own.
 */
async function asOwner(args: readonly string[]): Promise<Outcome> {
  const directory = cluster.directory("program");
  const bun = join(directory, "bun");
  copyFileSync(process.execPath, bun);
  chmodSync(bun, 0o755);
  const built = await Bun.build({
    entrypoints: [join(REPOSITORY, "roles", "keeper.ts")],
    target: "bun",
    outdir: directory,
  });
  expect(built.success).toBe(true);
  const { uid, gid } = cluster.owner;
  const switched = ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--init-groups"];
  return await runCommand(
    [...switched, bun, "--no-env-file", join(directory, "keeper.js"), ...args],
    {
      env: cluster.env,
    },
  );
}
