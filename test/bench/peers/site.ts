/** Where one system is set up: its hosts, its directory, and the services that it runs there. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import {
  cleanEnvironment,
  type Environment,
  lastLines,
  type Outcome,
  RunningRole,
  readLog,
  runCommand,
} from "../../helpers/command.ts";
import { giveTo, type Owner, serverOwner } from "../../helpers/owner.ts";
import { freePort } from "../../helpers/ports.ts";
import { signal } from "../../helpers/processes.ts";
import { Rack, removeLeftRacks } from "./rack.ts";
import type { RaceNode } from "./system.ts";

/** Longest time for a command of an operator, or of a set-up. */
const COMMAND_MS = 60_000;
const SOCKETS = "/var/run/postgresql";

let sites = 0;

export class Site implements Disposable {
  readonly rack = new Rack();
  readonly base: string;
  readonly owner: Owner = serverOwner();
  /** Is in the name of each directory that is made for this site; the pid tells whose it is. */
  readonly label: string;
  /** Of PostgreSQL's programs. */
  readonly bin: string;
  readonly #removeOnExit = () => this[Symbol.dispose]();

  constructor(system: string, bin: string) {
    this.bin = bin;
    sites += 1;
    this.label = `peers${process.pid}-${sites}-${system}`;
    this.base = mkdtempSync(join(tmpdir(), `pgaf-${this.label}-`));
    chmodSync(this.base, 0o755);
    giveTo(this.owner, this.base);
    process.once("exit", this.#removeOnExit);
  }

  address(host: string): string {
    return this.rack.host(host).host;
  }

  /** The addresses of all hosts and of the clients, as pg_hba.conf takes it. */
  get subnet(): string {
    return this.rack.testAddress.replace(/\d+$/, "0/24");
  }

  /** A directory below the base, for the servers' owner. */
  directory(name: string): string {
    const path = join(this.base, name);
    mkdirSync(path, { recursive: true });
    giveTo(this.owner, path);
    return path;
  }

  node(label: string): RaceNode {
    const address = { host: this.address(label), port: freePort() };
    return { label, address, pgdata: join(this.base, label) };
  }

  /** Each host has a home of its own. */
  environment(host: string): Environment {
    const home = this.directory(`home-${host}`);
    return cleanEnvironment({
      PATH: `${this.bin}:${process.env["PATH"] ?? "/usr/bin:/bin"}`,
      HOME: home,
      XDG_DATA_HOME: join(home, "data"),
      XDG_CONFIG_HOME: join(home, "config"),
      XDG_RUNTIME_DIR: this.directory(`home-${host}/run`),
    });
  }

  /** Runs a command on a host, as the servers' owner. @throws {Error} it failed, or took too long */
  async run(host: string, command: readonly string[], timeoutMs = COMMAND_MS): Promise<Outcome> {
    const env = this.environment(host);
    const outcome = await runCommand([...this.#as(host), ...command], { env, timeoutMs });
    if (outcome.code === 0) return outcome;
    const said = `${outcome.stdout}${outcome.stderr}`.trim();
    throw new Error(`${command.join(" ")} on ${host} ended with ${outcome.code}: ${said}`);
  }

  /** Starts a service on a host, with its log in a file of the base. */
  start(host: string, name: string, command: readonly string[]): RunningRole {
    const log = join(this.base, `${host}-${name}.log`);
    return new RunningRole([...this.#as(host), ...command], this.environment(host), log);
  }

  #as(host: string): string[] {
    const { uid, gid } = this.owner;
    const become = ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--init-groups"];
    return [...this.rack.host(host).prefix, ...become];
  }

  /** The ends of all logs, for a run that went wrong. */
  story(): string {
    return readdirSync(this.base)
      .filter((name) => name.endsWith(".log"))
      .map((name) => `--- ${name}\n${lastLines(readLog(join(this.base, name)), 15)}`)
      .join("\n");
  }

  /** Kills all that runs on the hosts; removes them and the directory. */
  [Symbol.dispose](): void {
    process.removeListener("exit", this.#removeOnExit);
    this.rack[Symbol.dispose]();
    removeBases((name) => name.startsWith(`pgaf-${this.label}-`));
  }
}

/** The postmaster of a data directory; undefined when postmaster.pid names none that lives. */
export function postmasterOf(pgdata: string): number | undefined {
  const file = join(pgdata, "postmaster.pid");
  if (!existsSync(file)) return undefined;
  const pid = Number(readFileSync(file, "utf8").split("\n")[0]);
  return pid > 1 && existsSync(`/proc/${pid}`) && !isZombie(pid) ? pid : undefined;
}

const isZombie = (pid: number): boolean => {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).startsWith("Z");
};

/** @returns the pid that was killed */
export function killPostmaster(pgdata: string): number {
  const pid = postmasterOf(pgdata);
  if (pid === undefined) throw new Error(`no PostgreSQL runs in ${pgdata}`);
  signal(pid, "SIGKILL");
  return pid;
}

/** What runs left whose processes were killed. */
export function removeLeftovers(): void {
  removeLeftRacks();
  removeBases((name) => {
    const pid = /^pgaf-peers(\d+)-/.exec(name)?.[1];
    return pid !== undefined && !existsSync(`/proc/${pid}`);
  });
}

/** Directories, and the sockets of the servers that were killed in them. */
function removeBases(isOurs: (name: string) => boolean): void {
  const bases = readdirSync(tmpdir()).filter(isOurs);
  for (const base of bases) rmSync(join(tmpdir(), base), { recursive: true, force: true });
  if (bases.length === 0 || !existsSync(SOCKETS)) return;
  for (const name of readdirSync(SOCKETS).filter((each) => each.endsWith(".lock"))) {
    const lock = join(SOCKETS, name);
    const [, pgdata = ""] = readFileSync(lock, "utf8").split("\n");
    if (!isOurs(basename(dirname(pgdata)))) continue;
    for (const path of [lock, lock.replace(/\.lock$/, "")]) rmSync(path, { force: true });
  }
}
