/** The postmaster: starts it, finds it again, notices its end, stops it whatever its condition. */
import { closeSync, fstatSync, openSync, readFileSync, readSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError } from "../sys/errors.ts";
import { readIfExists } from "../sys/files.ts";
import { logger } from "../sys/log.ts";
import type { Binaries } from "./binaries.ts";
import { configArguments } from "./config_files.ts";
import type { Process } from "./processes.ts";
import {
  isAlive,
  isDoomed,
  isPostgres,
  isPostmasterOf,
  readProcess,
  sendSignal,
  serverProcesses,
  stillAlive,
  worksIn,
} from "./processes.ts";

const log = logger("postgres");

/** postmaster.pid has its times in whole seconds, and the kernel's count of them is not in step. */
const START_TOLERANCE_S = 2;
const LOG_TAIL_BYTES = 64 * 1024;
const LOG_TAIL_LINES = 10;
/** What a server gets from us by mistake and must not have: the service manager's, and libpq's. */
const NOT_FOR_THE_SERVER =
  /^(NOTIFY_SOCKET|WATCHDOG_.*|PG(HOST|HOSTADDR|PORT|USER|DATABASE|PASSWORD|OPTIONS|SERVICE|APPNAME|TARGETSESSIONATTRS)|PG_AUTOCTL_.*)$/;

export type Postmaster = {
  readonly pid: number;
  /** seconds since 1970, by the wall clock of that moment */
  readonly startedAtS: number;
  readonly port: number;
  /** "" when the server has no Unix socket */
  readonly socketDir: string;
  /** first address it listens on, `*` for all, "" for none */
  readonly listen: string;
  /** `ready` takes connections, also a hot standby; `standby` runs with hot_standby off */
  readonly status: "starting" | "stopping" | "ready" | "standby";
};

export type ServerProcess = {
  readonly pid: number;
  readonly startedAtS: number;
  /**
   * Settles when a server that this process started has ended. For an adopted one it never does:
   * an open connection that breaks (`openDb`'s onClose) is the notice there.
   */
  readonly exited: Promise<void>;
  alive(): boolean;
};

export type StartOptions = {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly port: number;
  /** gets what the server prints until its own logging takes over; appended to, mode 0600 */
  readonly logFile: string;
  /** ms without any progress of recovery */
  readonly timeoutMs: number;
  /** win over those in every file, until the server stops */
  readonly settings?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
};

const STATUSES: readonly string[] = ["starting", "stopping", "ready", "standby"];
const isStatus = (text: string): text is Postmaster["status"] => STATUSES.includes(text);

/**
 * The eight lines of postmaster.pid; a server that starts has written five of them.
 *
 * @returns undefined when the text is cut short or malformed, or names a single-user backend
 * @see PostgreSQL's src/include/utils/pidfile.h
 */
export function parsePostmasterPid(text: string): Postmaster | undefined {
  const lines = text.split("\n");
  // What follows the last line feed is a line that is still being written.
  const [pid, directory, started, port, socketDir, listen, , status] = lines.slice(0, -1);
  if (directory === undefined || socketDir === undefined || !/^\d+$/.test(started ?? "")) {
    return undefined;
  }
  if (!/^\d{1,9}$/.test(pid ?? "") || Number(pid) <= 1 || !/^\d{1,5}$/.test(port ?? "")) {
    return undefined;
  }
  const trimmed = (status ?? "").trim();
  if (!isStatus(trimmed) && status !== undefined) {
    return undefined;
  }
  return {
    pid: Number(pid),
    startedAtS: Number(started),
    port: Number(port),
    socketDir,
    listen: (listen ?? "").trim(),
    status: isStatus(trimmed) ? trimmed : "starting",
  };
}

/** What postmaster.pid says, whether or not that process lives. */
export function readPostmaster(pgdata: string): Postmaster | undefined {
  const text = readIfExists(join(pgdata, "postmaster.pid"));
  return text === undefined ? undefined : parsePostmasterPid(text);
}

/**
 * Whether a process is the server that postmaster.pid names. Its working directory decides where
 * the kernel shows it; a start time can't, since setting the clock moves it. Elsewhere it must do.
 */
function isServerOf(pgdata: string, postmaster: Postmaster, candidate: Process): boolean {
  return (
    isAlive(candidate) &&
    isPostgres(candidate) &&
    (worksIn(pgdata, candidate.pid) ??
      Math.abs(candidate.startedAtS - postmaster.startedAtS) <= START_TOLERANCE_S)
  );
}

function findLive(pgdata: string): { postmaster: Postmaster; process: Process } | undefined {
  const postmaster = readPostmaster(pgdata);
  const candidate = postmaster && readProcess(postmaster.pid);
  return postmaster &&
    candidate &&
    isServerOf(pgdata, postmaster, candidate) &&
    !isDoomed(candidate)
    ? { postmaster, process: candidate }
    : undefined;
}

/** The running server of a data directory: not a zombie, not another process with its old pid. */
export function livePostmaster(pgdata: string): Postmaster | undefined {
  return findLive(pgdata)?.postmaster;
}

/** A handle on a server that another process has started. */
export function adoptServer(pgdata: string): ServerProcess | undefined {
  const live = findLive(pgdata);
  return (
    live && {
      pid: live.postmaster.pid,
      startedAtS: live.postmaster.startedAtS,
      exited: new Promise(() => {}),
      alive: () => stillAlive(live.process),
    }
  );
}

function openLog(path: string): { fd: number; size: number } {
  try {
    const fd = openSync(path, "a", 0o600);
    return { fd, size: fstatSync(fd).size };
  } catch (error) {
    throw new AppError("permission", "could not open PostgreSQL's log file", {
      detail: { file: path },
      hint: "Check that its directory exists and belongs to this user.",
      cause: error,
    });
  }
}

/** The last lines that were written to a file after a position, without empty ones. */
function tail(path: string, from: number): string[] {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return [];
  }
  try {
    const start = Math.max(from, fstatSync(fd).size - LOG_TAIL_BYTES);
    const buffer = Buffer.alloc(LOG_TAIL_BYTES);
    const text = buffer.toString("utf8", 0, readSync(fd, buffer, 0, LOG_TAIL_BYTES, start));
    return text.split("\n").filter((line) => line.trim() !== "");
  } finally {
    closeSync(fd);
  }
}

/** What the server said last: in our file, and where its logging collector has written since. */
function lastWords(options: StartOptions, logStart: number, startedAtMs: number): string[] {
  const lines = tail(options.logFile, logStart);
  const listed = readIfExists(join(options.pgdata, "current_logfiles")) ?? "";
  const collected = /^stderr (.+)$/m.exec(listed)?.[1];
  if (collected !== undefined) {
    const path = collected.startsWith("/") ? collected : join(options.pgdata, collected);
    if ((statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0) >= startedAtMs) {
      lines.push(...tail(path, 0));
    }
  }
  return lines.slice(-LOG_TAIL_LINES);
}

/** Whether something listens on that TCP port on any address. */
export function isPortBusy(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const probe = createServer();
  probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "EADDRINUSE"));
  probe.listen({ port, host: "0.0.0.0", exclusive: true }, () => probe.close(() => resolve(false)));
  return promise;
}

async function startFailure(
  options: StartOptions,
  lines: readonly string[],
  outcome: string,
): Promise<AppError> {
  const text = lines.join("\n");
  const socketLock = /lock file ".*\.s\.PGSQL\.\d+\.lock" already exists/.test(text);
  if (socketLock || /Address already in use/.test(text) || (await isPortBusy(options.port))) {
    return new AppError("conflict", "could not start PostgreSQL: its port is in use", {
      detail: { port: options.port, pgdata: options.pgdata },
      hint: `Stop what listens on port ${options.port}, or choose another port.`,
    });
  }
  const reason = lines.findLast((line) => /\b(FATAL|PANIC):/.test(line)) ?? lines.at(-1);
  return new AppError("postgres", "could not start PostgreSQL", {
    detail: { pgdata: options.pgdata, outcome, reason, log: lines.join(" | ") },
    hint: `Its messages are in ${options.logFile}.`,
  });
}

/**
 * Recovery's position, in signs that a server stuck for want of WAL doesn't give: pg_control, the
 * segment in the startup process's title, and time that this process spends computing or on disk.
 */
function recoveryWatch(pgdata: string, postmasterPid: number): () => boolean {
  const BUSY_TICKS_PER_S = 10;
  let before = { control: "", title: "", cpuTicks: 0, atMs: monotonicMs() };
  return () => {
    const atMs = monotonicMs();
    let control = "";
    let title = "";
    try {
      control = readFileSync(join(pgdata, "global/pg_control")).toString("base64");
    } catch {
      // It is replaced now and then; the next look finds it.
    }
    let cpuTicks = 0;
    let onDisk = false;
    for (const child of serverProcesses(pgdata, readProcess(postmasterPid))) {
      const words = readIfExists(`/proc/${child.pid}/cmdline`) ?? "";
      if (/startup/.test(words)) {
        title += words;
        cpuTicks += child.cpuTicks;
        onDisk ||= child.state === "D";
      }
    }
    const busy = ((cpuTicks - before.cpuTicks) * 1000) / Math.max(1, atMs - before.atMs);
    const moved = control !== before.control || title !== before.title;
    before = { control, title, cpuTicks, atMs };
    return moved || onDisk || busy >= BUSY_TICKS_PER_S;
  };
}

type Attempt = { readonly outcome: "ready"; readonly server: ServerProcess } | AttemptFailed;
type AttemptFailed = { readonly outcome: "failed"; readonly error: AppError };

function spawnServer({ binaries, pgdata, port, settings }: StartOptions, logFd: number) {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !NOT_FOR_THE_SERVER.test(name)),
  );
  const overrides = Object.entries(settings ?? {}).flatMap((pair) => ["-c", pair.join("=")]);
  const child = Bun.spawn(
    [
      ...[join(binaries.bindir, "postgres"), "-D", resolve(pgdata)],
      ...[...configArguments(pgdata), "-p", String(port), ...overrides],
    ],
    // A session of its own and files for output: neither a terminal's signals nor our end reach it.
    { stdio: ["ignore", logFd, logFd], env, cwd: "/", detached: true },
  );
  child.unref();
  return child;
}

/**
 * By data directory, what this process has started last. For the moment between fork and exec the
 * kernel tells nothing by which another look could recognise it.
 */
const startedHere = new Map<string, number>();

/**
 * By data directory, when no process of a server was left there, unless this process has started one since.
 *
 * A demotion stops at each of its steps, and a search through all processes costs milliseconds, which the server that is
 * promoted meanwhile may need on the same machine.
 */
const emptySince = new Map<string, number>();
const EMPTY_MS = 1000;

const isEmptyStill = (pgdata: string): boolean =>
  monotonicMs() - (emptySince.get(resolve(pgdata)) ?? Number.NEGATIVE_INFINITY) < EMPTY_MS &&
  findLive(pgdata) === undefined;

/** Directories in which this process is starting a server, which may not show yet. */
const startingIn: string[] = [];

async function attempt(options: StartOptions): Promise<Attempt> {
  const { pgdata, timeoutMs, signal } = options;
  const startedAtMs = Date.now();
  const { fd, size: logStart } = openLog(options.logFile);
  let child: ReturnType<typeof spawnServer>;
  try {
    child = spawnServer(options, fd);
    startedHere.set(resolve(pgdata), child.pid);
  } finally {
    closeSync(fd);
  }
  const hasExited = (): boolean => child.exitCode !== null || child.signalCode !== null;
  const begin = monotonicMs();
  const hasProgressed = recoveryWatch(pgdata, child.pid);
  let progressAtMs = begin;
  let watchedAtMs = begin;
  for (;;) {
    signal?.throwIfAborted();
    const postmaster = readPostmaster(pgdata);
    if (postmaster?.pid === child.pid && /^(ready|standby)$/.test(postmaster.status)) {
      if (!hasExited()) {
        const exited = child.exited.then(() => undefined);
        const server = {
          pid: child.pid,
          startedAtS: postmaster.startedAtS,
          exited,
          alive: () => !hasExited(),
        };
        return { outcome: "ready", server };
      }
    }
    if (hasExited()) {
      const outcome = String(child.signalCode ?? `exit code ${child.exitCode}`);
      const lines = lastWords(options, logStart, startedAtMs);
      return { outcome: "failed", error: await startFailure(options, lines, outcome) };
    }
    const now = monotonicMs();
    if (now - watchedAtMs > 1000) {
      watchedAtMs = now;
      if (hasProgressed()) {
        progressAtMs = now;
      }
    }
    if (now - progressAtMs > timeoutMs) {
      throw new AppError("timeout", "PostgreSQL started but its recovery makes no progress", {
        detail: { pgdata, pid: child.pid, timeout_ms: timeoutMs },
        hint: `It goes on trying. Its messages are in ${options.logFile}.`,
      });
    }
    await Promise.race([delay(now - begin < 1000 ? 2 : 20, signal), child.exited]);
  }
}

/**
 * PostgreSQL won't start while the pid in a stale postmaster.pid, or in the lock file of its socket,
 * belongs to some other process of this user, or to a zombie that nobody has reaped; nor does
 * pg_rewind work then. postmaster.pid is also its guard against orphans of the last server, so
 * nothing goes while there are any.
 *
 * @returns whether there was such a file
 */
export function removeMisleadingPidFile(pgdata: string): boolean {
  const stale = readPostmaster(pgdata);
  if (!stale || findLive(pgdata) || serverProcesses(pgdata, undefined).length > 0) return false;
  const misleads = (pid: number): boolean => {
    const holder = readProcess(pid);
    return holder !== undefined && (!isAlive(holder) || worksIn(pgdata, pid) === false);
  };
  if (!misleads(stale.pid)) return false;
  log.info("Removing a stale postmaster.pid that would keep PostgreSQL from starting", {
    pid: stale.pid,
  });
  const socketLock = join(stale.socketDir, `.s.PGSQL.${stale.port}.lock`);
  if (stale.socketDir !== "" && Number.parseInt(readIfExists(socketLock) ?? "", 10) === stale.pid) {
    rmSync(socketLock, { force: true });
  }
  rmSync(join(pgdata, "postmaster.pid"), { force: true });
  return true;
}

function refuseSecondServer(pgdata: string): void {
  const running = livePostmaster(pgdata);
  if (running === undefined) return;
  throw new AppError("conflict", "a PostgreSQL server runs in this directory already", {
    detail: { pgdata, pid: running.pid, port: running.port },
  });
}

/**
 * Starts the server of a data directory and waits until it takes connections.
 *
 * It outlives this process. It also outlives an abort and the timeout: `stopServer` ends it.
 *
 * @throws {AppError} conflict: it runs already, or its port is in use; postgres: it ended, with its
 *   last messages; timeout: recovery made no progress for timeoutMs, or processes of the server
 *   before it stayed that long
 */
export async function startServer(options: StartOptions): Promise<ServerProcess> {
  const directory = resolve(options.pgdata);
  startingIn.push(directory);
  emptySince.delete(directory);
  try {
    return await startUntilReady(options);
  } finally {
    startingIn.splice(startingIn.indexOf(directory), 1);
  }
}

async function startUntilReady(options: StartOptions): Promise<ServerProcess> {
  const { pgdata, timeoutMs, signal } = options;
  if (process.env["BUN_FEATURE_FLAG_NO_ORPHANS"]) {
    throw new AppError("config", "Bun is told to kill PostgreSQL together with this process", {
      detail: { BUN_FEATURE_FLAG_NO_ORPHANS: process.env["BUN_FEATURE_FLAG_NO_ORPHANS"] },
      hint: "Unset that variable, and start this without --no-orphans.",
    });
  }
  const begin = monotonicMs();
  for (;;) {
    refuseSecondServer(pgdata);
    removeMisleadingPidFile(pgdata);
    const result = await attempt(options);
    if (result.outcome === "ready") {
      return result.server;
    }
    // A start that was given up may have come up meanwhile: its processes are no orphans.
    refuseSecondServer(pgdata);
    // Orphans of a killed postmaster still hold its shared memory. They end within milliseconds.
    const orphans = serverProcesses(pgdata, undefined);
    const blocked = /pre-existing shared memory block/.test(String(result.error.detail["log"]));
    // The last of them may have ended while the server was being started.
    const misled = orphans.length === 0 && removeMisleadingPidFile(pgdata);
    if (!blocked && !misled && orphans.length === 0) {
      throw result.error;
    }
    if (monotonicMs() - begin > timeoutMs) {
      throw new AppError("timeout", "processes of the server before hold its shared memory", {
        detail: { pgdata, pids: orphans.map(({ pid }) => pid).join(",") },
        hint: "Stop this node (it kills them), then start it again.",
        cause: result.error,
      });
    }
    while (serverProcesses(pgdata, undefined).length > 0 && monotonicMs() - begin <= timeoutMs) {
      await delay(5, signal);
    }
    await delay(5, signal);
  }
}

/**
 * The process to ask for the server's end. One that has only just been started is not in
 * postmaster.pid yet, and must not be overlooked: it would open after its keeper was told to stop it.
 */
function findServer(pgdata: string): Process | undefined {
  const live = findLive(pgdata)?.process;
  if (live) return live;
  const ours = readProcess(startedHere.get(resolve(pgdata)) ?? -1);
  if (ours && ours.parentPid === process.pid && isAlive(ours)) return ours;
  const all = serverProcesses(pgdata, undefined);
  const titled = all.filter(({ pid }) => isPostmasterOf(resolve(pgdata), pid));
  return titled.find(({ parentPid }) => !titled.some(({ pid }) => pid === parentPid));
}

/**
 * Sends a signal to the server and waits until no process of it is left.
 *
 * @returns whether they are gone, and whether there was a server to ask
 */
async function askToEnd(
  pgdata: string,
  signal: "SIGINT" | "SIGQUIT",
  timeoutMs: number,
): Promise<{ gone: boolean; asked: boolean }> {
  const begin = monotonicMs();
  let server: Process | undefined;
  for (;;) {
    // While the postmaster lives a look at it alone will do: a full search costs milliseconds.
    if (!server || !stillAlive(server)) {
      const before = server;
      server = findServer(pgdata) ?? before;
      if (server && server !== before) {
        sendSignal(server, signal);
      } else if (serverProcesses(pgdata, server).length === 0) {
        return { gone: true, asked: server !== undefined };
      }
    } else if (readProcess(server.pid)?.state === "T") {
      // A stopped postmaster can't act on any signal but the last one.
      return { gone: false, asked: true };
    }
    const elapsedMs = monotonicMs() - begin;
    if (elapsedMs >= timeoutMs) {
      return { gone: false, asked: server !== undefined };
    }
    await delay(elapsedMs < 200 ? 3 : 10);
  }
}

/** SIGKILL for the postmaster first, so that it can't replace a child, then for all that is left. */
async function killServer(
  pgdata: string,
  { killMs: timeoutMs, mayStay = false }: StopBounds,
): Promise<"killed" | "doomed"> {
  const begin = monotonicMs();
  const postmaster = findServer(pgdata);
  const seen = new Map(serverProcesses(pgdata, postmaster).map((one) => [one.pid, one]));
  if (postmaster) {
    sendSignal(postmaster, "SIGKILL");
  }
  for (;;) {
    // Known children are kept: once orphaned, only /proc could find them again.
    for (const one of serverProcesses(pgdata, postmaster)) {
      seen.set(one.pid, one);
    }
    const left = [...seen.values()].filter((one) => sendSignal(one, "SIGKILL"));
    if (left.length === 0) {
      return "killed";
    }
    const elapsedMs = monotonicMs() - begin;
    if (
      mayStay &&
      elapsedMs >= DOOMED_MS &&
      left.every((one) => isDoomed(readProcess(one.pid) ?? one))
    ) {
      return "doomed";
    }
    if (elapsedMs >= timeoutMs) {
      throw new AppError("timeout", "processes of PostgreSQL survive SIGKILL", {
        detail: { pgdata, pids: left.map(({ pid }) => pid).join(","), timeout_ms: timeoutMs },
        hint: "The kernel holds them, most often in storage that doesn't answer: mend that, or reboot.",
      });
    }
    await delay(2);
  }
}

export type StopBounds = {
  readonly fastMs: number;
  readonly immediateMs: number;
  readonly killMs: number;
  /**
   * That nobody acknowledges a commit any more will do: processes that wait for a disk, and die of their SIGKILL when it
   * answers, may stay. What they were writing then may get to the disk.
   */
  readonly mayStay?: boolean;
};

export type Stopped = "not running" | "fast" | "immediate" | "killed" | "doomed";

/** So long whoever waits for a disk may take to notice its SIGKILL. */
const DOOMED_MS = 200;

/**
 * Stops the server of a data directory: fast, then immediate, then by SIGKILL of the postmaster and
 * of every child, frozen ones too. Resolves when no process of it is left.
 *
 * @returns what it took; "not running" also when orphans of a dead postmaster went by themselves; "doomed": some stay,
 *   as they may
 * @throws {AppError} timeout: a process is still there killMs after SIGKILL; permission
 */
export async function stopServer(pgdata: string, bounds: StopBounds): Promise<Stopped> {
  if (isEmptyStill(pgdata)) return "not running";
  const how = await stopAll(pgdata, bounds);
  const directory = resolve(pgdata);
  if (how !== "doomed" && !startingIn.includes(directory)) emptySince.set(directory, monotonicMs());
  return how;
}

async function stopAll(pgdata: string, bounds: StopBounds): Promise<Stopped> {
  let asked = false;
  if (findServer(pgdata)) {
    const fast = await askToEnd(pgdata, "SIGINT", bounds.fastMs);
    if (fast.gone) return fast.asked ? "fast" : "not running";
    asked = fast.asked;
  }
  // Orphans of a dead postmaster come here at once: they end by themselves, or never.
  const immediate = await askToEnd(pgdata, "SIGQUIT", bounds.immediateMs);
  if (immediate.gone) return asked || immediate.asked ? "immediate" : "not running";
  log.warn("PostgreSQL doesn't stop when asked: killing its processes", { pgdata });
  return await killServer(pgdata, bounds);
}
