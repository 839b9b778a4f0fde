/**
 * One host of a lab: a system booted by systemd-nspawn, with a disk that is an overlay over the shared
 * root file system, a network namespace and control groups of its own.
 */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { run } from "./network.ts";
import { childrenOf, killUnder, processesUnder, signal } from "./processes.ts";
import { nowMs, waitFor, within } from "./wait.ts";

/** Ends at once when its processes are killed; a system that hangs in an exit is a defect of the lab. */
const EXIT_MS = 10_000;

/** What systemd-nspawn ends with when its system wants to be booted again. */
const REBOOT = 133;

/**
 * Enters the control groups that the arguments before "--" name. Without groups of its own, a host's
 * systemd would share those of the units with every other host.
 */
const ENTER_GROUPS =
  'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"';

export type MachineOptions = {
  /** Unique on this machine. */
  name: string;
  hostname: string;
  /** Holds the host's disk and its console's output. */
  directory: string;
  /** The shared root file system. */
  base: string;
  /** A network namespace. */
  namespace: string;
};

export class Machine {
  readonly #options: MachineOptions;
  #process: Bun.Subprocess | undefined;

  /** A new host, whose disk holds what the shared root file system has. */
  constructor(options: MachineOptions) {
    this.#options = options;
    const { directory, base } = options;
    const [upper, work] = [join(directory, "upper"), join(directory, "work")];
    for (const each of [upper, work, this.#root]) mkdirSync(each, { recursive: true });
    const layers = `lowerdir=${base},upperdir=${upper},workdir=${work}`;
    run(["mount", "-t", "overlay", options.name, "-o", layers, this.#root]);
  }

  get #root(): string {
    return join(this.#options.directory, "root");
  }

  get running(): boolean {
    const child = this.#process;
    return child !== undefined && child.exitCode === null && child.signalCode === null;
  }

  /** Writes a file that everybody may read, or only root. */
  write(path: string, text: string, mode: 0o644 | 0o600 = 0o644): void {
    const file = join(this.#root, path);
    mkdirSync(join(file, ".."), { recursive: true, mode: 0o700 });
    writeFileSync(file, text, { mode });
  }

  /** What the system said while it booted. */
  console(): string {
    const file = join(this.#options.directory, "console.log");
    return existsSync(file) ? readFileSync(file, "utf8") : "";
  }

  boot(): void {
    if (this.running) throw new Error(`${this.#options.hostname} runs already`);
    const { name, hostname, directory, namespace } = this.#options;
    const log = openSync(join(directory, "console.log"), "a");
    const groups = hierarchies().map((hierarchy) => join(hierarchy, name));
    for (const group of groups) mkdirSync(group, { recursive: true });
    const nspawn = [
      ...["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"],
      ...[`--directory=${this.#root}`, `--machine=${name}`, `--hostname=${hostname}`],
      ...[`--network-namespace-path=/run/netns/${namespace}`, "--capability=CAP_NET_ADMIN"],
      ...["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"],
    ];
    this.#process = Bun.spawn(["sh", "-c", ENTER_GROUPS, "sh", ...groups, "--", ...nspawn], {
      cwd: "/",
      stdin: "ignore",
      stdout: log,
      stderr: log,
      detached: true, // Signals of our terminal don't reach it.
    });
    closeSync(log);
    void this.#process.exited.then((code) => {
      if (code === REBOOT) this.boot();
    });
  }

  /** Every process of the host is gone from one moment to the next. */
  async kill(): Promise<void> {
    const child = this.#process;
    if (child === undefined || !this.running) return;
    const init = await waitFor(`the init process of ${this.#options.hostname}`, EXIT_MS, () =>
      childrenOf(child.pid).find(isInit),
    );
    signal(init, "SIGKILL");
    await within(EXIT_MS, `the end of ${this.#options.hostname}`, child.exited);
  }

  async remove(): Promise<void> {
    await this.kill();
    removeMachines(this.#options.directory, (group) => group === this.#options.name);
  }
}

/** Whether it is the first process of a process namespace below ours. */
function isInit(pid: number): boolean {
  try {
    return /^NSpid:\s+\d+\s+1$/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false; // It ended while we looked.
  }
}

/** The hierarchies of control groups that a systemd keeps its units in: one, or with version 1 two. */
function hierarchies(): string[] {
  const top = "/sys/fs/cgroup";
  if (existsSync(join(top, "cgroup.procs"))) return [top];
  return ["systemd", "unified"]
    .map((name) => join(top, name))
    .filter((each) => existsSync(join(each, "cgroup.procs")));
}

/**
 * Ends all that runs below a directory and removes it with its mounts, and the control groups that are
 * ours by their names. Doesn't yield, so that it works in a process that exits.
 *
 * @throws {Error} something is still there after some seconds
 */
export function removeMachines(directory: string, isOurs: (group: string) => boolean): void {
  killUnder(directory);
  insist(`the end of all that runs below ${directory}`, () => {
    return processesUnder(directory).length === 0;
  });
  const mounts = readFileSync("/proc/self/mounts", "utf8").split("\n");
  for (const mount of mounts.reverse()) {
    const [, path = ""] = mount.split(" ");
    if (path.startsWith(`${directory}/`)) run(["umount", path]);
  }
  for (const hierarchy of hierarchies()) {
    for (const group of readdirSync(hierarchy)) {
      if (isOurs(group)) removeGroup(join(hierarchy, group));
    }
  }
  rmSync(directory, { recursive: true, force: true });
}

function removeGroup(group: string): void {
  for (const entry of readdirSync(group, { withFileTypes: true })) {
    if (entry.isDirectory()) removeGroup(join(group, entry.name));
  }
  insist(`${group} to be removed`, () => {
    try {
      rmdirSync(group);
      return true;
    } catch (error) {
      // A process that is dead holds its group until its parent has taken note.
      if ((error as NodeJS.ErrnoException).code !== "EBUSY") throw error;
      return false;
    }
  });
}

function insist(what: string, attempt: () => boolean): void {
  const deadlineMs = nowMs() + EXIT_MS;
  while (!attempt()) {
    if (nowMs() > deadlineMs) throw new Error(`gave up waiting for ${what}`);
    Bun.sleepSync(20);
  }
}
