/**
 * Where a server's configuration files are: in its data directory, or where Debian keeps them
 * (`/etc/postgresql/MAJOR/NAME`), and what a data directory that was copied without them needs.
 */
import { accessSync, appendFileSync, constants, existsSync, realpathSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { namesIn, readIfExists, writeDurably } from "../sys/files.ts";

const DEBIAN_ROOT = "/etc/postgresql";
const MAIN_FILE = "postgresql.conf";

/** What stands in pg_hba.conf before ours: the owner of the server by its socket, others by password. */
const FRESH: Readonly<Record<string, string>> = {
  "pg_hba.conf": [
    "local all all peer",
    "local replication all peer",
    "host all all 127.0.0.1/32 scram-sha-256",
    "host all all ::1/128 scram-sha-256",
    "",
  ].join("\n"),
  "pg_ident.conf": "",
};

function readable(path: string): string {
  try {
    return readIfExists(path) ?? "";
  } catch {
    return ""; // another user's
  }
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** The value that a file itself gives a setting; its includes are not looked at. */
export function settingIn(text: string, name: string): string | undefined {
  const pattern = new RegExp(
    `^[ \\t]*${name}(?:[ \\t]*=[ \\t]*|[ \\t]+)(?:'((?:[^']|'')*)'|([^\\s#']+))`,
    "gim",
  );
  const last = [...text.matchAll(pattern)].at(-1);
  return last?.[1]?.replaceAll("''", "'") ?? last?.[2];
}

/**
 * The postgresql.conf under `root` that names this data directory. It goes before one in the data
 * directory, which a base backup or a rewind may have brought along from another node.
 */
export function debianConfig(pgdata: string, root = DEBIAN_ROOT): string | undefined {
  const wanted = realPath(pgdata);
  for (const major of namesIn(root)) {
    for (const name of namesIn(join(root, major))) {
      const file = join(root, major, name, MAIN_FILE);
      const directory = settingIn(readable(file), "data_directory");
      if (directory !== undefined && realPath(directory) === wanted) return file;
    }
  }
  return undefined;
}

/** The postgresql.conf that the server of a data directory is started with. */
export const configFile = (pgdata: string): string =>
  debianConfig(pgdata) ?? join(pgdata, MAIN_FILE);

/** What tells `postgres` where its configuration is, if it's not in the data directory. */
export function configArguments(pgdata: string): string[] {
  const file = debianConfig(pgdata);
  return file === undefined ? [] : ["-c", `config_file=${file}`];
}

/** The pg_hba.conf that its postgresql.conf names. */
export function hbaFile(pgdata: string): string {
  const named = settingIn(readable(configFile(pgdata)), "hba_file");
  return named !== undefined && isAbsolute(named) ? named : join(pgdata, "pg_hba.conf");
}

/**
 * Has Debian's tools leave the start of this server to its keeper; `pg_ctlcluster` still works.
 *
 * @returns whether that was changed
 */
export function leaveStartToKeeper(pgdata: string, root = DEBIAN_ROOT): boolean {
  const config = debianConfig(pgdata, root);
  const file = config && join(dirname(config), "start.conf");
  const text = file && readIfExists(file);
  if (!file || text === undefined || !/^[ \t]*auto\b/m.test(text)) return false;
  writeDurably(file, text.replace(/^[ \t]*auto\b/m, "manual"), 0o644);
  return true;
}

export type ConfigTexts = ReadonlyMap<string, string>;

/** The configuration files in a data directory, to be written back where a copy comes without them. */
export function configTexts(pgdata: string): ConfigTexts {
  const names = [MAIN_FILE, ...Object.keys(FRESH)];
  return new Map(
    names.flatMap((name) => {
      const text = readIfExists(join(pgdata, name));
      return text === undefined ? [] : [[name, text] as const];
    }),
  );
}

/**
 * Gives a data directory the configuration files that it lacks, as after a copy from a server that
 * keeps its own elsewhere: this node's from before, else fresh ones.
 *
 * @param options.before what `configTexts` has read
 * @param options.sample what a new postgresql.conf begins with
 * @param options.required settings that a standby must have no less of than its primary
 * @returns whether a fresh postgresql.conf was made
 */
export function completeConfig(
  directory: string,
  options: {
    readonly before: ConfigTexts;
    readonly sample: string;
    readonly required: Readonly<Record<string, string>>;
  },
): boolean {
  const { before, sample, required } = options;
  const lacks = (name: string): boolean => !existsSync(join(directory, name));
  for (const [name, fresh] of Object.entries(FRESH)) {
    if (lacks(name)) writeDurably(join(directory, name), before.get(name) ?? fresh, 0o600);
  }
  if (!lacks(MAIN_FILE)) return false;
  const own = before.get(MAIN_FILE);
  const lines = Object.entries(required).map(([name, value]) => `${name} = ${value}\n`);
  writeDurably(join(directory, MAIN_FILE), own ?? sample + lines.join(""), 0o600);
  if (own === undefined) settleSocketDirectory(directory);
  return own === undefined;
}

/** A package's default directory for sockets may be closed to this user: Debian's is postgres's alone. */
export function settleSocketDirectory(pgdata: string): void {
  const file = join(pgdata, MAIN_FILE);
  // initdb writes the built-in default into a comment.
  const standard = /^#?unix_socket_directories = '([^',]+)/m.exec(readIfExists(file) ?? "")?.[1];
  if (standard === undefined) return;
  try {
    accessSync(standard, constants.W_OK | constants.X_OK);
  } catch {
    appendFileSync(file, "unix_socket_directories = '/tmp'\n");
  }
}
