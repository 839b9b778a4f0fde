/** A keeper's settings file: shown, changed by an operator, and read again while the keeper runs. */
import { resolve } from "node:path";
import {
  changeSetting,
  httpSetting,
  loadKeeperConfig,
  nodePaths,
  parsePort,
  type SettingRule,
  saveConfig,
} from "../config.ts";
import { type Binaries, findBinaries } from "../pg/binaries.ts";
import { dataVersion } from "../pg/commands.ts";
import { livePostmaster } from "../pg/server.ts";
import { type KeeperConfig, parseKeeperConfig } from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { lockHolder } from "../sys/lock.ts";
import { parseUri } from "../sys/sql.ts";
import { log, type Node } from "./node.ts";
import { withMonitorLogin } from "./passfile.ts";

const AT_CREATE = "It is decided when the node is created: drop the node and create it again.";
const AT_MONITOR = "The monitor holds it: roles/node.ts set changes it there.";

/** @throws {AppError} usage: it's no URI */
function checkedUri(text: string): string {
  parseUri(text);
  return text;
}

// biome-ignore format: one row a setting
export const KEEPER_SETTINGS: readonly SettingRule<KeeperConfig>[] = [
  { name: "pgdata", key: "pgdata", fixed: AT_CREATE },
  { name: "pgport", key: "pgport", parse: parsePort,
    effect: "PostgreSQL listens there from its next start on; the monitor must be told too" },
  { name: "pgctl", key: "pgctl", effect: "the next start of PostgreSQL uses it" },
  { name: "nodename", key: "nodename", fixed: AT_CREATE },
  { name: "name", key: "name", fixed: AT_MONITOR },
  { name: "formation", key: "formation", fixed: AT_CREATE },
  { name: "group", key: "group", fixed: AT_CREATE },
  { name: "dbname", key: "dbname", fixed: AT_CREATE },
  { name: "monitor", key: "monitor", parse: checkedUri,
    effect: "the keeper turns to it now" },
  { name: "auth", key: "auth", effect: "pg_hba.conf is written anew now" },
  { name: "http", key: "http", parse: (text) => httpSetting({ http: text }).http,
    effect: "the keeper serves there from its next start on" },
  { name: "hooks-dir", key: "hooksDir", parse: (text) => resolve(text), effect: "the keeper calls its programs from its next start on" },
  { name: "candidate-priority", key: "candidatePriority", fixed: AT_MONITOR },
  { name: "replication-quorum", key: "replicationQuorum", fixed: AT_MONITOR },
];

/** @throws {AppError} conflict: they are of another major version than the data */
async function binariesFor({ pgctl, pgdata }: KeeperConfig): Promise<Binaries> {
  const binaries = await findBinaries({ pgctl });
  const version = dataVersion(pgdata);
  if (version === undefined || version === binaries.major) return binaries;
  throw new AppError("conflict", "the data directory is of another major version", {
    detail: { pgdata, data: version, binaries: binaries.major },
    hint: "Name binaries of the data's version.",
  });
}

/**
 * Changes one setting in the node's file; a running keeper has to be told (SIGHUP).
 *
 * @returns when the change takes effect
 * @throws {AppError} usage: no such setting or value; conflict: it can't be changed, or not now
 */
export async function setKeeperSetting(
  pgdata: string,
  name: string,
  text: string,
): Promise<string> {
  const config = loadKeeperConfig(pgdata);
  const paths = nodePaths(pgdata);
  const { rule, next } = changeSetting(KEEPER_SETTINGS, config, name, text, parseKeeperConfig);
  const runs = lockHolder(paths.lock) !== undefined;
  if (rule.key === "pgport" && (runs || livePostmaster(pgdata) !== undefined)) {
    throw new AppError("conflict", "the port of a node that runs can't be changed", {
      detail: { pgport: config.pgport },
      hint: "Stop the node first: roles/keeper.ts stop --pgdata DIR.",
    });
  }
  if (rule.key === "pgctl") await binariesFor(next);
  saveConfig(paths.keeperConfig, rule.key === "monitor" ? withMonitorLogin(next, paths) : next);
  const now = rule.effect ?? "";
  return runs ? now : `${now}; the keeper does not run: once it does`;
}

/** What a running keeper must not change under itself. */
const FIXED: readonly (keyof KeeperConfig)[] = KEEPER_SETTINGS.filter(
  ({ fixed, key }) => key === "pgport" || fixed === AT_CREATE,
).map(({ key }) => key);

/**
 * Takes up what the node's file says now: all of it, or nothing.
 *
 * @returns the settings that have changed
 * @throws {AppError} the file can't be believed, or asks for what only a restart could bring about
 */
export async function rereadSettings(node: Node): Promise<ReadonlySet<keyof KeeperConfig>> {
  const { config } = node;
  const next = loadKeeperConfig(config.pgdata);
  const keys = Object.keys({ ...config, ...next }) as (keyof KeeperConfig)[];
  const changed = new Set(keys.filter((key) => config[key] !== next[key]));
  const fixed = FIXED.find((key) => changed.has(key));
  if (fixed !== undefined) {
    throw new AppError("config", "a setting can't be changed while the keeper runs", {
      detail: { setting: fixed, is: String(config[fixed]), given: String(next[fixed]) },
      hint: "Put the old value back, or stop the node before.",
    });
  }
  if (changed.has("pgctl")) node.binaries = await binariesFor(next);
  node.config = next;
  return changed;
}

/** A monitor has taken the node in again: from here on its word counts as anybody's. */
export function settleMembership(node: Node): void {
  if (node.config.membership !== "rejoining") return;
  const { membership: _, ...config } = node.config;
  try {
    saveConfig(node.paths.keeperConfig, config);
    node.config = config;
  } catch (error) {
    log.warn(errorText(error));
  }
}
