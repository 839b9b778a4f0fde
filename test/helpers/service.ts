/** One monitor or one node of a test's cluster: its commands, its running role, its PostgreSQL. */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import {
  type CommandOptions,
  type Environment,
  lastLines,
  type Outcome,
  RunningRole,
  readLog,
  roleCommand,
  runRole,
  waitForLog,
} from "./command.ts";
import { childrenOf, isAlive, signal } from "./processes.ts";
import { type Address, ask, type Login, type Row } from "./sql.ts";
import { waitFor } from "./wait.ts";

export type Transition = { from: string; to: string; why: string };

/** The host that a service runs on. */
export type Place = {
  /** What others reach it at. */
  host: string;
  /** What enters it before a command is started there. */
  prefix: readonly string[];
};

export const HERE: Place = { host: "localhost", prefix: [] };

export type ServiceOptions = {
  role: "monitor" | "keeper";
  label: string;
  /** Directory of the test; the log is `base/label.log`. */
  base: string;
  /** Where PGDATA is made, as `data/label`; the test's directory unless said otherwise. */
  data?: string;
  port: number;
  env: Environment;
  login: Login;
  /** Flags of `create` besides --pgdata and --pgport. */
  createFlags: readonly string[];
  place: Place;
};

export class Service {
  readonly role: "monitor" | "keeper";
  readonly label: string;
  readonly pgdata: string;
  readonly port: number;
  readonly address: Address;
  readonly login: Login;
  readonly logFile: string;
  readonly createFlags: readonly string[];
  readonly place: Place;
  env: Environment;
  process: RunningRole | undefined;

  constructor({ role, label, base, data, port, env, login, createFlags, place }: ServiceOptions) {
    this.role = role;
    this.label = label;
    this.pgdata = join(data ?? base, label);
    this.port = port;
    this.place = place;
    this.address = { host: place === HERE ? "127.0.0.1" : place.host, port };
    this.env = env;
    this.login = login;
    this.logFile = join(base, `${label}.log`);
    this.createFlags = createFlags;
  }

  // ------------------------------------------------------------ commands

  /** Runs a command of this service's role script: `create`, `status`, `stop`, … */
  command(
    verb: string,
    flags: readonly string[] = [],
    options: Omit<CommandOptions, "env"> = {},
  ): Promise<Outcome> {
    const args = [verb, "--pgdata", this.pgdata, ...flags];
    return runRole(this.role, args, { env: this.env, prefix: this.place.prefix, ...options });
  }

  /** @throws {Error} create ended with another code than 0 */
  async create(flags: readonly string[] = []): Promise<Outcome> {
    const outcome = await this.tryCreate(flags);
    if (outcome.code !== 0) {
      throw new Error(`${outcome.command}\nended with ${outcome.code}:\n${outcome.stderr}`);
    }
    return outcome;
  }

  tryCreate(
    flags: readonly string[] = [],
    options: Omit<CommandOptions, "env"> = {},
  ): Promise<Outcome> {
    const all = ["--pgport", String(this.port), ...this.createFlags, ...flags];
    return this.command("create", all, options);
  }

  /** Starts `run` in the background. */
  start(flags: readonly string[] = []): RunningRole {
    if (this.process?.running) throw new Error(`${this.label} runs already`);
    const command = roleCommand(this.role, ["run", "--pgdata", this.pgdata, ...flags]);
    this.process = new RunningRole([...this.place.prefix, ...command], this.env, this.logFile);
    return this.process;
  }

  // ------------------------------------------------------------ the log

  /** The log's length now: what comes later is read with `log(mark)`. */
  mark(): number {
    return existsSync(this.logFile) ? statSync(this.logFile).size : 0;
  }

  log(from = 0): string {
    return readLog(this.logFile, from);
  }

  waitForLog(pattern: RegExp, timeoutMs: number, from = 0): Promise<RegExpExecArray> {
    return waitForLog(this.logFile, pattern, timeoutMs, from);
  }

  /** The keeper's transitions since a mark, as its log tells them. */
  transitions(from = 0): Transition[] {
    const pattern = /FSM transition from "(\w+)" to "(\w+)": (.*)/g;
    return [...this.log(from).matchAll(pattern)].map(([, before = "", after = "", why = ""]) => ({
      from: before,
      to: after,
      why,
    }));
  }

  /** `["secondary", "catchingup", "secondary"]`: the states gone through since a mark. */
  path(from = 0): string[] {
    const all = this.transitions(from);
    return all.length === 0 ? [] : [all[0]?.from ?? "", ...all.map(({ to }) => to)];
  }

  // ------------------------------------------------------------ PostgreSQL

  ask(text: string, params: readonly unknown[] = [], timeoutMs = 2000): Promise<Row[]> {
    return ask(this.address, this.login, text, params, timeoutMs);
  }

  /** The pid that postmaster.pid names, when that process lives. */
  postmaster(): number | undefined {
    const file = join(this.pgdata, "postmaster.pid");
    if (!existsSync(file)) return undefined;
    const pid = Number(readFileSync(file, "utf8").split("\n")[0]);
    return Number.isInteger(pid) && pid > 1 && isAlive(pid) ? pid : undefined;
  }

  /** @throws {Error} no server runs on this PGDATA */
  requirePostmaster(): number {
    const pid = this.postmaster();
    if (pid === undefined) throw new Error(`no PostgreSQL runs in ${this.pgdata}`);
    return pid;
  }

  /** `kill -9` of the postmaster; yields its pid. */
  killPostgres(): number {
    const pid = this.requirePostmaster();
    signal(pid, "SIGKILL");
    return pid;
  }

  /** `kill -9` of the keeper and of its postmaster: nothing of this node comes back by itself. */
  async die(): Promise<void> {
    await this.kill();
    if (this.postmaster() !== undefined) this.killPostgres();
  }

  /**
   * `kill -9` of a primary that has committed to its own disk what no standby has received: the
   * table `unsent`. No client was promised that it stays; only a rewind, or a new copy, removes it.
   */
  async killWithUnsentWal(): Promise<void> {
    const walsenders = await this.ask("select pid from pg_stat_replication");
    for (const { pid } of walsenders) signal(Number(pid), "SIGSTOP");
    await this.ask("set synchronous_commit = local; create table unsent (id int)");
    this.killPostgres();
    for (const { pid } of walsenders) signal(Number(pid), "SIGKILL");
  }

  /** Stops the postmaster, and with `children` all that it started, as a hung disk would. */
  freezePostgres({ children }: { children: boolean }): number[] {
    const pid = this.requirePostmaster();
    signal(pid, "SIGSTOP");
    const frozen = [pid, ...(children ? childrenOf(pid) : [])];
    for (const each of frozen) signal(each, "SIGSTOP");
    return frozen;
  }

  /** Waits for a postmaster that isn't `before`; yields its pid. */
  newPostmaster(before: number, timeoutMs: number): Promise<number> {
    return waitFor(`another postmaster of ${this.label} than ${before}`, timeoutMs, () => {
      const pid = this.postmaster();
      return pid === before ? undefined : pid;
    });
  }

  /** Changes with a base backup, not with a rewind: the file that neither writes into in place. */
  dataDirectoryIdentity(): string {
    const { ino, birthtimeMs } = statSync(join(this.pgdata, "PG_VERSION"));
    return `${ino} ${birthtimeMs}`;
  }

  // ------------------------------------------------------------ the role's process

  /** `kill -9` of the keeper's or monitor's own process. */
  async kill(): Promise<void> {
    this.process?.signal("SIGKILL");
    await this.process?.ended(2000);
  }

  /** SIGTERM, and the end awaited. */
  async terminate(timeoutMs: number): Promise<number | null> {
    this.process?.signal("SIGCONT");
    this.process?.signal("SIGTERM");
    return (await this.process?.ended(timeoutMs)) ?? null;
  }

  describe(): string {
    const running = this.process?.running ? `pid ${this.process.pid}` : "not running";
    const server = this.postmaster() ?? "none";
    return `--- ${this.label} (${running}, port ${this.port}, postmaster ${server})\n${lastLines(this.log(), 25)}`;
  }
}
