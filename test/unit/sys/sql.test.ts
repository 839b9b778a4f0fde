import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { monotonicMs } from "../../../lib/sys/clock.ts";
import { AppError } from "../../../lib/sys/errors.ts";
import { waitUntil } from "../../../lib/sys/retry.ts";
import {
  openDb,
  parseUri,
  passwordFor,
  queryOnce,
  quoteIdentifier,
  sqlState,
  type Target,
  withUriParams,
} from "../../../lib/sys/sql.ts";
import { currentUser } from "../../../lib/sys/user.ts";

/** Something that listens where PostgreSQL should, and does to each connection what a test wants. */
async function imitation(behave: (socket: Socket) => void) {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    behave(socket);
    // Who doesn't read never learns that the other side has hung up.
    socket.resume();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return {
    port,
    sockets,
    [Symbol.dispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

const target = (port: number, more: Partial<Target> = {}): Target => ({
  host: "127.0.0.1",
  port,
  user: "u",
  database: "d",
  password: "p",
  applicationName: "test",
  connectTimeoutMs: 100,
  ...more,
});

/** Waits until the server has that many connections. */
function sockets(server: { sockets: Set<Socket> }, count: number) {
  const options = { timeoutMs: 2000, everyMs: 1, what: `${count} connections` };
  return waitUntil(() => (server.sockets.size === count ? true : undefined), options);
}

/** How a call failed and how long that took. */
async function failure(call: Promise<unknown>) {
  const startMs = monotonicMs();
  try {
    await call;
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
    return { kind: error.kind, code: sqlState(error), tookMs: monotonicMs() - startMs };
  }
  throw new Error("it did not fail");
}

const silence = () => {};

/** A message of the protocol: type, length, body. */
function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

const refusal = (code: string) =>
  message("E", Buffer.from(`SFATAL\0VFATAL\0C${code}\0Mthe database system is starting up\0\0`));

const welcome = Buffer.concat([
  message("R", Buffer.alloc(4)),
  message("S", Buffer.from("server_version\x0015.0\0")),
  message("Z", Buffer.from("I")),
]);

describe("a connection that doesn't come up", () => {
  test("nobody listens", async () => {
    let port = 0;
    {
      using server = await imitation(silence);
      port = server.port;
    }
    expect(await failure(queryOnce(target(port), "select 1"))).toMatchObject({
      kind: "postgres",
      code: "ECONNREFUSED",
    });
    const missing = target(5432, { host: "/nowhere" });
    expect(await failure(queryOnce(missing, "select 1"))).toMatchObject({ code: "ENOENT" });
  });

  test("nobody has that name", async () => {
    const nobody = target(1, { host: "no.such.host.invalid", connectTimeoutMs: 5000 });
    const { kind, code } = await failure(queryOnce(nobody, "select 1", [], { timeoutMs: 5000 }));
    expect(kind).toBe("postgres");
    expect(["ENOTFOUND", "EAI_AGAIN", "DNS_ENOTFOUND", "DNS_ETIMEOUT"]).toContain(String(code));
  });

  test("the server takes the connection and says nothing", async () => {
    using server = await imitation(silence);
    const slow = await failure(queryOnce(target(server.port), "select 1"));
    expect(slow).toMatchObject({ kind: "postgres", code: "CONNECT_TIMEOUT" });
    expect(slow.tookMs).toBeWithin(95, 400);
    const patient = target(server.port, { connectTimeoutMs: 5000 });
    const late = await failure(queryOnce(patient, "select 1", [], { timeoutMs: 50 }));
    expect(late).toMatchObject({ kind: "timeout", code: "DEADLINE" });
    expect(late.tookMs).toBeWithin(45, 300);
  });

  test("the server hangs up, or resets, at once", async () => {
    for (const hangUp of [(s: Socket) => s.end(), (s: Socket) => s.resetAndDestroy()]) {
      using server = await imitation(hangUp);
      const { kind, code, tookMs } = await failure(queryOnce(target(server.port), "select 1"));
      expect(kind).toBe("postgres");
      expect(["CONNECTION_CLOSED", "ECONNRESET"]).toContain(String(code));
      expect(tookMs).toBeLessThan(90);
    }
  });

  test("the server refuses with a code of its own", async () => {
    using server = await imitation((socket) => socket.end(refusal("57P03")));
    await using db = openDb(target(server.port));
    for (let i = 0; i < 3; i++) {
      expect(await failure(db.query("select 1"))).toMatchObject({
        kind: "postgres",
        code: "57P03",
      });
    }
    await expect(db.query("select 1")).rejects.toMatchObject({
      message: "the database system is starting up",
      detail: { code: "57P03", host: "127.0.0.1", port: server.port },
    });
  });

  test("what speaks another protocol", async () => {
    using server = await imitation((socket) => socket.write("SSH-2.0-OpenSSH_9.2\r\n"));
    const { kind, code } = await failure(queryOnce(target(server.port), "select 1"));
    expect([kind, code]).toEqual(["postgres", "CONNECT_TIMEOUT"]);
  });

  test("no encryption on the other side: refused, unless it is only preferred", async () => {
    let first: Uint8Array | string = "";
    using server = await imitation((socket) => {
      socket.once("data", () => {
        socket.write("N");
        socket.once("data", (data) => {
          first = data;
          socket.end(refusal("28000"));
        });
      });
    });
    const ask = (mode: "require" | "verify-full" | "prefer") =>
      failure(queryOnce(target(server.port, { ssl: { mode } }), "select 1"));
    expect(await ask("require")).toMatchObject({ kind: "postgres", code: "NO_TLS" });
    expect(await ask("verify-full")).toMatchObject({ code: "NO_TLS" });
    expect(first.length).toBe(0);
    expect(await ask("prefer")).toMatchObject({ code: "28000" });
    expect(String(first)).toContain("user\0u\0");
  });

  test("encryption that fails, or never begins", async () => {
    using broken = await imitation((socket) =>
      socket.once("data", () => socket.write("Sgarbage garbage")),
    );
    const ssl = { mode: "require" } as const;
    const badly = await failure(queryOnce(target(broken.port, { ssl }), "select 1"));
    expect(badly).toMatchObject({ kind: "postgres", code: "TLS_FAILED" });
    expect(badly.tookMs).toBeLessThan(400);
    using mute = await imitation((socket) => socket.once("data", () => socket.write("S")));
    const slow = await failure(queryOnce(target(mute.port, { ssl }), "select 1"));
    expect(slow).toMatchObject({ kind: "postgres", code: "CONNECT_TIMEOUT" });
  });

  test("a certificate that isn't one is an error of the call", async () => {
    using server = await imitation((socket) => socket.once("data", () => socket.write("S")));
    const ssl = { mode: "verify-full", ca: "no PEM", cert: "no PEM", key: "no PEM" } as const;
    expect(await failure(queryOnce(target(server.port, { ssl }), "select 1"))).toMatchObject({
      kind: "postgres",
    });
  });
});

describe("a connection that came up", () => {
  test("a server that freezes: the deadline, then a new connection for the next call", async () => {
    let connections = 0;
    using server = await imitation((socket) => {
      connections++;
      socket.once("data", () => socket.write(welcome));
    });
    let closed = 0;
    await using db = openDb(target(server.port), { onClose: () => closed++ });
    for (const timeoutMs of [30, 40]) {
      const frozen = await failure(db.query("select 1", [], { timeoutMs }));
      expect(frozen).toMatchObject({ kind: "timeout", code: "DEADLINE" });
      expect(frozen.tookMs).toBeWithin(timeoutMs - 2, 300);
    }
    expect(connections).toBe(2);
    // Thrown away by this side: nothing was lost.
    expect(closed).toBe(0);
  });

  test("calls that wait behind a frozen one keep their own deadlines", async () => {
    using server = await imitation((socket) => socket.once("data", () => socket.write(welcome)));
    await using db = openDb(target(server.port));
    const [first, second, third] = await Promise.all([
      failure(db.query("select 1", [], { timeoutMs: 120 })),
      failure(db.query("select 2", [], { timeoutMs: 30 })),
      failure(db.query("select 3", [], { timeoutMs: 200 })),
    ]);
    expect(second.tookMs).toBeWithin(28, 100);
    expect(first.tookMs).toBeWithin(118, 190);
    expect(third.tookMs).toBeWithin(198, 400);
  });

  test("an abort, before, during and while waiting, rejects with its reason", async () => {
    using server = await imitation((socket) => socket.once("data", () => socket.write(welcome)));
    await using db = openDb(target(server.port));
    const stop = new AbortController();
    const options = { signal: stop.signal, timeoutMs: 5000 };
    const calls = [
      db.query("select 1", [], options),
      db.script("select 2", options),
      db.transaction(async () => 3, options),
    ];
    const outcomes = Promise.allSettled(calls);
    await Bun.sleep(20);
    stop.abort("enough");
    expect((await outcomes).map((o) => o.status === "rejected" && o.reason)).toEqual([
      "enough",
      "enough",
      "enough",
    ]);
    expect(await db.query("select 4", [], options).catch((reason) => reason)).toBe("enough");
  });

  test("close ends what is under way, and what comes later, at once", async () => {
    using server = await imitation((socket) => socket.once("data", () => socket.write(welcome)));
    const db = openDb(target(server.port));
    const running = failure(db.query("select 1", [], { timeoutMs: 5000 }));
    const waiting = failure(db.query("select 2", [], { timeoutMs: 5000 }));
    const listening = failure(db.listen("c", silence, silence));
    await Bun.sleep(20);
    const startMs = monotonicMs();
    await db.close();
    for (const failed of [running, waiting, listening, failure(db.query("select 3"))]) {
      expect(await failed).toMatchObject({ kind: "postgres", code: "CONNECTION_ENDED" });
    }
    await expect(db.listen("c", silence, silence)).rejects.toMatchObject({ kind: "postgres" });
    await db.close();
    expect(monotonicMs() - startMs).toBeLessThan(100);
  });

  test("close while it is still connecting leaves no connection", async () => {
    using server = await imitation(silence);
    const db = openDb(target(server.port, { connectTimeoutMs: 5000 }));
    const failed = failure(db.query("select 1"));
    await db.close();
    expect(await failed).toMatchObject({ code: "CONNECTION_ENDED" });
    const other = openDb(target(server.port, { connectTimeoutMs: 5000 }));
    const cut = failure(other.query("select 1"));
    await sockets(server, 1);
    await other.close();
    await cut;
    await sockets(server, 0);
  });

  test("after closing nothing keeps the process alive, frozen server or not", async () => {
    using server = await imitation((socket) => socket.once("data", () => socket.write(welcome)));
    const sql = join(import.meta.dir, "../../../lib/sys/sql.ts");
    const code = `
      const { openDb } = await import(${JSON.stringify(sql)});
      const db = openDb(${JSON.stringify(target(server.port))});
      db.listen("c", () => {}, () => {}).catch(() => {});
      await db.query("select 1", [], { timeoutMs: 50 }).catch(() => {});
      await db.close();
      console.log("closed");`;
    const child = Bun.spawn([process.execPath, "-e", code], { stdin: "ignore", stdout: "pipe" });
    expect(await child.stdout.text()).toBe("closed\n");
    const startMs = monotonicMs();
    expect(await child.exited).toBe(0);
    expect(monotonicMs() - startMs).toBeLessThan(1000);
  });
});

describe("parseUri", () => {
  const user = currentUser();
  test.each([
    [
      "postgres://autoctl_node@localhost:5444/pg_auto_failover",
      {
        host: "localhost",
        port: 5444,
        user: "autoctl_node",
        database: "pg_auto_failover",
        params: {},
      },
    ],
    ["postgresql://", { host: "localhost", port: 5432, user, database: user, params: {} }],
    ["postgres://u@h", { host: "h", port: 5432, user: "u", database: "u", params: {} }],
    [
      "postgres://u:p%40%3A@h/d?sslmode=require&x=%20",
      {
        host: "h",
        port: 5432,
        user: "u",
        password: "p@:",
        database: "d",
        params: { sslmode: "require", x: " " },
      },
    ],
    ["postgres://u:@h:1/", { host: "h", port: 1, user: "u", database: "u", params: {} }],
    ["postgres://[::1]:5/d", { host: "::1", port: 5, user, database: "d", params: {} }],
    [
      "postgres://u@%2Fvar%2Frun%2Fpostgresql:5433/d",
      { host: "/var/run/postgresql", port: 5433, user: "u", database: "d", params: {} },
    ],
    [
      "postgres:///d?host=/tmp&port=7&user=w&password=s",
      { host: "/tmp", port: 7, user: "w", password: "s", database: "d", params: {} },
    ],
    [" postgres://h/d ", { host: "h", port: 5432, user, database: "d", params: {} }],
  ])("%s", (uri, expected) => {
    expect(parseUri(uri)).toEqual(expected);
  });

  test.each([
    "",
    "http://h/d",
    "localhost:5432",
    "postgres:/h",
    "postgres://h:0/d",
    "postgres://h:65536/d",
    "postgres://h:1x/d",
    "postgres://h:5432,i:5432/d",
    "postgres://%zz/d",
    "postgres://h/d?sslmode",
    "postgres://u:p/ss@h/d",
    "postgres://h/d#x",
  ])("refuses %p without repeating it", (uri) => {
    try {
      parseUri(uri);
    } catch (error) {
      expect(error).toMatchObject({ kind: "usage", message: "bad connection string" });
      expect(JSON.stringify(error)).not.toContain("ss@h");
      return;
    }
    throw new Error("it was taken");
  });
});

test("withUriParams adds what isn't there, or sets it, and leaves the rest as it was written", () => {
  const uri = "postgres://u@h:1/d?sslmode=require&x=%20";
  expect(withUriParams(uri, { sslmode: "disable", passfile: "/a b" })).toBe(
    `${uri}&passfile=%2Fa%20b`,
  );
  expect(withUriParams(uri, { sslmode: undefined, y: "?" }, true)).toBe(
    "postgres://u@h:1/d?x=%20&y=%3F",
  );
  expect(withUriParams("postgres://u@h/d", {})).toBe("postgres://u@h/d");
  expect(withUriParams("postgres://u@h/d?a=1", { a: undefined }, true)).toBe("postgres://u@h/d");
  expect(() => withUriParams("http://h", {})).toThrow("bad connection string");
});

describe("passwordFor", () => {
  let folder: string;
  let path: string;
  const before = { ...process.env };
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "pgpass-"));
    path = join(folder, "pgpass");
    process.env["PGPASSFILE"] = path;
    delete process.env["PGPASSWORD"];
    const lines = [
      "# h:1:d:u:comment",
      "h:1:d:u",
      "h:1:d:u:first",
      "h:*:d:w:se\\:cr\\\\et:and more",
      "[other:1:d:u:odd",
      "localhost:*:*:u:local",
      "*:*:replication:*:repl",
    ];
    writeFileSync(path, `${lines.join("\r\n")}\n`, { mode: 0o600 });
  });
  afterAll(() => {
    for (const name of ["PGPASSFILE", "PGPASSWORD", "HOME"]) {
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
    }
    rmSync(folder, { recursive: true });
  });
  const ask = (host: string, port: number, database: string, user: string) =>
    passwordFor({ host, port, database, user });

  test("the first line that fits; * fits all, a backslash escapes", () => {
    expect(ask("h", 1, "d", "u")).toBe("first");
    expect(ask("h", 2, "d", "w")).toBe("se:cr\\et:and more");
    expect(ask("h", 2, "replication", "x")).toBe("repl");
    expect(ask("h", 2, "d", "u")).toBeUndefined();
  });

  test("a server's usual socket folder counts as localhost", () => {
    expect(ask("/var/run/postgresql", 5, "x", "u")).toBe("local");
    expect(ask("/home/u/sockets", 5, "x", "u")).toBeUndefined();
  });

  test("PGPASSWORD goes before the file", () => {
    process.env["PGPASSWORD"] = "from the environment";
    expect(ask("h", 1, "d", "u")).toBe("from the environment");
    delete process.env["PGPASSWORD"];
  });

  test("a file that others may read is not used, nor what isn't a file; without PGPASSFILE it is ~/.pgpass", () => {
    chmodSync(path, 0o640);
    expect(ask("h", 1, "d", "u")).toBeUndefined();
    chmodSync(path, 0o600);
    process.env["PGPASSFILE"] = folder;
    expect(ask("h", 1, "d", "u")).toBeUndefined();
    delete process.env["PGPASSFILE"];
    process.env["HOME"] = folder;
    expect(ask("h", 1, "d", "u")).toBeUndefined();
    writeFileSync(join(folder, ".pgpass"), "*:*:*:*:home\n", { mode: 0o600 });
    expect(ask("h", 1, "d", "u")).toBe("home");
  });
});

test("sqlState: of a connection's error only", () => {
  const code = new AppError("postgres", "x", { detail: { code: "57P03" } });
  const wrapped = new AppError("monitor", "y", { cause: code });
  expect([code, wrapped, new Error("z"), "ECONNREFUSED", undefined].map(sqlState)).toEqual([
    "57P03",
    "57P03",
    undefined,
    undefined,
    undefined,
  ]);
});

test("quoteIdentifier: what is in quotes stays there", () => {
  expect(quoteIdentifier('a"b.C')).toBe('"a""b.C"');
});
