/**
 * Processes as a test sees them: who runs below a directory, and signals that reach only those.
 *
 * A PostgreSQL child process retitles itself, so its command line doesn't name the data directory;
 * its working directory does. Linux shows that in /proc; elsewhere `ps` and the parents must do.
 */
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";

export type ProcessInfo = {
  pid: number;
  parent: number;
  /** One letter of `ps`: R, S, D, T, Z … */
  state: string;
  command: string;
  /** "" where the system doesn't tell. */
  cwd: string;
};

/** Every process that this user may look at, without zombies. */
export function listProcesses(): ProcessInfo[] {
  const all = existsSync("/proc/self/stat") ? listFromProc() : listFromPs();
  return all.filter((process) => process.state !== "Z");
}

/** Processes that name `directory` on their command line, work in it, or descend from such a one. */
export function processesUnder(directory: string): ProcessInfo[] {
  const all = listProcesses().filter(({ pid }) => pid !== process.pid);
  const found = new Map<number, ProcessInfo>();
  for (const info of all) {
    if (isBelow(info.cwd, directory) || info.command.includes(`${directory}/`)) {
      found.set(info.pid, info);
    }
  }
  let grew = true;
  while (grew) {
    grew = false;
    for (const info of all) {
      if (!found.has(info.pid) && found.has(info.parent)) {
        found.set(info.pid, info);
        grew = true;
      }
    }
  }
  return [...found.values()];
}

/** The children of a process, e.g. all that a postmaster has started. */
export function childrenOf(pid: number): number[] {
  return listProcesses()
    .filter(({ parent }) => parent === pid)
    .map((info) => info.pid);
}

/** Whether the process runs; a zombie doesn't. Cheap on Linux: benchmarks ask it while they measure. */
export function isAlive(pid: number): boolean {
  if (!existsSync("/proc/self/stat")) return listProcesses().some((info) => info.pid === pid);
  return (readProc(String(pid))?.state ?? "Z") !== "Z";
}

/**
 * Sends a signal to one process; a process that is gone already is no error.
 *
 * @throws {RangeError} the pid isn't that of one ordinary process: 0 and -1 mean whole groups
 */
export function signal(pid: number, name: NodeJS.Signals): void {
  if (!Number.isInteger(pid) || pid <= 1) {
    throw new RangeError(`refusing to send ${name} to pid ${pid}`);
  }
  try {
    process.kill(pid, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** SIGKILL for all that runs below a directory; says what that was. */
export function killUnder(directory: string): ProcessInfo[] {
  const victims = processesUnder(directory);
  for (const { pid } of victims) signal(pid, "SIGKILL");
  return victims;
}

function isBelow(path: string, directory: string): boolean {
  return path === directory || path.startsWith(`${directory}/`);
}

function listFromProc(): ProcessInfo[] {
  return readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? (readProc(name) ?? []) : []));
}

function readProc(name: string): ProcessInfo | undefined {
  try {
    const stat = readFileSync(`/proc/${name}/stat`, "utf8");
    const [state = "?", parent = "0"] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim();
    return {
      pid: Number(name),
      parent: Number(parent),
      state,
      command,
      cwd: workingDirectory(name),
    };
  } catch {
    return undefined; // It ended while we looked.
  }
}

function workingDirectory(pid: string): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return ""; // Another user's, or a kernel thread.
  }
}

function listFromPs(): ProcessInfo[] {
  const ps = Bun.spawnSync(["ps", "-Axo", "pid=,ppid=,stat=,command="], {
    env: { ...process.env, LC_ALL: "C" },
  });
  return ps.stdout
    .toString()
    .split("\n")
    .flatMap((line) => {
      const [, pid, parent, state, command] =
        /^\s*(\d+)\s+(\d+)\s+(\S)\S*\s+(.*)$/.exec(line) ?? [];
      if (pid === undefined || parent === undefined || state === undefined) return [];
      return [{ pid: Number(pid), parent: Number(parent), state, command: command ?? "", cwd: "" }];
    });
}
