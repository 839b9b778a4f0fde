/**
 * What the kernel says about the processes of a PostgreSQL server: /proc on Linux, `ps` elsewhere.
 *
 * A pid alone names nothing for long: it is recycled. Every process here carries the time when it
 * started, and is compared with that again before it gets a signal.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { AppError, invariant } from "../sys/errors.ts";
import { readIfExists } from "../sys/files.ts";

/** Linux fixes the unit of /proc's times for user space, whatever the kernel's own HZ. */
const TICKS_PER_S = 100;
const PS_TIMEOUT_MS = 2000;
/** Signal 9, as /proc counts them. */
const SIGKILL_BIT = 1n << 8n;
const hasProc = statSync("/proc/self/stat", { throwIfNoEntry: false }) !== undefined;

export type Process = {
  readonly pid: number;
  readonly parentPid: number;
  /** the kernel's letter: R running, S sleeping, D disk, T stopped, t traced, Z zombie, X dead */
  readonly state: string;
  readonly command: string;
  /** differs between two processes that had the same pid */
  readonly started: string;
  /** seconds since 1970 by the wall clock, which may have been set since */
  readonly startedAtS: number;
  /** processor time used, in 1/100 s; 0 where it isn't known */
  readonly cpuTicks: number;
};

function bootTimeS(): number {
  return Number(/^btime (\d+)$/m.exec(readFileSync("/proc/stat", "latin1"))?.[1] ?? Number.NaN);
}

/**
 * One line of /proc/PID/stat. The command may hold spaces and parentheses: the last one ends it.
 *
 * @param bootS asked only where somebody wants the wall clock's time: the answer is in a large file
 */
export function parseProcStat(line: string, bootS: () => number): Process | undefined {
  const open = line.indexOf("(");
  const close = line.lastIndexOf(")");
  const fields = line.slice(close + 2).split(" ");
  const [state, parent] = fields;
  // proc(5) counts fields from 1 and `state` is its third.
  const field = (number: number): number => Number(fields[number - 3]);
  if (open < 0 || close < open || !state || !parent || !Number.isFinite(field(22))) {
    return undefined;
  }
  return {
    pid: Number(line.slice(0, open)),
    parentPid: Number(parent),
    state,
    command: line.slice(open + 1, close),
    started: String(field(22)),
    get startedAtS() {
      return bootS() + field(22) / TICKS_PER_S;
    },
    cpuTicks: field(14) + field(15),
  };
}

/** One line of `ps -axo pid=,ppid=,stat=,lstart=,comm=` under LC_ALL=C. */
export function parsePsLine(line: string): Process | undefined {
  const match = /^\s*(\d+)\s+(\d+)\s+(\S)\S*\s+(\w+\s+\w+\s+\d+\s+[\d:]+\s+\d+)\s+(.*\S)/.exec(
    line,
  );
  const [, pid, parentPid, state, started, command] = match ?? [];
  if (!pid || !parentPid || !state || !started || !command) {
    return undefined;
  }
  return {
    pid: Number(pid),
    parentPid: Number(parentPid),
    state,
    command: command.slice(command.lastIndexOf("/") + 1),
    started,
    startedAtS: Date.parse(started) / 1000,
    cpuTicks: 0,
  };
}

function ps(args: readonly string[]): Process[] {
  const { stdout } = Bun.spawnSync(["ps", ...args, "-o", "pid=,ppid=,stat=,lstart=,comm="], {
    env: { ...process.env, LC_ALL: "C" },
    stderr: "ignore",
    timeout: PS_TIMEOUT_MS,
  });
  return stdout
    .toString()
    .split("\n")
    .flatMap((line) => parsePsLine(line) ?? []);
}

function readProc(pid: number): Process | undefined {
  try {
    return parseProcStat(readFileSync(`/proc/${pid}/stat`, "latin1"), bootTimeS);
  } catch {
    return undefined; // it ended: between two system calls at any time
  }
}

/** The process of that pid, unless it ended. A zombie is listed: it hasn't been waited for. */
export function readProcess(pid: number): Process | undefined {
  return hasProc ? readProc(pid) : ps(["-p", String(pid)])[0];
}

/** The command line of a process, which PostgreSQL's replace by what they do; "" when it has ended. */
export function titleOf(pid: number): string {
  if (hasProc) return readIfExists(`/proc/${pid}/cmdline`)?.replaceAll("\0", " ") ?? "";
  return Bun.spawnSync(["ps", "-p", String(pid), "-o", "command="], {
    stderr: "ignore",
    timeout: PS_TIMEOUT_MS,
  }).stdout.toString();
}

export function listProcesses(): Process[] {
  if (!hasProc) {
    return ps(["-ax"]);
  }
  return readdirSync("/proc").flatMap((name) =>
    /^\d+$/.test(name) ? (readProc(Number(name)) ?? []) : [],
  );
}

/** Whether a process can still run code: a zombie and a dead one can't. */
export const isAlive = (candidate: Process): boolean => !/^[ZXx]/.test(candidate.state);

/**
 * Whether it waits in the kernel, for a disk mostly, with a SIGKILL that it can't notice yet: it never gets back to its own
 * code. False where /proc isn't.
 */
export function isDoomed({ pid, state }: Process): boolean {
  if (state !== "D") return false;
  const pending = (readIfExists(`/proc/${pid}/status`) ?? "").matchAll(
    /^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm,
  );
  return [...pending].some(([, mask]) => (BigInt(`0x${mask}`) & SIGKILL_BIT) !== 0n);
}

/** Whether that very process still lives, and not another that has got its pid. */
export function stillAlive(known: Process): boolean {
  const now = readProcess(known.pid);
  return now !== undefined && now.started === known.started && isAlive(now);
}

/** Whether its name is that of a PostgreSQL server process (Linux cuts names at 15 characters). */
export const isPostgres = (candidate: Process): boolean =>
  /^(postgres|postmaster)\b/.test(candidate.command);

/**
 * Whether a process works in that directory, as every process of a PostgreSQL server does in its
 * data directory. Compared by device and inode, so it holds through links, mounts and renames.
 *
 * @returns undefined when the kernel doesn't tell (no /proc, or another user's process)
 */
export function worksIn(directory: string, pid: number): boolean | undefined {
  try {
    const there = statSync(`/proc/${pid}/cwd`);
    const here = statSync(directory);
    return there.dev === here.dev && there.ino === here.ino;
  } catch {
    return undefined;
  }
}

/**
 * Whether a process was started as the server of that directory. Its children have other titles, but
 * for the moment after their fork.
 */
export function isPostmasterOf(directory: string, pid: number): boolean {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
    return words[words.indexOf("-D") + 1] === directory;
  } catch {
    return false;
  }
}

/** Whether it is a server that `startServer` has just started, and that hasn't entered yet. */
function isEntering(directory: string, pid: number): boolean {
  try {
    return readlinkSync(`/proc/${pid}/cwd`) === "/" && isPostmasterOf(directory, pid);
  } catch {
    return false;
  }
}

/**
 * The living processes of the server of a data directory: the postmaster, its children, and those
 * that outlived their postmaster or don't have its directory yet (these only where /proc is).
 */
export function serverProcesses(pgdata: string, postmaster: Process | undefined): Process[] {
  const parent = postmaster && stillAlive(postmaster) ? postmaster.pid : undefined;
  const directory = resolve(pgdata);
  const belongs = ({ pid, parentPid }: Process): boolean =>
    parent !== undefined && (pid === parent || parentPid === parent);
  // In this order: one that enters between the two questions is found by the second.
  const works = ({ pid }: Process): boolean =>
    isEntering(directory, pid) || worksIn(directory, pid) === true;
  return listProcesses().filter(
    (candidate) =>
      isAlive(candidate) &&
      candidate.pid !== process.pid &&
      (belongs(candidate) || (isPostgres(candidate) && works(candidate))),
  );
}

/**
 * Sends a signal to that very process.
 *
 * @returns whether it still lived
 * @throws {AppError} permission: the process belongs to another user
 */
export function sendSignal(known: Process, signal: NodeJS.Signals): boolean {
  // kill(-1) and kill(0) reach every process there is: a pid that was never checked may be either.
  invariant(
    Number.isSafeInteger(known.pid) && known.pid > 1,
    "a signal goes to a checked pid only",
  );
  if (!stillAlive(known)) {
    return false;
  }
  try {
    process.kill(known.pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") {
      return false;
    }
    throw new AppError("permission", "could not signal a process of PostgreSQL", {
      detail: { pid: known.pid, signal },
      hint: "Run this command as the user that owns the data directory.",
      cause: error,
    });
  }
}
