/** The lines that a race leaves, and the tables made of them. Values in, text out. */
import { renderTable } from "../../../lib/sys/table.ts";
import { CASES, type CaseName, type Measured, PATIENCE_MS, takesHost } from "./cases.ts";
import type { IdleCost } from "./idle.ts";
import type { Setting } from "./system.ts";

export const SYSTEMS = ["ours", "pg_auto_failover", "patroni", "repmgr"] as const;
export type SystemName = (typeof SYSTEMS)[number];

/** A row of the race: one of the faults, or a while of idling. */
export type Row = CaseName | "idle";

export type Options = {
  readonly runs: number;
  readonly rows: readonly Row[];
  readonly systems: readonly SystemName[];
  readonly settings: readonly Setting[];
  readonly idleSeconds: number;
};

type Where = {
  readonly run: number;
  readonly setting: Setting;
  readonly system: SystemName;
  readonly tookMs: number;
};

/** Each line of the file. */
export type Line =
  | {
      readonly kind: "race";
      readonly at: string;
      readonly machine: string;
      readonly options: Options;
    }
  | { readonly kind: "resumed"; readonly at: string; readonly machine: string }
  | ({ readonly kind: "run"; readonly at: string; readonly row: CaseName } & Where & Measured)
  | ({ readonly kind: "idle"; readonly at: string; readonly row: "idle" } & Where & IdleCost)
  /** The system could not be set up, or would not get healthy before the fault. */
  | ({
      readonly kind: "failed";
      readonly at: string;
      readonly row: Row;
      readonly why: string;
    } & Where);

export type Turn = {
  readonly run: number;
  readonly setting: Setting;
  readonly row: Row;
  readonly system: SystemName;
};

/** What idling costs hardly differs from run to run: so many runs measure it. */
const IDLE_RUNS = 3;

/** All turns in their order: of each row, another system begins in each run. */
export function turnsOf({ runs, rows, systems, settings }: Options): Turn[] {
  const turns: Turn[] = [];
  for (let run = 1; run <= runs; run += 1) {
    for (const [at, setting] of settings.entries()) {
      for (const [place, row] of rows.entries()) {
        if (row === "idle" && run > IDLE_RUNS) continue;
        const first = (run - 1 + at + place) % systems.length;
        const order = [...systems.slice(first), ...systems.slice(0, first)];
        turns.push(...order.map((system) => ({ run, setting, row, system })));
      }
    }
  }
  return turns;
}

/** A turn at a fault. */
export type FaultTurn = Turn & { readonly row: CaseName };

/** The turns of one run and setting. */
export type Round = {
  readonly setting: Setting;
  readonly idle: readonly Turn[];
  /** Those that take a host: each system's in order, all systems at once. */
  readonly atOnce: readonly (readonly FaultTurn[])[];
  /** The others, which strike one by one. */
  readonly oneByOne: readonly FaultTurn[];
};

/** From its strike on a turn has the machine alone until it's over, or for so long at most. */
export const ALONE_MS = 8000;
/**
 * Setting up and removing systems stops all writers for moments, which would look like outages: neither is
 * done before each turn is over, or so long after its strike that a moment more changes nothing.
 */
export const MEASURED_MS = 40_000;

export function roundsOf(turns: readonly Turn[]): Round[] {
  const groups = Map.groupBy(turns, ({ run, setting }) => `${run} ${setting}`);
  return [...groups.values()].map((all) => {
    const faults = all.filter((turn): turn is FaultTurn => turn.row !== "idle");
    const slow = faults.filter(({ row }) => takesHost(row));
    return {
      setting: all[0]?.setting ?? "defaults",
      idle: all.filter(({ row }) => row === "idle"),
      atOnce: [...Map.groupBy(slow, ({ system }) => system).values()],
      oneByOne: faults.filter(({ row }) => !takesHost(row)),
    };
  });
}

const isDone = (lines: readonly Line[], turn: Turn): boolean =>
  lines.some(
    (line) =>
      "run" in line &&
      line.run === turn.run &&
      line.setting === turn.setting &&
      line.row === turn.row &&
      line.system === turn.system,
  );

export const turnsLeft = (options: Options, lines: readonly Line[]): Turn[] =>
  turnsOf(options).filter((turn) => !isDone(lines, turn));

/** Half of the values are this or less; `undefined` when there are none. */
export function medianOf(values: readonly number[]): number | undefined {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  if (low === undefined || high === undefined) return undefined;
  return low === high ? low : (low + high) / 2; // Two that never ended have no mean.
}

/** What never came to an end takes longer than all others. */
const timeOf = (ms: number | null): number => ms ?? Number.POSITIVE_INFINITY;

function seconds(ms: number): string {
  if (!Number.isFinite(ms)) return `>${PATIENCE_MS / 1000}`;
  return (ms / 1000).toFixed(ms < 9995 ? 2 : 1);
}

function ratio(theirs: number, ours: number | undefined): string {
  if (ours === undefined || !Number.isFinite(ours) || ours <= 0) return "";
  const times = (Number.isFinite(theirs) ? theirs : PATIENCE_MS) / ours;
  const text = times.toFixed(times < 10 ? 1 : 0);
  return ` x${Number.isFinite(theirs) ? "" : ">"}${text}`;
}

type Run = Extract<Line, { kind: "run" }>;

/** Medians, maxima and ratios to ours, of each setting. */
export function tablesOf(options: Options, lines: readonly Line[]): string {
  return options.settings
    .flatMap((setting) => [
      "",
      `== ${setting}: seconds, median (max) and times ours; synchronous replication`,
      raceTable(options, lines, setting),
      ...(options.rows.includes("idle")
        ? ["", "idle: CPU s/min and MB resident", idleTable(options, lines, setting)]
        : []),
    ])
    .join("\n");
}

function raceTable(options: Options, lines: readonly Line[], setting: Setting): string {
  const runsOf = (system: SystemName, row: Row): Run[] =>
    lines.filter(
      (line): line is Run =>
        line.kind === "run" &&
        line.setting === setting &&
        line.system === system &&
        line.row === row,
    );
  const failuresOf = (system: SystemName, row: Row): number =>
    lines.filter(
      (line) =>
        line.kind === "failed" &&
        line.setting === setting &&
        line.system === system &&
        line.row === row,
    ).length;
  const timeCell = (system: SystemName, row: Row, what: "outageMs" | "redundantMs"): string => {
    const times = (which: SystemName) => runsOf(which, row).map((run) => timeOf(run[what]));
    const median = medianOf(times(system));
    if (median === undefined) return "";
    const spread = `${seconds(median)} (${seconds(Math.max(...times(system)))})`;
    const byHand = what === "redundantMs" && runsOf(system, row).some((run) => run.byHand);
    const times_ours = system === "ours" ? "" : ratio(median, medianOf(times("ours")));
    return `${spread}${byHand ? " by hand" : ""}${times_ours}`;
  };
  const countCell = (system: SystemName, row: Row): string => {
    const runs = runsOf(system, row);
    if (runs.length === 0) return "";
    const lost = runs.map((run) => run.lost).filter((each) => each !== null);
    const unasked = runs.length - lost.length;
    const text = lost.reduce((sum, each) => sum + each, 0);
    return `${text}${unasked > 0 ? ` (${unasked} unknown)` : ""}`;
  };
  const runCell = (system: SystemName, row: Row): string => {
    const failed = failuresOf(system, row);
    return `${runsOf(system, row).length}${failed > 0 ? ` + ${failed} failed` : ""}`;
  };
  const { systems, rows } = options;
  const cells = rows
    .filter((row) => row !== "idle")
    .flatMap((row) => [
      [CASES[row].title, "outage", ...systems.map((each) => timeCell(each, row, "outageMs"))],
      ["", "redundancy", ...systems.map((each) => timeCell(each, row, "redundantMs"))],
      ["", "rows lost", ...systems.map((each) => countCell(each, row))],
      ["", "runs", ...systems.map((each) => runCell(each, row))],
    ]);
  return renderTable(["case", "what", ...systems], cells, ["case", "what"]);
}

function idleTable(options: Options, lines: readonly Line[], setting: Setting): string {
  const cell = (system: SystemName, what: keyof IdleCost): string => {
    const values = lines.flatMap((line) =>
      line.kind === "idle" && line.setting === setting && line.system === system
        ? [line[what]]
        : [],
    );
    return medianOf(values)?.toFixed(2) ?? "";
  };
  const { systems } = options;
  const rows: readonly [string, string, keyof IdleCost][] = [
    ["agent of a node", "CPU", "nodeCpu"],
    ["", "MB", "nodeMb"],
    ["monitor or etcd", "CPU", "witnessCpu"],
    ["", "MB", "witnessMb"],
  ];
  const cells = rows.map(([who, unit, what]) => [
    who,
    unit,
    ...systems.map((system) => cell(system, what)),
  ]);
  return renderTable(["who", "what", ...systems], cells, ["who", "what"]);
}

/** Seconds that a turn takes about, with the wait for a healthy pair; as measured on two cores. */
const TURN_SECONDS: Readonly<
  Record<Setting, Readonly<Record<SystemName, Readonly<Record<Row, number>>>>>
> = {
  defaults: {
    ours: { kill: 4, host: 12, partition: 15, switchover: 4, standby: 4, frozen: 35, idle: 0 },
    pg_auto_failover: {
      kill: 12,
      host: 75,
      partition: 75,
      switchover: 8,
      standby: 12,
      frozen: 135,
      idle: 0,
    },
    patroni: {
      kill: 22,
      host: 50,
      partition: 50,
      switchover: 20,
      standby: 20,
      frozen: 75,
      idle: 0,
    },
    repmgr: {
      kill: 65,
      host: 80,
      partition: 80,
      switchover: 10,
      standby: 135,
      frozen: 110,
      idle: 0,
    },
  },
  tuned: {
    ours: { kill: 4, host: 10, partition: 12, switchover: 4, standby: 4, frozen: 32, idle: 0 },
    pg_auto_failover: {
      kill: 8,
      host: 18,
      partition: 18,
      switchover: 7,
      standby: 9,
      frozen: 42,
      idle: 0,
    },
    patroni: { kill: 9, host: 38, partition: 39, switchover: 12, standby: 8, frozen: 53, idle: 0 },
    repmgr: {
      kill: 10,
      host: 21,
      partition: 19,
      switchover: 10,
      standby: 135,
      frozen: 45,
      idle: 0,
    },
  },
};
/** Of all systems at once, in each round of a setting. */
const SET_UP_SECONDS = 25;

/** As `race` goes: a round's last turns may go on while the next is at its turns of all at once. */
export function estimateSeconds(turns: readonly Turn[], idleSeconds: number): number {
  const lengthOf = ({ setting, system, row }: Turn) => TURN_SECONDS[setting][system][row];
  let at = 0;
  let lastOver = 0;
  for (const { idle, atOnce, oneByOne } of roundsOf(turns)) {
    at += SET_UP_SECONDS + (idle.length > 0 ? idleSeconds : 0);
    const lanes = atOnce.map((lane) => lane.reduce((sum, turn) => sum + lengthOf(turn), 0));
    at = Math.max(at + Math.max(0, ...lanes), lastOver);
    const over = new Map<SystemName, number>();
    let measured = at;
    for (const turn of oneByOne) {
      at = Math.max(at, over.get(turn.system) ?? 0);
      over.set(turn.system, at + lengthOf(turn));
      measured = Math.max(measured, at + Math.min(lengthOf(turn), MEASURED_MS / 1000));
      at += Math.min(lengthOf(turn), ALONE_MS / 1000);
    }
    at = Math.max(at, measured);
    lastOver = Math.max(at, ...over.values());
  }
  return Math.max(at, lastOver);
}
