import { expect } from "bun:test";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeHbaBlock } from "../../lib/pg/hba.ts";
import {
  checkpoint,
  createSlot,
  dropSlot,
  ensureRoles,
  flushSomeWal,
  localTarget,
  observe,
  promote,
  reload,
  reloadTaken,
  replayedAll,
  walsendersTaken,
} from "../../lib/pg/local.ts";
import { livePostmaster, stopServer } from "../../lib/pg/server.ts";
import {
  clearStandbySettings,
  writeManagedSettings,
  writeStandbySettings,
} from "../../lib/pg/settings.ts";
import type { Db } from "../../lib/sys/sql.ts";
import { openDb, queryOnce } from "../../lib/sys/sql.ts";
import { waitFor } from "../helpers/wait.ts";
import type { Node } from "./pg_story.ts";
import { BOUNDS, failure, measured, median, story } from "./pg_story.ts";

const here = import.meta.path;

async function processOf(db: Db, backend: string): Promise<number> {
  const [row] = await db.query<{ pid: number }>(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = $1",
    [backend],
  );
  return row?.pid ?? 0;
}

/** Waits until a standby has replayed all that its source has written. */
async function caughtUp(from: Db, to: Db): Promise<bigint> {
  const end = (await observe(from)).lsn;
  await waitFor("the standby", 10_000, async () => ((await observe(to)).replayLsn ?? 0n) >= end);
  return end;
}

function follow(node: Node, source: Node | undefined): void {
  writeStandbySettings(node.pgdata, {
    primaryConninfo: source?.conninfo(node.name) ?? "",
    primarySlotName: "",
  });
}

story(
  here,
  "observe sees a primary, a standby, a disconnected one, and a new primary",
  async (world) => {
    const a = await world.primary("a", ["spare"]);
    const dbA = a.open();
    const alone = await observe(dbA);
    expect(alone).toMatchObject({
      ...{ inRecovery: false, timeline: 1, replayLsn: undefined, receiver: undefined },
      ...{ syncNames: "", readOnlyDefault: false, standbys: [] },
      slots: [{ name: "spare", active: false }],
    });
    expect(alone.slots[0]?.restartLsn).toBeGreaterThan(0n);
    expect(alone.systemIdentifier).toMatch(/^\d{19}$/);

    const b = await world.standby("b", a);
    const dbB = b.open();
    await dbA.script("CREATE TABLE t (i int)");
    const end = await caughtUp(dbA, dbB);
    const standby = await observe(dbB);
    expect(standby).toMatchObject({
      ...{ inRecovery: true, timeline: 1, standbys: [], systemIdentifier: alone.systemIdentifier },
      receiver: {
        ...{ status: "streaming", silentMs: expect.any(Number) },
        ...{ host: "127.0.0.1", port: a.port, timeline: 1 },
      },
    });
    expect(standby.lsn).toBeGreaterThanOrEqual(end);
    const primary = await waitFor("the standby's answer", 5000, async () => {
      const seen = await observe(dbA);
      return (seen.standbys[0]?.flushLsn ?? 0n) >= end ? seen : undefined;
    });
    expect(primary.standbys).toMatchObject([
      { applicationName: "b", state: "streaming", syncState: "async" },
    ]);
    expect(Date.parse(primary.standbys[0]?.replyTime ?? "")).toBeGreaterThan(0);

    await stopServer(a.pgdata, BOUNDS);
    const orphan = await waitFor("the walreceiver's end", 5000, async () => {
      const seen = await observe(dbB);
      return seen.receiver === undefined ? seen : undefined;
    });
    expect(orphan).toMatchObject({ inRecovery: true, timeline: 1, receiver: undefined });
    expect(orphan.lsn).toBeGreaterThanOrEqual(end);
    // Without a walreceiver since its start, the server doesn't know a received position at all.
    await stopServer(b.pgdata, BOUNDS);
    await b.start();
    const restarted = await observe(b.open());
    expect(restarted).toMatchObject({ inRecovery: true, timeline: 1, lsn: orphan.lsn });

    // A segment that a rewind has left behind, of a timeline that's gone, is no trace of one.
    const wal = join(b.pgdata, "pg_wal");
    const segments = readdirSync(wal).filter((name) => /^00000001[0-9A-F]{16}$/.test(name));
    const strays = segments.map((name) => join(wal, name.replace("00000001", "00000009")));
    for (const stray of strays) writeFileSync(stray, "");
    expect(await observe(b.open())).toMatchObject({ timeline: 1 });
    for (const stray of strays) rmSync(stray);

    await promote(b.open(), { timeoutMs: 10_000 });
    const promoted = await observe(b.open());
    expect(promoted).toMatchObject({ inRecovery: false, timeline: 2, replayLsn: undefined });
    expect(promoted.lsn).toBeGreaterThan(orphan.lsn);
  },
);

story(here, "observe while it's being promoted, again and again", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const target = livePostmaster(b.pgdata);
  if (!target) {
    throw new Error("the standby doesn't run");
  }
  const login = { user: process.env["USER"] ?? "", database: "postgres", applicationName: "watch" };
  await using watcher = openDb(localTarget(target, login));
  const promotion = promote(b.open(), { timeoutMs: 10_000 });
  const seen: string[] = [];
  for (let done = false; !done; ) {
    const { inRecovery, timeline, lsn } = await observe(watcher);
    expect(lsn).toBeGreaterThan(0n);
    seen.push(`${inRecovery} ${timeline}`);
    done = !inRecovery;
  }
  await promotion;
  // PostgreSQL makes the new timeline's first segment a moment before it leaves recovery
  const stages = new Set(seen);
  stages.delete("true 2");
  expect([...stages]).toEqual(["true 1", "false 2"]);
});

story(here, "observe is cheap", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  for (const db of [a.open(), b.open()]) {
    const times: number[] = [];
    for (let round = 0; round < 200; round++) {
      const begin = performance.now();
      await observe(db);
      times.push(performance.now() - begin);
    }
    expect(median("observe", times)).toBeLessThan(50);
  }
});

story(here, "a standby that lost its source still knows the timeline it was on", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const c = await world.standby("c", a);
  const [dbB, dbC] = [b.open(), c.open()];
  await stopServer(a.pgdata, BOUNDS);
  await promote(dbB, { timeoutMs: 10_000 });
  follow(c, b);
  await reload(dbC);
  await dbB.script("CREATE TABLE t (i int)");
  await caughtUp(dbB, dbC);
  expect((await observe(dbC)).timeline).toBe(2);
  // No restartpoint has told pg_control of the new timeline yet, and now there is no walreceiver.
  await stopServer(b.pgdata, { ...BOUNDS, fastMs: 0, immediateMs: 2000 });
  await waitFor("the walreceiver's end", 5000, async () => !(await observe(dbC)).receiver);
  expect((await observe(dbC)).timeline).toBe(2);
});

story(
  here,
  "an idle standby replies to flushed WAL at once, and nobody waits for it",
  async (world) => {
    const a = await world.primary("a");
    const dbA = a.open();
    await world.standby("b", a);
    const replyTime = async () =>
      (await observe(dbA)).standbys.find(({ applicationName }) => applicationName === "b")
        ?.replyTime;
    await waitFor("b to stream", 10_000, replyTime);
    // commits wait for somebody who isn't there
    await dbA.script("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    await reload(dbA);
    await dbA.query("SET default_transaction_read_only = on"); // as an operator may have it for his sessions
    for (let count = 0; count < 5; count += 1) {
      const before = await replyTime();
      await flushSomeWal(dbA, 1000);
      // wal_receiver_status_interval is 10 s here
      await waitFor("a reply", 1000, async () => (await replyTime()) !== before, { everyMs: 2 });
    }
    await dbA.script("ALTER SYSTEM RESET synchronous_standby_names");
    await reload(dbA);
  },
);

story(here, "promote is quick, and happens once", async (world) => {
  const a = await world.primary("a");
  const times: number[] = [];
  for (const name of ["b", "c", "d"]) {
    const node = await world.standby(name, a);
    const db = node.open();
    await a.open().script(`CREATE TABLE ${name} AS SELECT generate_series(1, 1000) AS i`);
    const before = await caughtUp(a.open(), db);
    const [, tookMs] = await measured("promote", () => promote(db, { timeoutMs: 10_000 }));
    times.push(tookMs);
    await db.script(`INSERT INTO ${name} VALUES (0)`);
    const after = await observe(db);
    expect(after).toMatchObject({ inRecovery: false, timeline: 2 });
    expect(after.lsn).toBeGreaterThan(before);
    expect(existsSync(join(node.pgdata, "pg_wal/00000002.history"))).toBe(true);
    const again = await failure(promote(db, { timeoutMs: 1000 }));
    expect(again).toMatchObject({ kind: "state", detail: { timeline: 2 } });
    clearStandbySettings(node.pgdata);
    await stopServer(node.pgdata, BOUNDS);
    await node.start();
    expect(await observe(node.open())).toMatchObject({ inRecovery: false, timeline: 2 });
  }
  median("promote", times);
});

story(here, "a promotion that replays for too long is reported, and goes on", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const db = b.open();
  const startup = await processOf(db, "startup");
  process.kill(startup, "SIGSTOP");
  const error = await failure(promote(db, { timeoutMs: 200 }));
  process.kill(startup, "SIGCONT");
  expect(error.kind).toBe("timeout");
  await waitFor("the promotion", 5000, async () => !(await observe(db)).inRecovery);
});

story(here, "a reload is proven only by files without a mistake", async (world) => {
  const a = await world.primary("a");
  const db = a.open();
  const path = join(a.pgdata, "postgresql.conf");
  const good = readFileSync(path, "utf8");
  // a wrong value is passed over, and the rest taken up; of a file that can't be read nothing is
  writeFileSync(path, `${good}\nwork_mem = = 5MB\n`);
  expect(await failure(reload(db))).toMatchObject({ kind: "timeout" });
  writeFileSync(path, `${good}\nwork_mem = '5MB'\n`);
  await reload(db);
  expect(await db.query("show work_mem")).toEqual([{ work_mem: "5MB" }]);
});

story(here, "the checkpointer's reload is proven, and not while it's frozen", async (world) => {
  const a = await world.primary("a");
  const db = a.open();
  const checkpointer = await processOf(db, "checkpointer");
  const times: number[] = [];
  for (let round = 0; round < 20; round++) {
    const names = round % 2 === 0 ? "ANY 1 (nobody)" : "";
    writeManagedSettings(a.pgdata, { ...settingsOf(world.dir), synchronous_standby_names: names });
    const begin = performance.now();
    await reload(db);
    expect(await reloadTaken(db, "checkpointer", { timeoutMs: 5000 })).toBe(true);
    times.push(performance.now() - begin);
    expect((await observe(db)).syncNames).toBe(names);
  }
  median("reload + proof", times);

  process.kill(checkpointer, "SIGSTOP");
  try {
    await reload(db);
    expect(await reloadTaken(db, "checkpointer", { timeoutMs: 300 })).toBe(false);
  } finally {
    process.kill(checkpointer, "SIGCONT");
  }
  expect(await reloadTaken(db, "checkpointer", { timeoutMs: 2000 })).toBe(true);
});

story(
  here,
  "a set of synchronous standbys that is proven binds the next commit",
  async (world) => {
    const a = await world.primary("a");
    const db = a.open();
    await db.script("CREATE TABLE t (i int)");
    for (let round = 0; round < 15; round++) {
      const change = async (names: string): Promise<void> => {
        const settings = { ...settingsOf(world.dir), synchronous_standby_names: names };
        writeManagedSettings(a.pgdata, settings);
        await reload(db);
        expect(await reloadTaken(db, "checkpointer", { timeoutMs: 5000 })).toBe(true);
      };
      await change("ANY 1 (nobody)");
      const writer = a.open();
      const late = await failure(writer.query("INSERT INTO t VALUES (1)", [], { timeoutMs: 50 }));
      expect(late.kind).toBe("timeout");
      await change("");
      await a.open().query("INSERT INTO t VALUES (2)", [], { timeoutMs: 2000 });
    }
  },
  60_000,
);

story(here, "a busy checkpointer delays the proof until it has taken the reload", async (world) => {
  const a = await world.primary("a");
  const db = a.open();
  await db.script("CREATE TABLE t AS SELECT generate_series(1, 200000) AS i");
  const working = a.open().query("CHECKPOINT", [], { timeoutMs: 20_000 });
  await reload(db);
  expect(await reloadTaken(db, "checkpointer", { timeoutMs: 20_000 })).toBe(true);
  await working;
});

story(here, "a standby that follows nobody loses its walreceiver for good", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const [dbA, dbB] = [a.open(), b.open()];
  await dbA.script("CREATE TABLE t (i int)");
  const times: number[] = [];
  for (let round = 0; round < 10; round++) {
    await caughtUp(dbA, dbB);
    // It receives while it's told to stop.
    const writing = a
      .open()
      .query("INSERT INTO t SELECT generate_series(1, 100000)", [], { timeoutMs: 20_000 });
    follow(b, undefined);
    const begin = performance.now();
    await reload(dbB);
    expect(await reloadTaken(dbB, "startup", { timeoutMs: 5000 })).toBe(true);
    times.push(performance.now() - begin);
    const promised = await observe(dbB);
    expect(promised.receiver).toBeUndefined();
    const end = await replayedAll(dbB, { timeoutMs: 10_000 });
    expect(end).toBeLessThanOrEqual(promised.lsn);
    await writing;
    await dbA.query("SELECT pg_switch_wal()");
    // Longer than wal_retrieve_retry_interval: every attempt that is due is seen.
    await Bun.sleep(round === 0 ? 1500 : 450);
    const later = await observe(dbB);
    expect({ receiver: later.receiver, lsn: later.lsn, replayLsn: later.replayLsn }).toEqual({
      receiver: undefined,
      lsn: promised.lsn,
      replayLsn: end,
    });
    expect((await observe(dbA)).standbys).toEqual([]);
    follow(b, a);
    await reload(dbB);
  }
  median("fencing a standby", times);
});

story(here, "a frozen walsender goes by the old names, and is waited for", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const db = a.open();
  const taken = (patienceMs: number, timeoutMs: number) =>
    walsendersTaken(db, "b", { patienceMs, timeoutMs });
  await waitFor(
    "b to stream",
    5000,
    async () => (await observe(db)).standbys[0]?.state === "streaming",
  );
  await reload(db);
  expect(await taken(2000, 2000)).toBe(true);
  const walsender = await processOf(db, "walsender");
  process.kill(walsender, "SIGSTOP");
  try {
    await reload(db);
    expect(await taken(2000, 300)).toBe(false);
    // told to end, it has not: it may still release whoever waits for it
    expect(await taken(50, 300)).toBe(false);
  } finally {
    process.kill(walsender, "SIGCONT");
  }
  expect(await taken(50, 5000)).toBe(true);
  await caughtUp(db, b.open());
  expect(await processOf(db, "walsender")).not.toBe(walsender);
  expect(await walsendersTaken(db, "nobody", { patienceMs: 0, timeoutMs: 0 })).toBe(true);
});

story(here, "a frozen startup process is no proof, nor is the one of a primary", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const db = b.open();
  const startup = await processOf(db, "startup");
  process.kill(startup, "SIGSTOP");
  try {
    follow(b, undefined);
    await reload(db);
    expect(await reloadTaken(db, "startup", { timeoutMs: 300 })).toBe(false);
    expect((await observe(db)).receiver).toBeDefined();
  } finally {
    process.kill(startup, "SIGCONT");
  }
  expect(await reloadTaken(db, "startup", { timeoutMs: 3000 })).toBe(true);
  expect((await observe(db)).receiver).toBeUndefined();
  expect(await reloadTaken(a.open(), "startup", { timeoutMs: 100 })).toBe(false);
});

story(here, "reload says so when the server can't", async (world) => {
  const a = await world.primary("a");
  const db = a.open();
  await db.query("SELECT 1");
  const pid = livePostmaster(a.pgdata)?.pid ?? 0;
  process.kill(pid, "SIGSTOP");
  const error = await failure(reload(db));
  process.kill(pid, "SIGCONT");
  expect(error.kind).toMatch(/^(timeout|postgres)$/);
});

story(here, "roles are made once, with passwords that no log shows", async (world) => {
  const a = await world.primary("a");
  writeManagedSettings(a.pgdata, { ...settingsOf(world.dir), log_statement: "all" });
  writeHbaBlock(a.pgdata, ["host all,replication all 127.0.0.1/32 scram-sha-256"]);
  const db = a.open();
  await reload(db);
  const passwords = { replicator: "correct horse", monitor: "battery'staple" };
  await ensureRoles(db, passwords);
  const stored = () => db.query("SELECT rolname, rolpassword FROM pg_authid ORDER BY rolname");
  const before = await stored();
  await ensureRoles(db, passwords);
  await ensureRoles(db);
  expect(await stored()).toEqual(before);
  const log = readFileSync(a.logFile, "utf8");
  expect(log).toContain("SCRAM-SHA-256$");
  expect(log).not.toMatch(/correct horse|battery/);

  const login = {
    host: "127.0.0.1",
    port: a.port,
    database: "postgres",
    connectTimeoutMs: 2000,
    applicationName: "story",
  };
  const replicator = { ...login, user: "pgautofailover_replicator" };
  const monitor = { ...login, user: "pgautofailover_monitor" };
  const [row] = await queryOnce<{ size: string }>(
    { ...replicator, password: "correct horse" },
    "SELECT length(pg_read_binary_file('PG_VERSION', 0, 2, false))::text AS size",
  );
  expect(row?.size).toBe("2");
  await queryOnce({ ...monitor, password: "battery'staple" }, "SELECT 1");
  const denied = queryOnce({ ...monitor, password: "battery'staple" }, "SELECT pg_ls_dir('.')");
  expect((await failure(denied)).detail["code"]).toBe("42501");
  const wrong = queryOnce({ ...monitor, password: "wrong" }, "SELECT 1");
  expect((await failure(wrong)).detail["code"]).toBe("28P01");
});

story(
  here,
  "roles are made on a primary that is read-only by default, or waits for a standby",
  async (world) => {
    const a = await world.primary("a");
    const db = a.open();
    await db.script("DROP OWNED BY pgautofailover_replicator; DROP ROLE pgautofailover_replicator");
    writeManagedSettings(a.pgdata, {
      ...settingsOf(world.dir),
      default_transaction_read_only: "on",
      synchronous_standby_names: "ANY 1 (nobody)",
    });
    await reload(db);
    const fresh = a.open();
    expect(await observe(fresh)).toMatchObject({
      readOnlyDefault: true,
      syncNames: "ANY 1 (nobody)",
    });
    await ensureRoles(fresh);
    await createSlot(fresh, "s");
    await checkpoint(fresh, 5000);
    const refused = await failure(fresh.query("CREATE TABLE t (i int)"));
    expect(refused.detail["code"]).toBe("25006");
  },
);

story(here, "slots come and go once", async (world) => {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  for (const db of [a.open(), b.open()]) {
    await Promise.all([createSlot(db, "one"), createSlot(db, "one")]);
    await createSlot(db, "one");
    const { slots } = await observe(db);
    expect(slots).toMatchObject([{ name: "one", active: false }]);
    expect(slots[0]?.restartLsn).toBeGreaterThan(0n);
    await dropSlot(db, "one");
    await dropSlot(db, "one");
    expect((await observe(db)).slots).toEqual([]);
  }
});

function settingsOf(dir: string): Record<string, string> {
  return { listen_addresses: "127.0.0.1", unix_socket_directories: dir, wal_log_hints: "on" };
}
