/** Settings of formations and nodes: the names and units that operators type, and the columns that hold them. */
import { parseCount } from "../config.ts";
import { PRESETS } from "../group/view.ts";
import type { StateRow } from "../shapes.ts";
import { AppError } from "../sys/errors.ts";
import type { NodeMetadata } from "./client.ts";

export type FormationSetting = {
  readonly name: string;
  readonly column: string;
  /** Undefined: the value is a count or a word. */
  readonly unit: "ms" | "bytes" | undefined;
  readonly what: string;
};

// biome-ignore format: one row a setting
export const FORMATION_SETTINGS: readonly FormationSetting[] = [
  { name: "durability", column: "durability", unit: undefined,
    what: "protection: commits wait rather than exist once; availability: they wait while a standby is healthy; performance: never" },
  { name: "number-sync-standbys", column: "number_sync_standbys", unit: undefined,
    what: "how many standbys each commit waits for; 0 is 1" },
  { name: "strict-fencing", column: "strict_fencing", unit: undefined,
    what: "a new primary never opens before the old one's fence, unless that one has confirmed" },
  { name: "maximum-lag-on-failover", column: "maximum_lag_on_failover", unit: "bytes",
    what: "an asynchronous standby further behind is not promoted automatically" },
  { name: "heartbeat", column: "heartbeat_ms", unit: "ms",
    what: "a keeper reports at least this often" },
  { name: "network-partition-timeout", column: "network_partition_timeout_ms", unit: "ms",
    what: "an isolated primary stops itself after this time" },
  { name: "fence-stop-timeout", column: "fence_stop_timeout_ms", unit: "ms",
    what: "how long it may take to stop then, before it is killed" },
  { name: "node-timeout", column: "node_timeout_ms", unit: "ms",
    what: "no report for this long, and no connection: dead" },
  { name: "unreachable-primary-timeout", column: "unreachable_primary_timeout_ms", unit: "ms",
    what: "how long a standby that still receives can hold a failover back" },
  { name: "postgres-timeout", column: "postgres_timeout_ms", unit: "ms",
    what: "a server that answers no fresh connection for this long is down" },
  { name: "fast-forward-timeout", column: "fast_forward_timeout_ms", unit: "ms",
    what: "how long an elected standby may take to fetch the WAL that it lacks" },
  { name: "switchover-timeout", column: "switchover_timeout_ms", unit: "ms",
    what: "how long the primary may take to write a checkpoint and stop, until it goes on" },
  { name: "caught-up-distance", column: "caught_up_bytes", unit: "bytes",
    what: "a standby this close to its primary has caught up" },
];

/** @throws {AppError} usage: no setting has this name */
export function formationSetting(name: string): FormationSetting {
  const found = FORMATION_SETTINGS.find((each) => each.name === name || each.column === name);
  if (found) return found;
  throw new AppError("usage", "a formation has no such setting", {
    detail: { setting: name },
    hint: `One of: ${[PRESET, ...FORMATION_SETTINGS.map((each) => each.name)].join(", ")}.`,
  });
}

const FACTORS: Readonly<Record<"ms" | "bytes", Readonly<Record<string, number>>>> = {
  ms: { "": 1, ms: 1, s: 1000, min: 60_000, h: 3_600_000 },
  bytes: { "": 1, B: 1, kB: 1024, MB: 1024 ** 2, GB: 1024 ** 3, TB: 1024 ** 4 },
};

/**
 * A time in milliseconds, or a size in bytes.
 *
 * @param text with PostgreSQL's units (`2500`, `2.5s`, `16MB`), or without
 * @throws {AppError} usage: it's not one
 */
export function parseMeasure(name: string, unit: "ms" | "bytes", text: string): number {
  const [, number = "", word = ""] = /^(\d+(?:\.\d+)?) ?([A-Za-z]*)$/.exec(text) ?? [];
  const value = Number(number) * (FACTORS[unit][word] ?? Number.NaN);
  if (number !== "" && Number.isSafeInteger(value)) return value;
  const [kind, example] =
    unit === "ms"
      ? ["a time in whole milliseconds", "2500, 2500ms or 2.5s"]
      : ["a size in whole bytes", "1048576, 1024kB or 1MB"];
  throw new AppError("usage", `${name} takes ${kind}`, {
    detail: { value: text },
    hint: `Write it as ${example}.`,
  });
}

export type FormationChange = {
  readonly name: string;
  readonly value: string;
  readonly unit: string;
  /** What it sets: values by column. */
  readonly columns: Readonly<Record<string, string>>;
};

/** By column. */
const PRESET_COLUMNS = new Map(
  Object.entries(PRESETS).map(([name, timers]) => [
    name,
    Object.fromEntries(
      Object.entries(timers).map(([timer, ms]) => [
        timer.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
        String(ms),
      ]),
    ),
  ]),
);
const PRESET = "preset";
export const PRESET_NAMES = [...PRESET_COLUMNS.keys()].join(", ");

/** Whose timers these are; undefined: an operator's own. @param row of the formation, by column */
export const presetOf = (row: Readonly<Record<string, unknown>>): string | undefined =>
  [...PRESET_COLUMNS].find(([, columns]) =>
    Object.entries(columns).every(([column, value]) => String(row[column]) === value),
  )?.[0];

/**
 * What `set NAME VALUE` asks for: one setting, or the timers of a preset, which change together.
 *
 * @throws {AppError} usage: no such setting or preset; not a time, or not a size
 */
export function formationChange(name: string, text: string): FormationChange {
  if (name === PRESET) {
    const columns = PRESET_COLUMNS.get(text);
    if (columns) return { name, value: text, unit: "", columns };
    throw new AppError("usage", "there is no such preset of timers", {
      detail: { preset: text },
      hint: `One of: ${PRESET_NAMES}.`,
    });
  }
  const setting = formationSetting(name);
  const { column, unit } = setting;
  const value = unit === undefined ? text : String(parseMeasure(setting.name, unit, text));
  return { name: setting.name, value, unit: unit ?? "", columns: { [column]: value } };
}

export type NodeSetting = {
  readonly name: string;
  readonly column: keyof StateRow;
  readonly what: string;
};

// biome-ignore format: one row a setting
export const NODE_SETTINGS: readonly NodeSetting[] = [
  { name: "name", column: "nodename", what: "what commands call it" },
  { name: "host", column: "nodehost", what: "where other nodes and clients reach it" },
  { name: "port", column: "nodeport", what: "the port of its PostgreSQL" },
  { name: "candidate-priority", column: "candidate_priority", what: "0 to 100: the higher is promoted; 0: never" },
  { name: "replication-quorum", column: "replication_quorum", what: "whether commits may wait for this node" },
];

export type NodeChange =
  | { readonly metadata: NodeMetadata }
  | { readonly candidatePriority: number }
  | { readonly replicationQuorum: boolean };

/** @throws {AppError} usage: a node has no such setting, or it can't have this value */
export function nodeChange(setting: string, value: string): NodeChange {
  switch (setting) {
    case "name":
      return { metadata: { name: value } };
    case "host":
      return { metadata: { host: value } };
    case "port":
      return { metadata: { port: parseCount(setting, value, 65_535, 1) } };
    case "candidate-priority":
      return { candidatePriority: parseCount(setting, value, 100) };
    case "replication-quorum":
      if (value === "true" || value === "false") return { replicationQuorum: value === "true" };
      throw new AppError("usage", "replication-quorum is true or false", {
        detail: { value },
        hint: "Write replication-quorum true, or replication-quorum false.",
      });
    default:
      throw new AppError("usage", "a node has no such setting", {
        detail: { setting },
        hint: `One of: ${NODE_SETTINGS.map((each) => each.name).join(", ")}.`,
      });
  }
}
