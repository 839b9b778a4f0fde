import { expect } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { baseBackup, controlData, dataVersion, initdb, rewind } from "../../lib/pg/commands.ts";
import {
  checkpoint,
  createSlot,
  observe,
  promote,
  reload,
  reloadTaken,
} from "../../lib/pg/local.ts";
import { livePostmaster, stopServer } from "../../lib/pg/server.ts";
import { hasStandbySignal, writeStandbySettings } from "../../lib/pg/settings.ts";
import { AppError, errorText } from "../../lib/sys/errors.ts";
import type { Db } from "../../lib/sys/sql.ts";
import { currentUser } from "../../lib/sys/user.ts";
import { listProcesses } from "../helpers/processes.ts";
import { waitFor } from "../helpers/wait.ts";
import type { Node, World } from "./pg_story.ts";
import { BOUNDS, failure, measured, story } from "./pg_story.ts";

const here = import.meta.path;
const never = new AbortController().signal;

story(
  here,
  "findBinaries: the named one, the wanted version, or a reason",
  async ({ binaries }) => {
    const pgctl = join(binaries.bindir, "pg_ctl");
    expect(await findBinaries({ pgctl })).toEqual(binaries);
    expect(await findBinaries({ wantMajor: binaries.major })).toEqual(binaries);
    for (const wrong of [{ pgctl: "/bin/sh" }, { pgctl, wantMajor: 99 }, { wantMajor: 99 }]) {
      expect((await failure(findBinaries(wrong))).kind).toBe("postgres");
    }
  },
);

story(here, "initdb makes what a node needs", async ({ dir, binaries }) => {
  const pgdata = join(dir, "not/yet/there");
  await measured("initdb", () => initdb({ binaries, pgdata, timeoutMs: 30_000 }));
  expect(statSync(pgdata).mode & 0o777).toBe(0o700);
  expect(dataVersion(pgdata)).toBe(binaries.major);
  expect(await controlData(binaries, pgdata)).toMatchObject({
    state: "shut down",
    timeline: 1,
    checksums: true,
  });
  const hba = readFileSync(join(pgdata, "pg_hba.conf"), "utf8");
  expect(hba).toMatch(/^local\s+all\s+all\s+peer$/m);
  expect(hba).toMatch(/^host\s+all\s+all\s+127\.0\.0\.1\/32\s+scram-sha-256$/m);
  expect(readdirSync(join(dir, "not/yet"))).toEqual(["there"]);
  expect((await failure(controlData(binaries, dir))).kind).toBe("postgres");
  expect(dataVersion(dir)).toBeUndefined();
});

story(
  here,
  "initdb replaces an empty directory, and what an interrupted one left",
  async ({ dir, binaries, place, manage }) => {
    const node = place("a");
    mkdirSync(node.pgdata, { mode: 0o700 });
    mkdirSync(join(dir, "a.initdb/base"), { recursive: true });
    await initdb({ binaries, pgdata: node.pgdata, timeoutMs: 30_000 });
    manage(node);
    await node.start();
    expect(existsSync(join(dir, "a.initdb"))).toBe(false);
    const [row] = await node
      .open()
      .query<{ me: string; encoding: string }>(
        "SELECT session_user::text AS me, current_setting('server_encoding') AS encoding",
      );
    expect(row).toEqual({ me: currentUser(), encoding: "UTF8" });
    const error = await failure(initdb({ binaries, pgdata: node.pgdata, timeoutMs: 30_000 }));
    expect(error).toMatchObject({ kind: "config", message: "the data directory is not empty" });
  },
);

story(here, "initdb says what is wrong with a path", async ({ dir, binaries }) => {
  const at = (pgdata: string) => failure(initdb({ binaries, pgdata, timeoutMs: 30_000 }));
  writeFileSync(join(dir, "file"), "");
  expect((await at(join(dir, "file"))).kind).toBe("config");
  expect((await at(join(dir, "file/a"))).kind).toBe("config");
  mkdirSync(join(dir, "closed"), { mode: 0o500 });
  expect((await at(join(dir, "closed/a"))).kind).toBe("permission");
  expect((await at(join(dir, "closed/a/b"))).kind).toBe("permission");
});

story(here, "an initdb that is broken off leaves nothing", async ({ dir, binaries }) => {
  const controller = new AbortController();
  const pgdata = join(dir, "a");
  const work = initdb({ binaries, pgdata, timeoutMs: 30_000, signal: controller.signal });
  const broken = failure(work);
  await waitFor("its first files", 5000, () => existsSync(join(dir, "a.initdb/PG_VERSION")));
  controller.abort(new AppError("state", "no longer wanted"));
  expect((await broken).message).toBe("no longer wanted");
  expect(readdirSync(dir)).toEqual([]);
  await initdb({ binaries, pgdata, timeoutMs: 30_000 });
});

const processesOf = (program: string, word: string) =>
  listProcesses().filter(({ command }) => command.includes(program) && command.includes(word));

/** A copy that takes long enough to be caught in the middle. */
function slowCopy(world: World, source: Node, more: { signal?: AbortSignal; timeoutMs?: number }) {
  let seen = 0;
  const copy = baseBackup({
    binaries: world.binaries,
    target: join(world.dir, "copy"),
    conninfo: source.conninfo("copy"),
    slot: "copy",
    maxRate: "1024",
    timeoutMs: 10_000,
    signal: never,
    onProgress: (doneBytes) => {
      seen = doneBytes;
    },
    ...more,
  });
  return { copy, seen: () => seen };
}

story(here, "a base backup reports its progress and makes a standby", async (world) => {
  const source = await world.primary("a", ["b"]);
  const seen: [number, number][] = [];
  const target = join(world.dir, "b");
  const common = { binaries: world.binaries, target, timeoutMs: 10_000, signal: never };
  const onProgress = (done: number, total: number) => void seen.push([done, total]);
  await measured("base backup", () =>
    baseBackup({ ...common, conninfo: source.conninfo("b"), slot: "b", onProgress }),
  );
  const [done = 0, total = 0] = seen.at(-1) ?? [];
  expect(done).toBeGreaterThan(20_000_000);
  expect(total).toBeGreaterThanOrEqual(done);
  expect(dataVersion(target)).toBe(world.binaries.major);
  const again = baseBackup({ ...common, conninfo: source.conninfo("b"), onProgress });
  expect((await failure(again)).message).toBe("the data directory is not empty");
});

story(here, "a base backup that fails says why, and leaves nothing", async (world) => {
  const source = await world.primary("a");
  const target = join(world.dir, "b");
  const copyOf = (conninfo: string, slot?: string) =>
    failure(
      baseBackup({
        ...{ binaries: world.binaries, target, conninfo, slot },
        ...{ timeoutMs: 10_000, signal: never, onProgress: () => {} },
      }),
    );
  const noSlot = await copyOf(source.conninfo("b"), "nobody");
  expect(String(noSlot.detail["reason"])).toContain('replication slot "nobody" does not exist');
  expect(existsSync(target)).toBe(false);
  mkdirSync(target, { mode: 0o700 });
  const nobody = await copyOf(source.conninfo("b").replace(/port=\d+/, "port=1"));
  expect(nobody.kind).toBe("postgres");
  expect(String(nobody.detail["reason"])).toContain("Connection refused");
  expect(readdirSync(target)).toEqual([]);
});

story(here, "a base backup that is broken off ends with all its processes", async (world) => {
  const source = await world.primary("a", ["copy"]);
  const controller = new AbortController();
  const { copy, seen } = slowCopy(world, source, { signal: controller.signal });
  const broken = failure(copy);
  await waitFor(
    "the copy's first bytes",
    5000,
    () => seen() > 0 && existsSync(join(world.dir, "copy")),
  );
  expect(processesOf("pg_basebackup", join(world.dir, "copy")).length).toBeGreaterThan(0);
  controller.abort(new AppError("state", "another goal"));
  const [error] = await measured("end of a base backup", () => broken);
  expect(error.message).toBe("another goal");
  expect(processesOf("pg_basebackup", world.dir)).toEqual([]);
  expect(existsSync(join(world.dir, "copy"))).toBe(false);
  const db = source.open();
  await waitFor("the slot's release", 5000, async () =>
    (await observe(db)).slots.every(({ active }) => !active),
  );
});

story(here, "a base backup whose source freezes is given up", async (world) => {
  const source = await world.primary("a", ["copy"]);
  const { copy, seen } = slowCopy(world, source, { timeoutMs: 3000 });
  const stalled = failure(copy);
  await waitFor("the copy's first bytes", 5000, () => seen() > 0);
  const walsenders = () => processesOf("walsender", "postgres").map(({ pid }) => pid);
  const frozen = walsenders();
  for (const pid of frozen) {
    process.kill(pid, "SIGSTOP");
  }
  try {
    const error = await stalled;
    expect(error).toMatchObject({ kind: "timeout", detail: { timeout_ms: 3000 } });
    expect(existsSync(join(world.dir, "copy"))).toBe(false);
  } finally {
    for (const pid of frozen) {
      process.kill(pid, "SIGCONT");
    }
  }
});

/**
 * A primary and two standbys; the second one has WAL that the first hasn't.
 *
 * @param rows written before the first is cut off
 */
async function forked(world: World, rows = 1000) {
  const a = await world.primary("a");
  const b = await world.standby("b", a);
  const c = await world.standby("c", a);
  const [dbA, dbB, dbC] = [a.open(), b.open(), c.open()];
  const replayed = async (db: Db) => {
    const end = (await observe(dbA)).lsn;
    return async () => ((await observe(db)).replayLsn ?? 0n) >= end;
  };
  // as each node has one for each other: else WAL that a rewind goes back to may be gone
  await createSlot(dbB, "kept");
  await dbA.script(`CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, ${rows})`);
  await waitFor("the WAL on b", 5000, await replayed(dbB));
  writeStandbySettings(b.pgdata, { primaryConninfo: "", primarySlotName: "" });
  await reload(dbB);
  expect(await reloadTaken(dbB, "startup", { timeoutMs: 2000 })).toBe(true);
  const isCut = async () => (await observe(dbB)).receiver === undefined;
  await waitFor("b's walreceiver to end", 5000, isCut);
  await dbA.script("INSERT INTO t SELECT generate_series(1, 1000)");
  await waitFor("the WAL on c", 5000, await replayed(dbC));
  return { a, b, c, dbA, dbB, dbC };
}

async function rewoundFollows(world: World, target: Node, source: Node): Promise<void> {
  const seen: [number, number][] = [];
  await measured("rewind", () =>
    rewind({
      ...{ binaries: world.binaries, pgdata: target.pgdata, signal: never },
      source: source.conninfo(target.name),
      onProgress: (done, total) => seen.push([done, total]),
    }),
  );
  expect(seen.length).toBeGreaterThan(0);
  expect(hasStandbySignal(target.pgdata)).toBe(true);
  writeStandbySettings(target.pgdata, {
    primaryConninfo: source.conninfo(target.name),
    primarySlotName: "",
  });
  await measured("start after rewind", () => target.start());
  const [from, to] = [source.open(), target.open()];
  await from.script("INSERT INTO t VALUES (-1)");
  const end = (await observe(from)).lsn;
  await measured("catch-up", () =>
    waitFor("the WAL", 10_000, async () => ((await observe(to)).replayLsn ?? 0n) >= end),
  );
  const count = "SELECT count(*)::int AS n, min(i) AS least FROM t";
  expect(await to.query(count)).toEqual(await from.query(count));
  expect((await observe(to)).timeline).toBe(2);
}

async function kill(node: Node): Promise<void> {
  process.kill(livePostmaster(node.pgdata)?.pid ?? 0, "SIGKILL");
  await stopServer(node.pgdata, BOUNDS);
}

story(here, "a killed primary is rewound and follows the new one", async (world) => {
  const { a, b, dbB } = await forked(world);
  await kill(a);
  expect((await controlData(world.binaries, a.pgdata)).state).toBe("in production");
  await promote(dbB, { timeoutMs: 10_000 });
  await checkpoint(dbB, 10_000);
  await createSlot(dbB, "a");
  await rewoundFollows(world, a, b);
});

story(here, "a killed standby that is ahead of the new primary is rewound", async (world) => {
  // so much to replay again that where they parted lies far behind where a server lets anyone in
  const { a, b, c, dbB } = await forked(world, 300_000);
  await kill(c);
  expect((await controlData(world.binaries, c.pgdata)).state).toBe("in archive recovery");
  await kill(a);
  await promote(dbB, { timeoutMs: 10_000 });
  await checkpoint(dbB, 10_000);
  await rewoundFollows(world, c, b);
});

story(here, "a rewind that fails says why", async (world) => {
  const { a, b } = await forked(world);
  await stopServer(a.pgdata, BOUNDS);
  const options = {
    binaries: world.binaries,
    pgdata: a.pgdata,
    signal: never,
    onProgress: () => {},
  };
  const nobody = await failure(
    rewind({ ...options, source: "host=127.0.0.1 port=1 dbname=postgres" }),
  );
  expect(String(nobody.detail["reason"])).toContain("Connection refused");
  const running = await failure(rewind({ ...options, pgdata: b.pgdata, source: b.conninfo("x") }));
  expect(running.kind).toBe("conflict");
  chmodSync(join(a.pgdata, "global/pg_control"), 0o000);
  const unreadable = await failure(rewind({ ...options, source: b.conninfo("a") }));
  expect(errorText(unreadable)).toContain("pg_control");
  chmodSync(join(a.pgdata, "global/pg_control"), 0o600);
});
