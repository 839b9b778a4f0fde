/** The monitor's own settings file, changed by an operator. */
import {
  changeSetting,
  httpSetting,
  loadMonitorConfig,
  nodePaths,
  parsePort,
  type SettingRule,
  saveConfig,
} from "../config.ts";
import { findBinaries } from "../pg/binaries.ts";
import { livePostmaster } from "../pg/server.ts";
import { type MonitorConfig, parseMonitorConfig } from "../shapes.ts";
import { AppError } from "../sys/errors.ts";
import { lockHolder } from "../sys/lock.ts";

const MOVED =
  "roles/monitor.ts run takes it up; then tell each keeper, with roles/keeper.ts config set monitor URI";

// biome-ignore format: one row a setting
export const MONITOR_SETTINGS: readonly SettingRule<MonitorConfig>[] = [
  { name: "pgdata", key: "pgdata", fixed: "Make a monitor in another directory with roles/monitor.ts recover." },
  { name: "pgport", key: "pgport", parse: parsePort, effect: MOVED },
  { name: "pgctl", key: "pgctl", effect: "the next start of PostgreSQL uses it" },
  { name: "nodename", key: "nodename", effect: MOVED },
  { name: "http", key: "http", parse: (text) => httpSetting({ http: text }).http,
    effect: "roles/monitor.ts run takes it up" },
  { name: "auth", key: "auth", effect: "roles/monitor.ts run takes it up" },
];

/**
 * Changes one setting in the monitor's file, which its process reads when it starts.
 *
 * @returns when the change takes effect
 * @throws {AppError} usage: no such setting or value; conflict: it can't be changed, or not while the monitor runs
 */
export async function setMonitorSetting(
  pgdata: string,
  name: string,
  text: string,
): Promise<string> {
  const config = loadMonitorConfig(pgdata);
  const paths = nodePaths(pgdata);
  const { rule, next } = changeSetting(MONITOR_SETTINGS, config, name, text, parseMonitorConfig);
  if (lockHolder(paths.lock) !== undefined || livePostmaster(pgdata) !== undefined) {
    throw new AppError("conflict", "the settings of a monitor that runs can't be changed", {
      detail: { pgdata },
      hint: "Stop it first: roles/monitor.ts stop --pgdata DIR. No client notices.",
    });
  }
  await findBinaries({ pgctl: next.pgctl });
  saveConfig(paths.monitorConfig, next);
  return rule.effect ?? "";
}
