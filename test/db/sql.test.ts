/** lib/sys/sql.ts against a real server, which this file makes and destroys. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { monotonicMs } from "../../lib/sys/clock.ts";
import { waitUntil } from "../../lib/sys/retry.ts";
import { type Db, openDb, queryOnce, type Ssl, sqlState, type Target } from "../../lib/sys/sql.ts";
import { giveTo, isRoot, serverOwner } from "../helpers/owner.ts";
import { freePort } from "../helpers/ports.ts";
import { childrenOf, killUnder, signal } from "../helpers/processes.ts";

const owner = serverOwner();
const port = freePort();
let folder: string;
let bindir: string;
let postmaster: Bun.Subprocess | undefined;

/** As the user that owns the servers; a folder that only root can enter is not theirs to stand in. */
const asOwner = () => ({ cwd: "/", ...(isRoot ? { uid: owner.uid, gid: owner.gid } : {}) });

const target = (more: Partial<Target> = {}): Target => ({
  host: "localhost",
  port,
  user: owner.name,
  database: "postgres",
  applicationName: "sql_test",
  connectTimeoutMs: 2000,
  ...more,
});

async function startServer(): Promise<void> {
  const data = join(folder, "data");
  const log = Bun.file(join(folder, "log"));
  postmaster = Bun.spawn([join(bindir, "postgres"), "-D", data], {
    stdin: "ignore",
    stdout: log,
    stderr: log,
    ...asOwner(),
  });
  await waitUntil(() => queryOnce(target(), "select 1").catch(() => undefined), {
    timeoutMs: 20_000,
    everyMs: 10,
    what: "the server",
  });
}

async function killServer(): Promise<void> {
  postmaster?.kill("SIGKILL");
  await postmaster?.exited;
}

/** While one process of the killed server lives, a new one refuses to start. */
async function killLeftovers(): Promise<void> {
  await waitUntil(() => (killUnder(folder).length === 0 ? true : undefined), {
    timeoutMs: 10_000,
    everyMs: 5,
    what: "the end of every process of the server",
  });
}

beforeAll(async () => {
  ({ bindir } = await findBinaries({}));
  folder = mkdtempSync(join(tmpdir(), "sql-"));
  chmodSync(folder, 0o755);
  giveTo(owner, folder);
  const data = join(folder, "data");
  const initdb = Bun.spawnSync(
    [
      join(bindir, "initdb"),
      "-D",
      data,
      "-U",
      owner.name,
      "-A",
      "trust",
      "-E",
      "UTF8",
      "--no-sync",
    ],
    asOwner(),
  );
  if (initdb.exitCode !== 0) throw new Error(initdb.stderr.toString());
  makeCertificates(data);
  const settings = [
    `port = ${port}`,
    "listen_addresses = 'localhost'",
    `unix_socket_directories = '${folder}'`,
    "fsync = off",
    "ssl = on",
    "password_encryption = 'scram-sha-256'",
  ];
  writeFileSync(join(data, "postgresql.conf"), `${settings.join("\n")}\n`, { flag: "a" });
  const hba = [
    "local all all trust",
    "host all with_password all scram-sha-256",
    "hostssl all with_certificate all cert",
    "host all all all trust",
  ];
  writeFileSync(join(data, "pg_hba.conf"), `${hba.join("\n")}\n`);
  await startServer();
}, 60_000);

afterAll(async () => {
  await killServer();
  await killLeftovers();
  rmSync(folder, { recursive: true });
});

let ca: string;
let client: { cert: string; key: string };

/** An authority, the server's certificate for "localhost" only, and one for the user with_certificate. */
function makeCertificates(data: string): void {
  const tls = join(folder, "tls");
  mkdirSync(tls);
  const openssl = (...args: string[]) => {
    const { exitCode, stderr } = Bun.spawnSync(["openssl", ...args], { cwd: tls });
    if (exitCode !== 0) throw new Error(stderr.toString());
  };
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl(
    "req",
    "-x509",
    ...key,
    "-keyout",
    "ca.key",
    "-out",
    "ca.crt",
    "-subj",
    "/CN=ca",
    "-days",
    "2",
  );
  writeFileSync(join(tls, "names"), "subjectAltName=DNS:localhost\n");
  for (const name of ["localhost", "with_certificate"]) {
    openssl("req", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    openssl(
      ...[
        "x509",
        "-req",
        "-in",
        `${name}.csr`,
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
      ],
      ...["-out", `${name}.crt`, "-days", "2"],
      ...(name === "localhost" ? ["-extfile", "names"] : []),
    );
  }
  const read = (name: string) => readFileSync(join(tls, name), "utf8");
  ca = read("ca.crt");
  client = { cert: read("with_certificate.crt"), key: read("with_certificate.key") };
  for (const [name, as] of [
    ["localhost.crt", "server.crt"],
    ["localhost.key", "server.key"],
    ["ca.crt", "root.crt"],
  ]) {
    const path = join(data, as ?? "");
    writeFileSync(path, read(name ?? ""), { mode: 0o600 });
    if (isRoot) chownSync(path, owner.uid, owner.gid);
  }
  writeFileSync(join(data, "postgresql.conf"), "ssl_ca_file = 'root.crt'\n", { flag: "a" });
}

/** How a call failed. */
async function failure(
  call: Promise<unknown>,
): Promise<{ kind: string; code: string | undefined }> {
  try {
    await call;
  } catch (error) {
    return { kind: (error as { kind: string }).kind, code: sqlState(error) };
  }
  throw new Error("it did not fail");
}

const until = <T>(what: string, probe: () => T | undefined, timeoutMs = 5000) =>
  waitUntil(probe, { what, timeoutMs, everyMs: 1 });

const pidOf = async (db: Db) =>
  (await db.query<{ pid: number }>("select pg_backend_pid() as pid"))[0]?.pid ?? 0;

describe("query", () => {
  test("parameters arrive as what the statement takes them for", async () => {
    await using db = openDb(target());
    const params = [
      9007199254740993n,
      "2024-01-02 03:04:05.123456+00",
      true,
      null,
      undefined,
      ["a b", 'c"d\\', null, "{}"],
      [
        [1, 2],
        [3, 4],
      ],
      { a: [1], b: "'" },
      Buffer.from([0, 255]),
      new Date(0),
      1.5,
      "t",
    ];
    const [row] = await db.query(
      `select $1::int8 a, $2::timestamptz::text like '%05.123456%' b, $3::bool c, $4::text d, $5::int e, $6::text[] f,
         ($7::int[])[2][1] g, $8::jsonb h, $9::bytea i, $10::timestamptz j, $11::numeric k, $12::bool l`,
      params,
    );
    expect(row).toEqual({
      a: "9007199254740993",
      b: true,
      c: true,
      d: null,
      e: null,
      f: '{"a b","c\\"d\\\\",NULL,"{}"}',
      g: 3,
      h: { a: [1], b: "'" },
      i: Buffer.from([0, 255]),
      j: new Date(0),
      k: "1.5",
      l: true,
    });
  });

  test("results: what is parsed and what stays text", async () => {
    await using db = openDb(target());
    const rows = await db.query(
      "select 1::int8 a, 2::int4 b, '0/5000000'::pg_lsn c, 'x'::name d, 1.5::float8 e, 'infinity'::timestamptz f, '[1]'::json g",
    );
    expect(rows).toEqual([{ a: "1", b: 2, c: "0/5000000", d: "x", e: 1.5, f: "infinity", g: [1] }]);
    expect(await db.query("select where false")).toEqual([]);
  });

  test("a statement that fails says why, and leaves the connection", async () => {
    await using db = openDb(target());
    const pid = await pidOf(db);
    await expect(db.query("select 1/$1::int", [0])).rejects.toMatchObject({
      kind: "postgres",
      message: "division by zero",
      detail: { code: "22012", host: "localhost", port },
    });
    expect(await failure(db.query("select 1; select 2"))).toEqual({
      kind: "postgres",
      code: "42601",
    });
    expect(await failure(db.query("select $1::int", ["x"]))).toEqual({
      kind: "postgres",
      code: "22P02",
    });
    expect(await pidOf(db)).toBe(pid);
  });

  test("over TCP and the Unix socket, with startup parameters and a name", async () => {
    const ask =
      "select current_setting('application_name') n, current_setting('statement_timeout') t";
    for (const host of ["localhost", "127.0.0.1", folder]) {
      const settings = { statement_timeout: "7s" };
      expect(await queryOnce(target({ host, settings }), ask)).toEqual([
        { n: "sql_test", t: "7s" },
      ]);
    }
  });

  test("script: several statements are one transaction", async () => {
    await using db = openDb(target());
    await db.script("create table s (i int); insert into s values (1); -- a comment\n;");
    expect(await failure(db.script("insert into s values (2); select 1/0"))).toMatchObject({
      code: "22012",
    });
    expect(await db.query("select i from s")).toEqual([{ i: 1 }]);
    await db.script("");
    await db.script("drop table s");
  });

  test("calls run one after the other, each in its turn", async () => {
    await using db = openDb(target());
    const pids = await Promise.all([pidOf(db), pidOf(db), pidOf(db)]);
    expect(new Set(pids).size).toBe(1);
  });

  test("queryOnce leaves no connection behind", async () => {
    await queryOnce(target({ applicationName: "once" }), "select 1");
    await using db = openDb(target());
    const others = "select pid from pg_stat_activity where application_name = 'once'";
    await waitUntil(async () => ((await db.query(others)).length === 0 ? true : undefined), {
      what: "the end of its session",
      timeoutMs: 2000,
      everyMs: 2,
    });
  });
});

describe("who may in", () => {
  beforeAll(async () => {
    await using db = openDb(target());
    await db.script(
      "create role with_password login password 's3cr:et'; create role with_certificate login",
    );
  });
  const ask = "select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()";

  test("a password: given, or from the password file, or wrong", async () => {
    const pgpass = join(folder, "pgpass");
    writeFileSync(pgpass, `localhost:${port}:*:with_password:s3cr\\:et\n`, { mode: 0o600 });
    const user = "with_password";
    expect(await queryOnce(target({ user, password: "s3cr:et" }), "select 1 a")).toEqual([
      { a: 1 },
    ]);
    for (const password of ["wrong", ""]) {
      const refused = await failure(queryOnce(target({ user, password }), "select 1"));
      expect(refused).toEqual({ kind: "postgres", code: "28P01" });
    }
    process.env["PGPASSFILE"] = pgpass;
    try {
      expect(await queryOnce(target({ user }), "select 1 a")).toEqual([{ a: 1 }]);
    } finally {
      delete process.env["PGPASSFILE"];
    }
  });

  test("encryption: what each mode verifies", async () => {
    const over = async (ssl: Ssl, more: Partial<Target> = {}) => {
      try {
        return (await queryOnce<{ ssl: boolean }>(target({ ssl, ...more }), ask))[0]?.ssl;
      } catch (error) {
        return sqlState(error);
      }
    };
    const host = "127.0.0.1";
    expect(await over({ mode: "disable" })).toBe(false);
    expect(await over({ mode: "prefer" })).toBe(true);
    expect(await over({ mode: "require" })).toBe(true);
    expect(await over({ mode: "require", ca: "ignored" }, { host })).toBe(true);
    expect(await over({ mode: "verify-full", ca })).toBe(true);
    expect(await over({ mode: "verify-ca", ca }, { host })).toBe(true);
    expect(await over({ mode: "verify-full", ca }, { host })).toBe("ERR_TLS_CERT_ALTNAME_INVALID");
    // Without its authority the certificate is nobody's.
    expect(String(await over({ mode: "verify-ca" }))).toMatch(/CERT|SIGNATURE/);
    expect(String(await over({ mode: "verify-full" }))).toMatch(/CERT|SIGNATURE/);
    // A Unix socket has no encryption and needs none.
    expect(await over({ mode: "require" }, { host: folder })).toBe(false);
  });

  test("a client's certificate", async () => {
    const user = "with_certificate";
    const ssl = { mode: "verify-full", ca, ...client } as const;
    expect(await queryOnce(target({ user, ssl }), ask)).toEqual([
      { ssl: true, client_dn: "/CN=with_certificate" },
    ]);
    const without = failure(queryOnce(target({ user, ssl: { mode: "require" } }), ask));
    expect(await without).toMatchObject({ kind: "postgres", code: "28000" });
  });
});

describe("transaction", () => {
  const count = async (db: Db) =>
    (await db.query<{ n: number }>("select count(*)::int n from t"))[0]?.n;
  let db: Db;
  beforeAll(async () => {
    db = openDb(target());
    await db.script("create table t (i int primary key)");
  });
  afterAll(() => db.close());

  test("commits, and yields what its body yields", async () => {
    const result = await db.transaction(async (query) => {
      await query("insert into t values ($1)", [1]);
      return (await query<{ n: number }>("select count(*)::int n from t"))[0]?.n;
    });
    expect([result, await count(db)]).toEqual([1, 1]);
  });

  test("rolls back when its body throws, and passes that on", async () => {
    class Mine extends Error {}
    const failed = db.transaction(async (query) => {
      await query("insert into t values (2)");
      throw new Mine();
    });
    await expect(failed).rejects.toBeInstanceOf(Mine);
    const broken = db.transaction(async (query) => {
      await query("insert into t values (2)");
      await query("insert into t values (1)");
    });
    expect(await failure(broken)).toEqual({ kind: "postgres", code: "23505" });
    expect(await count(db)).toBe(1);
  });

  test("a failed statement that the body swallowed is not committed in silence", async () => {
    const swallowed = db.transaction(async (query) => {
      await query("insert into t values (3)");
      await query("insert into t values (1)").catch(() => {});
    });
    expect(await failure(swallowed)).toEqual({ kind: "postgres", code: "25P02" });
    expect(await count(db)).toBe(1);
  });

  test("other calls wait until it is over; a query after it is a bug", async () => {
    let late: typeof db.query | undefined;
    const order: string[] = [];
    const inside = db.transaction(async (query) => {
      late = query;
      await query("select pg_sleep(0.03)");
      order.push("transaction");
    });
    await Promise.all([inside, db.query("select 1").then(() => order.push("query"))]);
    expect(order).toEqual(["transaction", "query"]);
    await expect(late?.("select 1")).rejects.toMatchObject({ kind: "internal" });
  });

  test("its deadline bounds the whole, whatever the body does, and nothing of it stays", async () => {
    const startMs = monotonicMs();
    const slow = db.transaction(
      async (query) => {
        await query("insert into t values (4)");
        await new Promise(() => {});
      },
      { timeoutMs: 60 },
    );
    expect(await failure(slow)).toEqual({ kind: "timeout", code: "DEADLINE" });
    const hanging = db.transaction((query) => query("select pg_sleep(20)"), { timeoutMs: 60 });
    expect(await failure(hanging)).toEqual({ kind: "timeout", code: "DEADLINE" });
    const inner = db.transaction((query) => query("select pg_sleep(20)", [], { timeoutMs: 60 }));
    expect(await failure(inner)).toEqual({ kind: "timeout", code: "DEADLINE" });
    expect(monotonicMs() - startMs).toBeLessThan(1000);
    await db.script(
      "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and application_name = 'sql_test'",
    );
    expect(await count(db)).toBe(1);
  });

  test("a session that is ended in the middle: one error, then a new connection", async () => {
    await using other = openDb(target());
    for (const where of ["idle", "active"]) {
      const cut = db.transaction(async (query) => {
        const [row] = await query<{ pid: number }>("select pg_backend_pid() pid");
        const end = other.query("select pg_terminate_backend($1)", [row?.pid]);
        if (where === "idle") {
          await end;
          await query("select 1");
        } else await query("select pg_sleep(20)");
      });
      expect(await failure(cut)).toMatchObject({ kind: "postgres" });
      expect(await count(db)).toBe(1);
    }
  });
});

describe("losing the server", () => {
  test("onClose: a session that is ended is told within milliseconds, idle or not; our own close isn't", async () => {
    await using other = openDb(target());
    let lost = 0;
    const db = openDb(target(), { onClose: () => lost++ });
    const pid = await pidOf(db);
    await other.query("select pg_terminate_backend($1)", [pid]);
    await until("the notice", () => (lost === 1 ? true : undefined));
    const next = await pidOf(db);
    expect(next).not.toBe(pid);
    const running = failure(db.query("select pg_sleep(20)", [], { timeoutMs: 20_000 }));
    await other.query("select pg_terminate_backend($1)", [next]);
    expect((await running).code).toBeOneOf(["57P01", "CONNECTION_CLOSED", "ECONNRESET"]);
    await until("the notice", () => (lost === 2 ? true : undefined));
    await pidOf(db);
    await db.close();
    await other.query("select 1");
    expect(lost).toBe(2);
  });

  test("kill -9 of the postmaster: the notice, an error at once, and back when it is back", async () => {
    let toldMs = 0;
    let killedMs = 0;
    const tellTime = () => {
      toldMs = monotonicMs() - killedMs;
    };
    await using idle = openDb(target({ host: folder }), { onClose: tellTime });
    await using busy = openDb(target());
    await idle.query("select 1");
    await busy.query("select 1");
    const heard: string[] = [];
    let listens = 0;
    await busy.listen(
      "news",
      (payload) => heard.push(payload),
      () => listens++,
    );
    await until("the subscription", () => listens || undefined);
    const running = failure(busy.query("select pg_sleep(20)", [], { timeoutMs: 20_000 }));

    killedMs = monotonicMs();
    await killServer();
    await until("the notice", () => toldMs || undefined);
    expect(toldMs).toBeLessThan(300);
    // This session's backend finds out when it wakes up.
    await killLeftovers();
    expect((await running).code).toBeOneOf(["57P01", "CONNECTION_CLOSED", "ECONNRESET"]);
    const startMs = monotonicMs();
    expect(await failure(busy.query("select 1"))).toEqual({
      kind: "postgres",
      code: "ECONNREFUSED",
    });
    expect((await failure(idle.query("select 1"))).code).toBeOneOf(["ECONNREFUSED", "ENOENT"]);
    expect(monotonicMs() - startMs).toBeLessThan(200);

    await startServer();
    await until("the new subscription", () => (listens === 2 ? true : undefined));
    await busy.query("select pg_notify('news', 'back')");
    await until("the news", () => heard[0]);
    expect(heard).toEqual(["back"]);
    expect(await idle.query("select 1 a")).toEqual([{ a: 1 }]);
  });
});

describe("listen", () => {
  test("several channels and listeners, names and payloads as they are", async () => {
    await using db = openDb(target());
    const heard: string[] = [];
    const listening = (name: string) => () => heard.push(`listening to ${name}`);
    await db.listen('Odd "name"', (payload) => heard.push(`a ${payload}`), listening("a"));
    await db.listen("plain", (payload) => heard.push(`b ${payload}`), listening("b"));
    await db.listen("plain", (payload) => heard.push(`c ${payload}`), listening("c"));
    await db.query("select pg_notify($1, $2)", ['Odd "name"', "x\ny"]);
    await db.query("select pg_notify('plain', '')");
    await until("all of it", () => (heard.length === 6 ? true : undefined));
    expect(heard).toEqual([
      "listening to a",
      "listening to b",
      "listening to c",
      "a x\ny",
      "b ",
      "c ",
    ]);
  });

  test("a session that is ended is made again, and says so", async () => {
    await using db = openDb(target({ applicationName: "listener" }));
    let listens = 0;
    const heard: string[] = [];
    await db.listen(
      "c",
      (payload) => heard.push(payload),
      () => listens++,
    );
    await db.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'listener' and pid <> pg_backend_pid()",
    );
    await until("the new subscription", () => (listens === 2 ? true : undefined));
    await db.query("select pg_notify('c', 'again')");
    await until("the news", () => heard[0]);
  });

  test("hear: on the connection of the calls, and on the next one when that was lost", async () => {
    await using db = openDb(target({ applicationName: "hearer" }));
    await using other = openDb(target());
    const heard: string[] = [];
    await db.hear("c", (payload) => heard.push(payload));
    const sessions = () =>
      other.query<{ pid: number }>(
        "select pid from pg_stat_activity where application_name = 'hearer'",
      );
    expect(await sessions()).toEqual([]);
    await db.query("select 1");
    await other.query("select pg_notify('c', 'first')");
    await until("the first news", () => (heard.length === 2 ? true : undefined));
    expect(await sessions()).toHaveLength(1);
    await other.query("select pg_terminate_backend($1)", [(await sessions())[0]?.pid]);
    await until("a new connection", () => db.query("select 1").catch(() => undefined));
    await other.query("select pg_notify('c', 'second')");
    await until("the second news", () => (heard.length === 4 ? true : undefined));
    expect(heard).toEqual(["", "first", "", "second"]);
  });

  test("the first attempt fails: it rejects, and goes on trying", async () => {
    const late = freePort();
    await using db = openDb(target({ port: late }));
    let listens = 0;
    expect(
      await failure(
        db.listen(
          "c",
          () => {},
          () => listens++,
        ),
      ),
    ).toMatchObject({ code: "ECONNREFUSED" });
    const forward = createServer((from) => {
      const to = connect(port, "localhost");
      from.on("error", () => to.destroy()).pipe(to);
      to.on("error", () => from.destroy()).pipe(from);
    }).listen(late, "localhost");
    try {
      await until("the subscription", () => listens || undefined);
    } finally {
      forward.close();
    }
  });

  test("a backend that hangs is found out within ten seconds", async () => {
    await using db = openDb(target({ applicationName: "hanging" }));
    let listens = 0;
    await db.listen(
      "c",
      () => {},
      () => listens++,
    );
    const [row] = await db.query<{ pid: number }>(
      "select pid from pg_stat_activity where application_name = 'hanging' and pid <> pg_backend_pid()",
    );
    const pid = row?.pid ?? 0;
    expect(childrenOf(postmaster?.pid ?? 0)).toContain(pid);
    signal(pid, "SIGSTOP");
    try {
      await until("the new subscription", () => (listens === 2 ? true : undefined), 10_000);
    } finally {
      signal(pid, "SIGCONT");
    }
  }, 15_000);
});
