/**
 * Tests with PostgreSQL servers of their own, as the OS user who may run them.
 *
 * lib/pg never switches users: whoever calls it has done so. A test that root starts therefore runs
 * once more in a process of its own, which loads everything first, since this user may not be able to
 * read these files, and then becomes that user for good.
 */
import { afterAll, expect, test } from "bun:test";
import { chmodSync, cpSync, existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Binaries } from "../../lib/pg/binaries.ts";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { baseBackup, initdb } from "../../lib/pg/commands.ts";
import { writeHbaBlock } from "../../lib/pg/hba.ts";
import { createSlot, ensureRoles, localTarget } from "../../lib/pg/local.ts";
import { serverProcesses } from "../../lib/pg/processes.ts";
import type { ServerProcess } from "../../lib/pg/server.ts";
import { livePostmaster, startServer, stopServer } from "../../lib/pg/server.ts";
import { conninfo, writeManagedSettings, writeStandbySettings } from "../../lib/pg/settings.ts";
import { AppError } from "../../lib/sys/errors.ts";
import type { Db } from "../../lib/sys/sql.ts";
import { openDb } from "../../lib/sys/sql.ts";
import { becomeOwnerOf, currentUser } from "../../lib/sys/user.ts";
import { freePort } from "../helpers/ports.ts";

const STORY_TIMEOUT_MS = 40_000;
/** Holds the place of the template, and tells a process that it is the inner one. */
const INSIDE = "PG_STORY";
const isInside = process.env[INSIDE] !== undefined;
/** A data directory that is made once for all stories: initdb takes longer than most of them. */
const template = process.env[INSIDE] ?? join(tmpdir(), `pg-story-template-${process.pid}`);
if (isInside) {
  becomeOwnerOf(template);
}
const filesSeen = new Set<string>();

export const BOUNDS = { fastMs: 5000, immediateMs: 3000, killMs: 3000 };

/** One server of a story. */
export type Node = {
  readonly name: string;
  readonly pgdata: string;
  readonly port: number;
  readonly logFile: string;
  start(timeoutMs?: number): Promise<ServerProcess>;
  /** A connection as superuser, closed at the end of the story. */
  open(onClose?: () => void): Db;
  /** How a standby called `as` reaches this node. */
  conninfo(as: string): string;
};

export type World = {
  readonly dir: string;
  readonly binaries: Binaries;
  /** A place for a server, without anything in it. */
  place(name: string): Node;
  /** Gives it the settings of all servers here; its Unix socket goes into `dir`. */
  manage(node: Node): void;
  /** A primary that runs, with the logins for replication and one slot for each name. */
  primary(name: string, slots?: readonly string[]): Promise<Node>;
  /** A standby of it, made by a base backup, that runs. */
  standby(name: string, source: Node): Promise<Node>;
};

/**
 * @param file of the test, as `import.meta.path`
 * @param name used as it is to run this test alone
 */
export function story(
  file: string,
  name: string,
  body: (world: World) => Promise<void>,
  timeoutMs = STORY_TIMEOUT_MS,
): void {
  if (!isInside && !filesSeen.has(file)) {
    filesSeen.add(file);
    afterAll(() => rmSync(template, { recursive: true, force: true }));
  }
  const run =
    process.geteuid?.() === 0 && !isInside ? () => runInside(file, name) : () => play(body);
  test(name, run, timeoutMs);
}

async function runInside(file: string, name: string): Promise<void> {
  const pattern = `^${name.replaceAll(/[^A-Za-z0-9 ]/g, ".")}$`;
  const child = Bun.spawn([process.execPath, "test", file, "--test-name-pattern", pattern], {
    cwd: join(import.meta.dir, "../.."),
    // handed on by `bun --no-orphans`; a server started below it would be refused
    env: { ...process.env, [INSIDE]: template, BUN_FEATURE_FLAG_NO_ORPHANS: undefined },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [said, wrong, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const measured = said.split("\n").filter((line) => line.startsWith("measured "));
  if (measured.length > 0) {
    console.log(measured.join("\n"));
  }
  // A pattern that finds nothing must not pass for a test that did.
  const passed = code === 0 && / 1 pass\b/.test(wrong);
  expect(passed ? "passed" : `${said}\n${wrong}`).toBe("passed");
}

async function play(body: (world: World) => Promise<void>): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), "pg-story-"));
  const nodes: Node[] = [];
  const connections: Db[] = [];
  const binaries = await findBinaries();
  const place = (name: string): Node => {
    const node = makeNode(dir, name, binaries, connections);
    nodes.push(node);
    return node;
  };
  const world: World = {
    dir,
    binaries,
    place,
    manage: (node) => manage(node, dir),
    primary: async (name, slots = []) => {
      const node = place(name);
      if (!existsSync(template)) {
        await initdb({ binaries, pgdata: template, timeoutMs: 30_000 });
      }
      cpSync(template, node.pgdata, { recursive: true });
      chmodSync(node.pgdata, 0o700);
      writeHbaBlock(node.pgdata, [
        "host all all 127.0.0.1/32 trust",
        "host replication all 127.0.0.1/32 trust",
      ]);
      manage(node, dir);
      await node.start();
      const db = node.open();
      await ensureRoles(db);
      for (const slot of slots) {
        await createSlot(db, slot);
      }
      return node;
    },
    standby: async (name, source) => {
      const node = place(name);
      await baseBackup({
        binaries,
        target: node.pgdata,
        conninfo: source.conninfo(name),
        timeoutMs: 10_000,
        signal: new AbortController().signal,
        onProgress: () => {},
      });
      manage(node, dir);
      writeStandbySettings(node.pgdata, {
        primaryConninfo: source.conninfo(name),
        primarySlotName: "",
      });
      await node.start();
      return node;
    },
  };
  try {
    await body(world);
  } finally {
    await Promise.all(connections.map((db) => db.close()));
    for (const { pgdata } of nodes) {
      await stopServer(pgdata, { ...BOUNDS, fastMs: 2000 });
    }
    const left = nodes.flatMap(({ pgdata }) => serverProcesses(pgdata, undefined));
    rmSync(dir, { recursive: true, force: true });
    expect(left).toEqual([]);
  }
}

function makeNode(dir: string, name: string, binaries: Binaries, connections: Db[]): Node {
  const pgdata = join(dir, name);
  const port = freePort();
  const logFile = join(dir, `${name}.log`);
  return {
    name,
    pgdata,
    port,
    logFile,
    start: (timeoutMs = 10_000) => startServer({ binaries, pgdata, port, logFile, timeoutMs }),
    open: (onClose) => {
      const postmaster = livePostmaster(pgdata);
      if (!postmaster) {
        throw new Error(`${name} doesn't run`);
      }
      const login = { user: currentUser(), database: "postgres", applicationName: "story" };
      const db = openDb(localTarget(postmaster, login), { onClose });
      connections.push(db);
      return db;
    },
    conninfo: (as) =>
      conninfo({
        host: "127.0.0.1",
        port,
        user: "pgautofailover_replicator",
        dbname: "postgres",
        application_name: as,
      }),
  };
}

function manage(node: Node, dir: string): void {
  writeManagedSettings(node.pgdata, {
    listen_addresses: "127.0.0.1",
    unix_socket_directories: dir,
    wal_log_hints: "on",
    wal_retrieve_retry_interval: "200ms",
    wal_receiver_status_interval: "1s",
  });
}

/** The time that something takes, printed for those who run the test by hand. */
export async function measured<T>(what: string, work: () => Promise<T>): Promise<[T, number]> {
  const begin = performance.now();
  const value = await work();
  const tookMs = performance.now() - begin;
  console.log(`measured ${what}: ${tookMs.toFixed(1)} ms`);
  return [value, tookMs];
}

/** The median of some times, printed like `measured`. */
export function median(what: string, timesMs: readonly number[]): number {
  const sorted = timesMs.toSorted((a, b) => a - b);
  const middle = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  console.log(
    `measured ${what}: median ${middle.toFixed(1)} ms, worst ${sorted.at(-1)?.toFixed(1)} ms`,
  );
  return middle;
}

/** The error that something ends with. */
export async function failure(work: Promise<unknown>): Promise<AppError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof AppError)) {
    throw new Error("it should have failed with an AppError", { cause: error });
  }
  return error;
}
