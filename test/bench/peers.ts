/**
 * peers: the race. Outages of ours and of its peers under the same faults, in turns.
 *
 * Every system has the same: a switch and three hosts (network namespaces; repmgr needs no third),
 * PostgreSQL 15 as initdb configures it (fsync on), one synchronous standby, and a writer that tries
 * each node every 10 ms. Each turn begins with a pair that its system calls healthy. A system that
 * isn't back within 120 s is recorded so, removed, and set up anew. Each turn is a line of a file, and
 * none is left out.
 *
 * A round is a run of one setting; all systems are up in it. After the idling (first 3 runs only) they
 * go at once through the losses of hosts, each at its own pace: what is measured there are timers of
 * seconds. When all are through, they strike one by one, in each run another one first: a turn has the
 * machine alone from its strike until it's over, or for 8 s, after which it only waits, too. Others are
 * idle or wait meanwhile (one that waits costs 0.3 of a core with its writers: repmgr without its
 * standby), and none is set up or removed, which stops the writers. The next round is set up when each
 * turn is over or 40 s old; only repmgr's at its standby gets older, and goes on meanwhile.
 *
 *   bun test/bench/peers.ts [--runs 10] [--cases kill,host,…] [--systems ours,…] [--settings defaults,tuned]
 *                           [--idle-seconds 60] [--out FILE | --resume FILE]
 *
 * Needs root on Debian 12; installs the peers' packages, which stay, without starting their services.
 * Ends with 1 when ours lost an acknowledged row.
 */
import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { isRoot } from "../helpers/owner.ts";
import { oneOf, parseFlags, runScript, UsageError, wholeNumber } from "../helpers/script.ts";
import { nowMs } from "../helpers/wait.ts";
import { CASES, type CaseName, measure, PATIENCE_MS, wholePair } from "./peers/cases.ts";
import { idleCosts } from "./peers/idle.ts";
import { ours } from "./peers/ours.ts";
import { patroni } from "./peers/patroni.ts";
import { pgAutoFailover } from "./peers/pg_auto_failover.ts";
import { cgroupRoot } from "./peers/rack.ts";
import { repmgr } from "./peers/repmgr.ts";
import {
  ALONE_MS,
  estimateSeconds,
  type FaultTurn,
  type Line,
  MEASURED_MS,
  type Options,
  type Row,
  roundsOf,
  SYSTEMS,
  type SystemName,
  type Turn,
  tablesOf,
  turnsLeft,
} from "./peers/report.ts";
import { removeLeftovers, Site } from "./peers/site.ts";
import { type Entrant, SETTINGS, type Setting, type System } from "./peers/system.ts";

const ENTRANTS: Readonly<Record<SystemName, Entrant>> = {
  ours,
  pg_auto_failover: pgAutoFailover,
  patroni,
  repmgr,
};
const ROWS: readonly Row[] = ["idle", ...(Object.keys(CASES) as CaseName[])];
/** The packages are built for this version of PostgreSQL. */
const BIN = "/usr/lib/postgresql/15/bin";
const INSTALL_MS = 600_000;

const now = (): string => new Date().toISOString();
const say = (text: string): void => console.error(`${now().slice(11, 19)} ${text}`);

async function main(): Promise<number> {
  const { file, lines, options } = readCommandLine();
  const obstacle = findObstacle();
  if (obstacle !== undefined) throw new UsageError(obstacle);
  removeLeftovers();
  const present = await install(options.systems);
  for (const name of options.systems) {
    for (const setting of options.settings) {
      if (present.includes(name)) {
        console.log(`${ENTRANTS[name].title}, ${setting}: ${ENTRANTS[name].settings[setting]}`);
      }
    }
  }
  const turns = turnsLeft(options, lines).filter(({ system }) => present.includes(system));
  const minutes = estimateSeconds(turns, options.idleSeconds) / 60;
  console.log(
    `${turns.length} turns, about ${minutes.toFixed(0)} minutes; each is kept in ${file}`,
  );

  const keep = (line: Line): void => {
    lines.push(line);
    appendFileSync(file, `${JSON.stringify(line)}\n`);
  };
  await race(turns, options.idleSeconds, keep);
  console.log(tablesOf(options, lines));
  return lines.some((line) => line.kind === "run" && line.system === "ours" && line.lost) ? 1 : 0;
}

// ------------------------------------------------------------ the command line

function readCommandLine(): { file: string; lines: Line[]; options: Options } {
  const values = parseFlags({
    runs: { type: "string", default: "10" },
    cases: { type: "string", default: ROWS.join() },
    systems: { type: "string", default: SYSTEMS.join() },
    settings: { type: "string", default: SETTINGS.join() },
    "idle-seconds": { type: "string", default: "60" },
    out: { type: "string" },
    resume: { type: "string" },
  });
  const machine = `${cpus().length} cores, ${cpus()[0]?.model.trim()}`;
  const { out, resume } = values;
  if (resume !== undefined) {
    const lines = readLines(resume);
    const [first] = lines;
    if (first?.kind !== "race") throw new UsageError(`--resume: ${resume} was not made by a race`);
    const line: Line = { kind: "resumed", at: now(), machine };
    appendFileSync(resume, `${JSON.stringify(line)}\n`);
    return { file: resume, lines: [...lines, line], options: first.options };
  }
  const options: Options = {
    runs: wholeNumber("runs", values.runs),
    rows: wordsOf("cases", values.cases, ROWS),
    systems: wordsOf("systems", values.systems, SYSTEMS),
    settings: wordsOf("settings", values.settings, SETTINGS),
    idleSeconds: wholeNumber("idle-seconds", values["idle-seconds"]),
  };
  const file = out ?? `race-${now().replace(/:/g, "").slice(0, 17)}.jsonl`;
  if (existsSync(file)) throw new UsageError(`--out: ${file} is there already; --resume goes on`);
  const line: Line = { kind: "race", at: now(), machine, options };
  writeFileSync(file, `${JSON.stringify(line)}\n`);
  return { file, lines: [line], options };
}

/** The last line may be half a line, where a race was killed. */
function readLines(file: string): Line[] {
  if (!existsSync(file)) throw new UsageError(`--resume: ${file} is not there`);
  return readFileSync(file, "utf8")
    .split("\n")
    .filter(Boolean)
    .flatMap((text) => {
      try {
        return [JSON.parse(text) as Line];
      } catch {
        return [];
      }
    });
}

const wordsOf = <T extends string>(name: string, text: string, known: readonly T[]): T[] =>
  text.split(",").map((word) => oneOf(name, word, known));

// ------------------------------------------------------------ what must be there

function findObstacle(): string | undefined {
  if (!isRoot) return "network namespaces and cgroups need root";
  if (cgroupRoot() === undefined) return "no cgroup2 is mounted";
  const missing = ["ip", "nft", "nsenter", "setpriv"].filter((each) => Bun.which(each) === null);
  if (missing.length > 0) return `${missing.join(", ")} missing (iproute2, nftables, util-linux)`;
  return existsSync(`${BIN}/pg_ctl`) ? undefined : `no PostgreSQL 15 in ${BIN} (postgresql-15)`;
}

const isThere = (program: string): boolean =>
  program.startsWith("/") ? existsSync(program) : Bun.which(program) !== null;

/** Installs what is missing where Debian's packages can be had. @returns the systems that can take part */
async function install(systems: readonly SystemName[]): Promise<SystemName[]> {
  const missing = (name: SystemName) => ENTRANTS[name].programs.filter((each) => !isThere(each));
  const packages = systems.filter((name) => missing(name).length > 0);
  if (packages.length > 0 && Bun.which("apt-get") !== null) {
    const names = packages.flatMap((name) => ENTRANTS[name].packages);
    say(`installing ${names.join(", ")}`);
    await withoutServices(async () => {
      await apt(["update", "-qq"]);
      await apt(["install", "-y", "-qq", "--no-install-recommends", ...names]);
    });
  }
  return systems.filter((name) => {
    const lacks = missing(name);
    if (lacks.length > 0)
      console.log(`${ENTRANTS[name].title} is left out: no ${lacks.join(", ")}`);
    return lacks.length === 0;
  });
}

async function apt(words: readonly string[]): Promise<void> {
  const child = Bun.spawn(["apt-get", "-o", "DPkg::Lock::Timeout=120", ...words], {
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "inherit",
    timeout: INSTALL_MS,
  });
  if ((await child.exited) !== 0) say(`apt-get ${words[0]} failed`);
}

/** The packages would start services of their own on this machine. */
async function withoutServices(work: () => Promise<void>): Promise<void> {
  const policy = "/usr/sbin/policy-rc.d";
  const isMine = !existsSync(policy);
  if (isMine) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    await work();
  } finally {
    if (isMine) await Bun.file(policy).delete();
  }
}

// ------------------------------------------------------------ the race

/** A system that is up. */
type Contestant = { readonly site: Site; readonly system: System };

/** The systems of one round: each is set up when it's needed, and stays up as long as it's sound. */
class Field {
  readonly #setting: Setting;
  readonly #up = new Map<SystemName, Contestant>();
  readonly #unsound = new Set<SystemName>();
  readonly #atPlay = new Map<SystemName, Promise<void>>();

  constructor(setting: Setting) {
    this.#setting = setting;
  }

  /** Sets up those that aren't up, all at once; one that can't be is left to its turn. */
  async open(names: readonly SystemName[]): Promise<void> {
    await Promise.allSettled(names.map((name) => this.get(name)));
  }

  /** @throws {Error} it could not be set up */
  async get(name: SystemName): Promise<Contestant> {
    if (this.#unsound.delete(name)) await this.#drop(name);
    const known = this.#up.get(name);
    if (known) return known;
    const site = new Site(name, BIN);
    let system: System | undefined;
    try {
      system = await ENTRANTS[name].open(site, this.#setting);
      await wholePair(system, PATIENCE_MS);
      const contestant = { site, system };
      this.#up.set(name, contestant);
      return contestant;
    } catch (error) {
      say(`${name} could not be set up: ${error}\n${site.story()}`);
      await remove({ site, system });
      throw error;
    }
  }

  /** Its next turn begins with a new one: to remove it now would disturb whoever has a turn. */
  condemn(name: SystemName): void {
    this.#unsound.add(name);
  }

  /** The system has a turn until this promise is kept. */
  play(name: SystemName, turn: Promise<void>): Promise<void> {
    const over = turn.finally(() => this.#atPlay.delete(name));
    this.#atPlay.set(name, over);
    return over;
  }

  /** Waits until the system may have a turn: its removal, where it needs one, stops all writers for a while. */
  async rest(name: SystemName): Promise<void> {
    await this.#atPlay.get(name);
    if (this.#unsound.has(name)) await Promise.all(this.#atPlay.values());
  }

  async closeWhatRests(): Promise<void> {
    const names = [...this.#up.keys()].filter((name) => !this.#atPlay.has(name));
    for (const name of names) await this.#drop(name);
  }

  async close(): Promise<void> {
    await Promise.all(this.#atPlay.values());
    await this.closeWhatRests();
  }

  async #drop(name: SystemName): Promise<void> {
    const known = this.#up.get(name);
    this.#up.delete(name);
    if (known) await remove(known);
  }
}

async function remove({ site, system }: { site: Site; system: System | undefined }) {
  for (const label of site.rack.labels) site.rack.kill(label);
  await system?.close?.();
  site[Symbol.dispose]();
}

async function race(
  turns: readonly Turn[],
  idleSeconds: number,
  keep: (line: Line) => void,
): Promise<void> {
  let last: Field | undefined;
  for (const round of roundsOf(turns)) {
    const all = [...round.idle, ...round.atOnce.flat(), ...round.oneByOne];
    say(`run ${all[0]?.run}, ${round.setting}`);
    const field = new Field(round.setting);
    await field.open([...new Set(all.map(({ system }) => system))]);
    if (round.idle.length > 0) await idle(field, round.idle, idleSeconds, keep);
    await Promise.all(
      round.atOnce.map(async (lane) => {
        for (const turn of lane) await runTurn(field, turn, keep);
      }),
    );
    await last?.close();
    await strikeOneByOne(field, round.oneByOne, keep);
    await field.closeWhatRests();
    last = field;
  }
  await last?.close();
}

/** Comes back when those which aren't over may be left to themselves. */
async function strikeOneByOne(
  field: Field,
  turns: readonly FaultTurn[],
  keep: (line: Line) => void,
): Promise<void> {
  const measured: Promise<void>[] = [];
  for (const turn of turns) {
    await field.rest(turn.system);
    const strike = Promise.withResolvers<void>();
    const over = field.play(turn.system, runTurn(field, turn, keep, strike.resolve));
    const overOr = (ms: number) => Promise.race([over, strike.promise.then(() => Bun.sleep(ms))]);
    measured.push(overOr(MEASURED_MS));
    await overOr(ALONE_MS);
  }
  await Promise.all(measured);
}

async function idle(
  field: Field,
  turns: readonly Turn[],
  seconds: number,
  keep: (line: Line) => void,
): Promise<void> {
  const startMs = nowMs();
  const up: { turn: Turn; contestant: Contestant }[] = [];
  for (const turn of turns) {
    try {
      up.push({ turn, contestant: await field.get(turn.system) });
    } catch (error) {
      keep({ kind: "failed", at: now(), ...turn, why: String(error), tookMs: nowMs() - startMs });
    }
  }
  const costs = await idleCosts(
    up.map(({ contestant }) => contestant),
    seconds,
  );
  for (const [index, { turn }] of up.entries()) {
    const cost = costs[index];
    const tookMs = nowMs() - startMs;
    if (cost) keep({ kind: "idle", at: now(), ...turn, row: "idle", ...cost, tookMs });
  }
}

async function runTurn(
  field: Field,
  turn: FaultTurn,
  keep: (line: Line) => void,
  onStrike = () => {},
): Promise<void> {
  const startMs = nowMs();
  try {
    const { site, system } = await field.get(turn.system);
    const measured = await measure(site, system, turn.row, onStrike);
    keep({ kind: "run", at: now(), ...turn, ...measured, tookMs: nowMs() - startMs });
    const { outageMs, redundantMs, lost } = measured;
    const text = (ms: number | null) => (ms === null ? "none" : `${(ms / 1000).toFixed(2)} s`);
    say(
      `${turn.row} ${turn.system}: outage ${text(outageMs)}, redundant ${text(redundantMs)}, lost ${lost ?? "?"}`,
    );
    if (measured.trouble.length > 0) say(measured.trouble.join("\n"));
    if (outageMs === null || redundantMs === null) {
      say(`${turn.system} isn't back\n${site.story()}`);
      field.condemn(turn.system);
    }
  } catch (error) {
    keep({ kind: "failed", at: now(), ...turn, why: String(error), tookMs: nowMs() - startMs });
    say(`${turn.row} ${turn.system} failed: ${error}`);
    field.condemn(turn.system);
  }
}

await runScript("peers", main);
