/** PostgreSQL's programs as functions: initdb, pg_basebackup, pg_rewind, pg_controldata. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { AppError, errorText, invariant } from "../sys/errors.ts";
import { run } from "../sys/exec.ts";
import { hasSyncfs, readIfExists, syncDirectory } from "../sys/files.ts";
import { logger } from "../sys/log.ts";
import { openDb } from "../sys/sql.ts";
import { currentUser } from "../sys/user.ts";
import type { Binaries } from "./binaries.ts";
import {
  type ConfigTexts,
  completeConfig,
  configArguments,
  configFile,
  configTexts,
  settleSocketDirectory,
} from "./config_files.ts";
import { replayedAll } from "./local.ts";
import { listProcesses, sendSignal } from "./processes.ts";
import { livePostmaster, startServer, stopServer } from "./server.ts";
import { ensureStandbySignal } from "./settings.ts";
import { mappingArguments, removeCopies, type Tablespace, tablespacesOf } from "./tablespaces.ts";

const log = logger("postgres");

const SHORT_COMMAND_MS = 10_000;
/** The longest a timer can be set for, about 24 days: where only a lack of progress ends a command. */
const NO_FIXED_BOUND_MS = 2 ** 31 - 1;
/** Bringing a copy to disk prints nothing until it's done, so it gets this many times the bound. */
const SYNC_FACTOR = 20;
const REWIND_TIMEOUT_MS = 300_000;
const STDERR_LINES = 6;

export type Progress = (doneBytes: number, totalBytes: number) => void;

export type ControlData = {
  readonly systemIdentifier: string;
  /** e.g. "in production", "shut down", "in archive recovery" */
  readonly state: string;
  /** of the last checkpoint */
  readonly timeline: number;
  /** how far recovery or a promotion has got since; the last checkpoint's when there is nothing since */
  readonly reachedTimeline: number;
  readonly checkpointLsn: bigint;
  /** what must be replayed before a standby is consistent; 0n when nothing must */
  readonly minRecoveryLsn: bigint;
  readonly checksums: boolean;
  readonly walLogHints: boolean;
  readonly catalogVersion: number;
  /** settings of the primary that wrote the WAL, by name: a standby must have no less of each */
  readonly required: Readonly<Record<string, string>>;
};

/** PostgreSQL's own message in what a command printed, or its last line. */
function reasonOf(stderr: string): string {
  const lines = stderr.split("\n").filter((line) => line.trim() !== "" && !parseProgress(line));
  const told = lines.find((line) => /\b(error|fatal|FATAL|ERROR|PANIC):/.test(line));
  return told ?? lines.slice(-STDERR_LINES).join(" | ");
}

function commandError(command: string, code: number | null, stderr: string): AppError {
  const tail = stderr.trim().split("\n").slice(-STDERR_LINES).join(" | ");
  return new AppError("postgres", `${command} failed`, {
    detail: { code: code ?? "killed", reason: reasonOf(stderr), output: tail },
  });
}

/** The files of a directory, or undefined when there is none. */
function entries(directory: string): string[] | undefined {
  try {
    return readdirSync(directory);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      return undefined;
    }
    throw directoryError("could not read the data directory", directory, error);
  }
}

function directoryError(message: string, directory: string, cause: unknown): AppError {
  const { code } = cause as NodeJS.ErrnoException;
  const denied = code === "EACCES" || code === "EPERM";
  return new AppError(denied ? "permission" : "config", message, {
    detail: { directory, reason: errorText(cause) },
    hint: denied
      ? "Make the directory above it belong to the user that runs PostgreSQL."
      : code === "EBUSY"
        ? "It's a mount point: take a directory below it."
        : "Check the path of --pgdata.",
    cause,
  });
}

function requireEmpty(directory: string): void {
  if ((entries(directory) ?? []).length > 0) {
    throw new AppError("config", "the data directory is not empty", {
      detail: { directory },
      hint: "Choose another directory, or move away what is in this one.",
    });
  }
}

/** C.UTF-8 sorts alike on every machine, unlike the locales of a C library that gets upgraded. */
async function initdbLocale(signal: AbortSignal | undefined): Promise<string> {
  try {
    const { stdout } = await run(["locale", "-a"], {
      timeoutMs: SHORT_COMMAND_MS,
      ...(signal && { signal }),
    });
    return /^C\.utf-?8$/im.exec(stdout)?.[0] ?? "C";
  } catch {
    signal?.throwIfAborted();
    return "C";
  }
}

/**
 * Makes a new data directory, with checksums, in UTF-8. Its superuser has the operating system
 * user's name and enters by the Unix socket; for TCP the caller adds lines to pg_hba.conf.
 *
 * It grows under another name beside it: an interrupted one leaves nothing in the way.
 *
 * @throws {AppError} config: pgdata isn't empty or can't be there; permission; postgres: its reason
 */
export async function initdb(options: {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}): Promise<void> {
  const { binaries, timeoutMs, signal } = options;
  const pgdata = resolve(options.pgdata);
  const growing = `${pgdata}.initdb`;
  requireEmpty(pgdata);
  try {
    mkdirSync(dirname(pgdata), { recursive: true, mode: 0o700 });
    rmSync(growing, { recursive: true, force: true });
    mkdirSync(growing, { mode: 0o700 });
  } catch (error) {
    throw directoryError("could not make the data directory", pgdata, error);
  }
  try {
    const locale = await initdbLocale(signal);
    const { code, stderr } = await run(
      [
        join(binaries.bindir, "initdb"),
        ...["--pgdata", growing, "--auth-local=peer", "--auth-host=scram-sha-256"],
        ...["--data-checksums", "--encoding=UTF8", `--locale=${locale}`],
      ],
      { timeoutMs, dieWithParent: true, ...(signal && { signal }) },
    );
    if (code !== 0) {
      throw commandError("initdb", code, stderr);
    }
    settleSocketDirectory(growing);
    try {
      // An empty directory in its place is replaced by the same call.
      renameSync(growing, pgdata);
    } catch (error) {
      throw directoryError("could not put the new data directory in its place", pgdata, error);
    }
    syncDirectory(dirname(pgdata));
  } finally {
    rmSync(growing, { recursive: true, force: true });
  }
}

/** Names of settings in postgresql.conf, by those that pg_controldata has for them. */
const REQUIRED: Readonly<Record<string, string>> = {
  max_connections: "max_connections",
  max_worker_processes: "max_worker_processes",
  max_wal_senders: "max_wal_senders",
  max_prepared_xacts: "max_prepared_transactions",
  max_locks_per_xact: "max_locks_per_transaction",
  track_commit_timestamp: "track_commit_timestamp",
};

/** What pg_controldata prints in English. @returns undefined when a line is missing */
export function parseControlData(text: string): ControlData | undefined {
  const fields = new Map(
    text.split("\n").map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon), line.slice(colon + 1).trim()] as const;
    }),
  );
  const lsn = (name: string): bigint | undefined => {
    const [, high, low] = /^([0-9A-F]+)\/([0-9A-F]+)$/i.exec(fields.get(name) ?? "") ?? [];
    return high && low ? (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`) : undefined;
  };
  const systemIdentifier = fields.get("Database system identifier");
  const state = fields.get("Database cluster state");
  const timeline = Number(fields.get("Latest checkpoint's TimeLineID"));
  const checkpointLsn = lsn("Latest checkpoint location");
  if (!systemIdentifier || !state || checkpointLsn === undefined || !(timeline > 0)) {
    return undefined;
  }
  return {
    systemIdentifier,
    state,
    timeline,
    reachedTimeline: Math.max(
      timeline,
      Number(fields.get("Min recovery ending loc's timeline") ?? 0),
    ),
    checkpointLsn,
    minRecoveryLsn: lsn("Minimum recovery ending location") ?? 0n,
    checksums: Number(fields.get("Data page checksum version")) > 0,
    walLogHints: fields.get("wal_log_hints setting") === "on",
    catalogVersion: Number(fields.get("Catalog version number")),
    required: Object.fromEntries(
      Object.entries(REQUIRED).flatMap(([theirs, name]) => {
        const value = fields.get(`${theirs} setting`);
        return value === undefined ? [] : [[name, value]];
      }),
    ),
  };
}

/**
 * What pg_control says: also of a server that doesn't run.
 *
 * @throws {AppError} postgres: there is no pg_control, or it's damaged
 */
export async function controlData(binaries: Binaries, pgdata: string): Promise<ControlData> {
  const { code, stdout, stderr } = await run(
    [join(binaries.bindir, "pg_controldata"), "-D", pgdata],
    { timeoutMs: SHORT_COMMAND_MS },
  );
  const parsed = code === 0 ? parseControlData(stdout) : undefined;
  // Of a damaged file it prints the values, after this warning and with exit code 0.
  if (!parsed || /warning: (calculated crc|possible byte order|invalid)/i.test(stdout + stderr)) {
    throw commandError("pg_controldata", code, stderr || stdout.slice(0, 500));
  }
  return parsed;
}

/**
 * What a setting is in a stopped server's configuration.
 *
 * @throws {AppError} postgres: the configuration has an error, and which
 */
export async function configured(
  binaries: Binaries,
  pgdata: string,
  name: string,
): Promise<string> {
  const { code, stdout, stderr } = await run(
    [join(binaries.bindir, "postgres"), "-D", pgdata, ...configArguments(pgdata), "-C", name],
    { timeoutMs: SHORT_COMMAND_MS },
  );
  if (code !== 0) throw commandError("reading the server's configuration", code, stderr);
  return stdout.trim();
}

/** A line of pg_basebackup's or pg_rewind's --progress: `  12345/67890 kB (18%), 0/1 tablespace`. */
export function parseProgress(
  line: string,
): { readonly doneBytes: number; readonly totalBytes: number } | undefined {
  const [, done, total] = /^\s*(\d+)\/\s*(\d+) kB \(\d+%\)/.exec(line) ?? [];
  return done && total
    ? { doneBytes: Number(done) * 1024, totalBytes: Number(total) * 1024 }
    : undefined;
}

/** A command line is there for every user of the machine to read. */
function refusePassword(source: string): void {
  const inWords = /(^|\s)(password|sslpassword)\s*=/i.test(source);
  const inUri = /^\w+:\/\/[^/@]*:[^/@]*@/.test(source) || /[?&](ssl)?password=/i.test(source);
  invariant(
    !inWords && !inUri,
    "a connection string with a password must not be on a command line: name a passfile in it",
  );
}

/**
 * pg_basebackup's second process, which receives the WAL, outlives a pg_basebackup that is killed: it
 * would write into the directory of the next attempt, and hold the slot that this one needs.
 */
function endLeftoverBackups(target: string): void {
  for (const candidate of listProcesses()) {
    const words = /^pg_basebackup/.test(candidate.command)
      ? (readIfExists(`/proc/${candidate.pid}/cmdline`)?.split("\0") ?? [])
      : [];
    if (words.includes(target)) {
      sendSignal(candidate, "SIGKILL");
    }
  }
}

/** Runs a command that reports its progress, and ends it when the report stands still. */
async function runWithProgress(
  command: readonly string[],
  options: {
    readonly timeoutMs: number;
    readonly signal: AbortSignal;
    readonly onProgress: Progress;
  },
): Promise<{ code: number | null; stderr: string }> {
  const stalled = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const allow = (timeoutMs: number): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      stalled.abort(
        new AppError("timeout", "a copy of data made no progress", {
          detail: { command: command[0], timeout_ms: timeoutMs },
          hint: "Check the network, and the disks at both ends.",
        }),
      );
    }, timeoutMs);
  };
  let doneBytes = -1;
  const onStderrLine = (line: string): void => {
    const progress = parseProgress(line);
    if (progress && progress.doneBytes !== doneBytes) {
      doneBytes = progress.doneBytes;
      options.onProgress(progress.doneBytes, progress.totalBytes);
      allow(options.timeoutMs);
    } else if (/syncing (data|target data directory)/.test(line)) {
      allow(Math.min(options.timeoutMs * SYNC_FACTOR, NO_FIXED_BOUND_MS));
    } else if (!progress) {
      allow(options.timeoutMs);
    }
  };
  allow(options.timeoutMs);
  try {
    return await run(command, {
      timeoutMs: NO_FIXED_BOUND_MS,
      signal: AbortSignal.any([options.signal, stalled.signal]),
      onStderrLine,
      dieWithParent: true,
    });
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Copies the data directory of a running server, and the WAL that the copy needs.
 *
 * @param options.target empty or missing; what a failed copy leaves in it is removed
 * @param options.conninfo of the source, without a password: a passfile holds that
 * @param options.slot must exist on the source; keeps its WAL for the new standby
 * @param options.tablespaces the source's; their copies grow beside what is in their locations
 * @param options.maxRate as pg_basebackup takes it, e.g. "100M" bytes a second
 * @param options.timeoutMs ms without progress
 * @throws {AppError} postgres: its reason; timeout; or the signal's reason
 */
export async function baseBackup(options: {
  readonly binaries: Binaries;
  readonly target: string;
  readonly conninfo: string;
  readonly slot?: string | undefined;
  readonly tablespaces?: readonly Tablespace[];
  readonly maxRate?: string | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onProgress: Progress;
}): Promise<void> {
  const { binaries, target, slot, maxRate, tablespaces = [] } = options;
  refusePassword(options.conninfo);
  endLeftoverBackups(target);
  requireEmpty(target);
  removeCopies(tablespaces);
  const existed = statSync(target, { throwIfNoEntry: false }) !== undefined;
  let complete = false;
  try {
    const { code, stderr } = await runWithProgress(
      [
        join(binaries.bindir, "pg_basebackup"),
        ...["--pgdata", target, "--dbname", options.conninfo, "--wal-method=stream"],
        ...["--checkpoint=fast", "--no-password", "--progress", "--verbose"],
        ...(slot === undefined ? [] : ["--slot", slot]),
        ...(maxRate === undefined ? [] : ["--max-rate", maxRate]),
        ...mappingArguments(tablespaces),
      ],
      options,
    );
    if (code !== 0) {
      throw commandError("pg_basebackup", code, stderr);
    }
    complete = true;
  } finally {
    if (!complete) {
      endLeftoverBackups(target);
      removeCopies(tablespaces);
      for (const name of entries(target) ?? []) {
        rmSync(join(target, name), { recursive: true, force: true });
      }
      if (!existed) {
        rmSync(target, { recursive: true, force: true });
      }
    }
  }
}

/** States of pg_control in which the files hold all that the server's WAL says. */
const CLEAN_STATES: readonly string[] = ["shut down", "shut down in recovery"];
const SETTLE_BOUNDS = { fastMs: 60_000, immediateMs: 5000, killMs: 5000 };

/**
 * Brings a server that crashed to a clean end, as a standby that follows nobody and that nobody can
 * reach. What pg_rewind would do instead, a single-user server, refuses the directory of a standby,
 * and ends with a checkpoint that removes the WAL from which pg_rewind finds its way back.
 */
async function settle(options: {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}): Promise<void> {
  const { binaries, pgdata, timeoutMs, signal } = options;
  const hidden = mkdtempSync(join(tmpdir(), "pg-"));
  let failure: unknown;
  let isReplayed = true;
  try {
    await startServer({
      ...{ binaries, pgdata, timeoutMs, signal },
      // Only the name of a socket in a directory of its own.
      port: 5432,
      logFile: join(hidden, "log"),
      settings: {
        listen_addresses: "",
        unix_socket_directories: hidden,
        hot_standby: "on",
        primary_conninfo: "",
        restore_command: "",
        archive_mode: "off",
        logging_collector: "off",
        wal_keep_size: "1000GB",
      },
    });
    isReplayed = false;
    // It lets us in as soon as it is consistent. What it had not replayed by its end would be missing
    // from pg_control, and pg_rewind would find nothing to take back.
    const target = {
      ...{ host: hidden, port: 5432, user: currentUser(), database: "postgres" },
      ...{ applicationName: "pg_auto_failover rewind", connectTimeoutMs: 5000 },
    };
    await using db = openDb(target);
    await replayedAll(db, { timeoutMs, signal });
    isReplayed = true;
  } catch (error) {
    // It may have replayed everything and wait for news of open transactions before it lets anyone
    // in: pg_control has the last word.
    failure = error;
  } finally {
    await stopServer(pgdata, SETTLE_BOUNDS);
    rmSync(hidden, { recursive: true, force: true });
  }
  signal.throwIfAborted();
  const { state } = await controlData(binaries, pgdata);
  if (!isReplayed || !CLEAN_STATES.includes(state)) {
    throw failure ?? new AppError("postgres", "crash recovery ended early", { detail: { state } });
  }
}

/**
 * Takes a stopped server back to where its history and the source's parted, and on along the
 * source's. One that crashed is brought to a clean end first.
 *
 * It leaves `standby.signal`, whatever happens, so that the directory can't open as a second primary.
 * Configuration files are the source's afterwards, where it has them in its data directory: the caller
 * writes this node's own again. Where it fails half-way the directory is good for nothing but a new
 * base backup.
 *
 * @param options.source connection string with a database's name, without a password
 * @param options.timeoutMs ms without any output
 * @throws {AppError} conflict: the server runs; postgres: its reason; timeout; or the signal's reason
 */
export async function rewind(options: {
  readonly binaries: Binaries;
  readonly pgdata: string;
  readonly source: string;
  readonly signal: AbortSignal;
  readonly onProgress: Progress;
  readonly timeoutMs?: number;
}): Promise<void> {
  const { binaries, pgdata, source, signal, timeoutMs = REWIND_TIMEOUT_MS } = options;
  refusePassword(source);
  const running = livePostmaster(pgdata);
  if (running) {
    throw new AppError("conflict", "could not rewind: the server runs", {
      detail: { pgdata, pid: running.pid },
    });
  }
  ensureStandbySignal(pgdata);
  const before = configTexts(pgdata);
  const syncsAtOnce = hasSyncfs();
  try {
    const { state } = await controlData(binaries, pgdata);
    if (!CLEAN_STATES.includes(state)) {
      await settle({ binaries, pgdata, timeoutMs, signal });
    }
    const { code, stderr } = await runWithProgress(
      [
        join(binaries.bindir, "pg_rewind"),
        ...["--target-pgdata", pgdata, "--source-server", source, "--progress"],
        "--no-ensure-shutdown",
        ...(syncsAtOnce ? ["--no-sync"] : []),
      ],
      { signal, timeoutMs, onProgress: options.onProgress },
    );
    if (code !== 0) {
      throw commandError("pg_rewind", code, stderr);
    }
    if (syncsAtOnce) await syncFileSystems(pgdata, { signal, timeoutMs: SYNC_FACTOR * timeoutMs });
  } finally {
    // What the source doesn't have pg_rewind takes away here too.
    ensureStandbySignal(pgdata);
    await ensureConfig(binaries, pgdata, { before });
  }
}

/** Brings all of a data directory to disk, with whatever else its file systems have to write. */
async function syncFileSystems(
  pgdata: string,
  options: { readonly signal: AbortSignal; readonly timeoutMs: number },
): Promise<void> {
  const places = [
    pgdata,
    join(pgdata, "pg_wal"),
    ...tablespacesOf(pgdata).map((it) => it.location),
  ];
  const { code, stderr } = await run(["sync", "--file-system", ...places], options);
  if (code !== 0) throw commandError("sync", code, stderr);
}

/** The file that initdb makes a new postgresql.conf of; "" where it can't be found. */
async function sampleConfig({ bindir }: Binaries): Promise<string> {
  const { stdout } = await run([join(bindir, "pg_config"), "--sharedir"], {
    timeoutMs: SHORT_COMMAND_MS,
  });
  return readIfExists(join(stdout.trim(), "postgresql.conf.sample")) ?? "";
}

/**
 * Gives a data directory the configuration files that it lacks, as after a copy from a server that
 * keeps its own elsewhere (Debian's packages do).
 *
 * @param options.directory where the data is now, when it's not in its place yet
 * @param options.before this node's own files, from before the copy
 */
export async function ensureConfig(
  binaries: Binaries,
  pgdata: string,
  options: { readonly directory?: string; readonly before?: ConfigTexts } = {},
): Promise<void> {
  const { directory = pgdata, before = configTexts(pgdata) } = options;
  if (configFile(pgdata) !== join(pgdata, "postgresql.conf")) return;
  if (existsSync(join(directory, "postgresql.conf"))) return;
  const sample = await sampleConfig(binaries).catch(() => "");
  const { required } = await controlData(binaries, directory);
  if (completeConfig(directory, { before, sample, required })) {
    log.warn(
      "The copied server keeps its configuration outside of its data directory: this node has PostgreSQL's defaults now. Bring over what you need, clients' lines of pg_hba.conf above all.",
      { pgdata },
    );
  }
}

/** The major version that a data directory was made with; undefined when it is none. */
export function dataVersion(pgdata: string): number | undefined {
  const major = Number.parseInt(readIfExists(join(pgdata, "PG_VERSION")) ?? "", 10);
  return Number.isNaN(major) ? undefined : major;
}
