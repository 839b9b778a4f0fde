/**
 * The settings that we manage, in two files of our own that postgresql.conf includes: those of the
 * node, and those that make it a standby.
 */
import { chownSync, existsSync, realpathSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { readIfExists, removeDurably, writeDurably } from "../sys/files.ts";
import { logger } from "../sys/log.ts";
import { configFile } from "./config_files.ts";

const log = logger("postgres");

const NODE_FILE = "postgresql-auto-failover.conf";
const STANDBY_FILE = "postgresql-auto-failover-standby.conf";
const STANDBY_SIGNAL = "standby.signal";
const OWN_HEADER = "# Written by pg_auto_failover: edits are lost at its next change.\n";
const INCLUDE_COMMENT = "# pg_auto_failover's settings: they stay last, so that they win.";
const OUR_INCLUDE =
  /^[ \t]*include(_if_exists)?[ \t]*=?[ \t]*'([^']*\/)?postgresql-auto-failover(-standby)?\.conf'/i;

/**
 * A value as it stands in postgresql.conf.
 *
 * @throws {RangeError} it holds a NUL, which no setting can
 */
export function quoteSetting(value: string): string {
  if (value.includes("\0")) {
    throw new RangeError("a setting can't hold a NUL character");
  }
  const escaped = value
    .replaceAll("\\", "\\\\")
    .replaceAll("'", "''")
    .replaceAll("\n", "\\n")
    .replaceAll("\r", "\\r");
  return `'${escaped}'`;
}

/**
 * A connection string in libpq's keyword form.
 *
 * @throws {RangeError} a keyword isn't one, or a value holds a NUL
 */
export function conninfo(parts: Readonly<Record<string, string | number>>): string {
  return Object.entries(parts)
    .map(([keyword, value]) => {
      const text = String(value);
      if (!/^[a-z_]+$/.test(keyword) || text.includes("\0")) {
        throw new RangeError(`not a part of a connection string: ${keyword}`);
      }
      const plain = /^[A-Za-z0-9_./:@%+,-]+$/.test(text);
      return `${keyword}=${plain ? text : `'${text.replaceAll(/['\\]/g, "\\$&")}'`}`;
    })
    .join(" ");
}

/** A file of settings. @throws {RangeError} a name isn't one that a setting can have */
export function renderSettings(settings: Readonly<Record<string, string>>): string {
  const lines = Object.entries(settings).map(([name, value]) => {
    if (!/^[A-Za-z_][A-Za-z0-9_.]*$/.test(name)) {
      throw new RangeError(`not the name of a setting: ${name}`);
    }
    return `${name} = ${quoteSetting(value)}\n`;
  });
  return OWN_HEADER + lines.join("");
}

/**
 * postgresql.conf with our two includes once, as its last lines; everything else as it was. Last,
 * since the last value of a setting wins, and a lost `wal_log_hints` costs a rewind years later.
 *
 * @param directory where our files are; left out, beside postgresql.conf
 */
export function withIncludes(text: string, directory = ""): string {
  const kept = text
    .split("\n")
    .filter((line) => !OUR_INCLUDE.test(line) && line.trimEnd() !== INCLUDE_COMMENT);
  while (kept.at(-1) === "") {
    kept.pop();
  }
  const ours = [NODE_FILE, STANDBY_FILE].map(
    (file) => `include_if_exists ${quoteSetting(join(directory, file))}`,
  );
  const gap = kept.length === 0 ? [] : [""];
  return [...kept, ...gap, INCLUDE_COMMENT, ...ours, ""].join("\n");
}

/** postgresql.auto.conf without some settings: what ALTER SYSTEM wrote would win over our files. */
export function withoutSettings(text: string, names: ReadonlySet<string>): string {
  return text
    .split("\n")
    .filter((line) => !names.has(/^\s*([A-Za-z_][\w.]*)/.exec(line)?.[1]?.toLowerCase() ?? ""))
    .join("\n");
}

/**
 * Replaces a configuration file of the operator's in one step, keeping its owner and mode. A
 * symbolic link stays one: the file that it points to is replaced.
 *
 * @returns whether the text differs from what was there
 */
export function rewriteConfigFile(path: string, change: (text: string) => string): boolean {
  const before = readIfExists(path);
  const after = change(before ?? "");
  if (after === (before ?? "")) {
    return false;
  }
  if (before === undefined) {
    writeDurably(path, after, 0o600);
    return true;
  }
  const real = realpathSync(path);
  const { uid, gid, mode } = statSync(real);
  writeDurably(real, after, mode & 0o7777);
  const now = statSync(real);
  if (now.uid !== uid || now.gid !== gid) {
    try {
      chownSync(real, uid, gid);
    } catch {
      log.warn("A configuration file has another owner now, since we may not give files away", {
        file: real,
      });
    }
  }
  return true;
}

function ensureIncludes(pgdata: string): boolean {
  const file = configFile(pgdata);
  const directory = file === join(pgdata, "postgresql.conf") ? "" : resolve(pgdata);
  return rewriteConfigFile(file, (text) => withIncludes(text, directory));
}

function dropAlterSystem(pgdata: string, names: readonly string[]): boolean {
  const wanted = new Set(names.map((name) => name.toLowerCase()));
  const changed = rewriteConfigFile(join(pgdata, "postgresql.auto.conf"), (text) =>
    withoutSettings(text, wanted),
  );
  if (changed) {
    log.warn("Removed settings from postgresql.auto.conf that would override managed ones");
  }
  return changed;
}

/** @returns whether the file changed */
function writeOwnFile(path: string, text: string): boolean {
  if (readIfExists(path) === text) {
    return false;
  }
  writeDurably(path, text, 0o600);
  return true;
}

/**
 * Writes the settings that a node of ours must have; they win over all others on this server. They
 * are in force after a reload or, for some, a restart.
 *
 * @param defaults more of them, which an operator may override by ALTER SYSTEM
 * @returns whether any file changed
 */
export function writeManagedSettings(
  pgdata: string,
  settings: Readonly<Record<string, string>>,
  defaults: Readonly<Record<string, string>> = {},
): boolean {
  const text = renderSettings({ ...settings, ...defaults });
  const own = writeOwnFile(join(pgdata, NODE_FILE), text);
  const included = ensureIncludes(pgdata);
  const overridden = dropAlterSystem(pgdata, Object.keys(settings));
  return own || included || overridden;
}

/**
 * Makes the server a standby at its next start; a running standby takes the connection up by a
 * reload. The signal file comes first: a crash in between leaves a standby that follows the wrong
 * server, or none, and never a second primary.
 *
 * @param standby.primaryConninfo "" to follow nobody
 * @returns whether any file changed
 */
export function writeStandbySettings(
  pgdata: string,
  standby: { readonly primaryConninfo: string; readonly primarySlotName: string },
): boolean {
  const settings = {
    primary_conninfo: standby.primaryConninfo,
    primary_slot_name: standby.primarySlotName,
    recovery_target_timeline: "latest",
  };
  ensureStandbySignal(pgdata);
  const own = writeOwnFile(join(pgdata, STANDBY_FILE), renderSettings(settings));
  const included = ensureIncludes(pgdata);
  const overridden = dropAlterSystem(pgdata, Object.keys(settings));
  return own || included || overridden;
}

/**
 * Makes the server a primary at its next start: only for one that was promoted already, or that has
 * never been a standby. The signal file goes last, for the same reason that it comes first.
 */
export function clearStandbySettings(pgdata: string): void {
  if (existsSync(join(pgdata, STANDBY_FILE))) {
    writeOwnFile(join(pgdata, STANDBY_FILE), OWN_HEADER);
  }
  if (hasStandbySignal(pgdata)) {
    removeDurably(join(pgdata, STANDBY_SIGNAL));
  }
}

export function hasStandbySignal(pgdata: string): boolean {
  return existsSync(join(pgdata, STANDBY_SIGNAL));
}

/** Makes sure that the server's next start is that of a standby, whatever its settings. */
export function ensureStandbySignal(pgdata: string): void {
  if (!hasStandbySignal(pgdata)) {
    writeDurably(join(pgdata, STANDBY_SIGNAL), "", 0o600);
  }
}
