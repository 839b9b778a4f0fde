/** Settings of a role: flags and environment → one frozen value, kept in a file beside its state. */
import { mkdirSync, readdirSync, readFileSync, realpathSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import * as v from "valibot";
import {
  AUTH_METHODS,
  type Auth,
  type KeeperConfig,
  type MonitorConfig,
  Port,
  parseKeeperConfig,
  parseMonitorConfig,
  ShapeError,
  type TlsConfig,
} from "./shapes.ts";
import { AppError, errorText, scrub } from "./sys/errors.ts";
import { readIfExists, writeDurably } from "./sys/files.ts";
import type { HttpAddress } from "./sys/http.ts";
import { parseUri, SSL_MODES } from "./sys/sql.ts";
import { becomeOwnerOf, homeDirectory } from "./sys/user.ts";

export const DEFAULT_PORT = 5432;
/** What relative paths of flags belong to: who changes users leaves the directory too. */
const STARTED_IN = process.cwd();

/** The absolute PGDATA, links resolved as far as it exists, so that one directory has one name. */
export function resolvePgdata(flag: string | undefined): string {
  const given = flag ?? process.env["PGDATA"];
  if (!given) {
    throw new AppError("usage", "no data directory given", {
      hint: "Give --pgdata DIR, or set PGDATA.",
    });
  }
  const absolute = resolve(given);
  try {
    return realpathSync(absolute);
  } catch {
    try {
      return join(realpathSync(dirname(absolute)), basename(absolute));
    } catch {
      return absolute;
    }
  }
}

/** The data directory that a command is about; from here on this process is the user who owns it. */
export function enterPgdata(flag: string | undefined): string {
  const pgdata = resolvePgdata(flag);
  becomeOwnerOf(pgdata);
  return resolvePgdata(pgdata);
}

/** Where a node keeps its own files: never inside PGDATA, which a base backup replaces. */
export function nodeDirectory(pgdata: string): string {
  const data = process.env["XDG_DATA_HOME"] || join(homeDirectory(), ".local/share");
  return join(data, "pg_auto_failover", pgdata);
}

export type NodePaths = {
  readonly directory: string;
  readonly keeperConfig: string;
  readonly monitorConfig: string;
  readonly state: string;
  readonly memory: string;
  readonly contact: string;
  readonly lock: string;
  readonly postgresLog: string;
};

export function nodePaths(pgdata: string): NodePaths {
  const directory = nodeDirectory(pgdata);
  return {
    directory,
    keeperConfig: join(directory, "keeper.json"),
    monitorConfig: join(directory, "monitor.json"),
    state: join(directory, "state.json"),
    memory: join(directory, "memory.json"),
    contact: join(directory, "contact.json"),
    lock: join(directory, "lock"),
    postgresLog: join(directory, "postgres.log"),
  };
}

/** @throws {AppError} permission: it can't be made */
export function makeNodeDirectory(paths: NodePaths): void {
  try {
    mkdirSync(paths.directory, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new AppError("permission", "could not make the directory for this node's own files", {
      detail: { directory: paths.directory },
      hint: "Make it writable for the user who runs this node, or set XDG_DATA_HOME to a directory that is.",
      cause,
    });
  }
}

/** Removes a node's own files and the directories above them that this leaves empty. */
export function removeNodeDirectory(paths: NodePaths): void {
  rmSync(paths.directory, { recursive: true, force: true });
  let parent = dirname(paths.directory);
  while (parent.includes("pg_auto_failover")) {
    try {
      if (readdirSync(parent).length > 0) return;
      rmSync(parent, { recursive: true });
    } catch {
      return;
    }
    parent = dirname(parent);
  }
}

function load<T>(path: string, parse: (value: unknown) => T, role: string, pgdata: string): T {
  const text = readIfExists(path);
  if (text === undefined) {
    throw new AppError("state", `there is no ${role} for this data directory`, {
      detail: { pgdata },
      hint: `Create it with roles/${role}.ts create --pgdata ${pgdata}; started under another user or XDG_DATA_HOME, it's looked for elsewhere.`,
    });
  }
  return parseFile(path, text, parse);
}

/** Of the files that this software writes, and the latest that it can read. */
const FILE_VERSION = 1;

/** Parses a JSON file of ours; one line says what is wrong with it. */
export function parseFile<T>(path: string, text: string, parse: (value: unknown) => T): T {
  try {
    const value = JSON.parse(text);
    if (value?.version > FILE_VERSION) {
      throw new AppError("config", "a file of this node was written by a later release", {
        detail: { path, version: value.version, known: FILE_VERSION },
        hint: "Run the later release: this one doesn't know what the file promises.",
      });
    }
    return parse(value);
  } catch (cause) {
    if (cause instanceof AppError) throw cause;
    const reason = cause instanceof ShapeError ? cause.message : "it is not valid JSON";
    throw new AppError("config", `could not read a file of this node: ${reason}`, {
      detail: { path },
      hint: "Correct the file, restore it from a backup, or drop the node and create it again.",
      cause,
    });
  }
}

/** A setting's value for an error. */
export const settingText = (value: unknown): string =>
  typeof value === "object" ? JSON.stringify(value) : String(value);

export const loadKeeperConfig = (pgdata: string): KeeperConfig =>
  load(nodePaths(pgdata).keeperConfig, parseKeeperConfig, "keeper", pgdata);
export const loadMonitorConfig = (pgdata: string): MonitorConfig =>
  load(nodePaths(pgdata).monitorConfig, parseMonitorConfig, "monitor", pgdata);

/** A full or read-only disk is the operator's business, not a bug. */
export function ownFileError(path: string, cause: unknown): AppError {
  return new AppError("state", "could not write a file of this node", {
    detail: { path, reason: errorText(cause) },
    hint: "Make room on that file system, or set XDG_DATA_HOME to another one.",
    cause,
  });
}

export function saveConfig(path: string, config: KeeperConfig | MonitorConfig): void {
  try {
    writeDurably(path, `${JSON.stringify(config, undefined, 2)}\n`, 0o600);
  } catch (cause) {
    throw ownFileError(path, cause);
  }
}

/** One setting of a role's file, as an operator knows it. */
export type SettingRule<C> = {
  /** As the flag of `create` is called. */
  readonly name: string;
  readonly key: keyof C & string;
  /** Left out: the text as it is. */
  readonly parse?: (text: string) => unknown;
  /** Why it can't be changed, and what to do instead. */
  readonly fixed?: string;
  /** When a change takes effect. */
  readonly effect?: string;
};

/** @throws {AppError} usage: there is no such setting */
export function settingNamed<C>(rules: readonly SettingRule<C>[], name: string): SettingRule<C> {
  const rule = rules.find((each) => each.name === name);
  if (rule) return rule;
  throw new AppError("usage", "there is no such setting", {
    detail: { setting: name },
    hint: `One of: ${rules.map((each) => each.name).join(", ")}.`,
  });
}

/**
 * The settings with one of them changed.
 *
 * @throws {AppError} usage: no such setting or value; conflict: it can't be changed
 */
export function changeSetting<C extends object>(
  rules: readonly SettingRule<C>[],
  config: C,
  name: string,
  text: string,
  validate: (value: unknown) => C,
): { readonly rule: SettingRule<C>; readonly next: C } {
  const rule = settingNamed(rules, name);
  if (rule.fixed !== undefined) {
    throw new AppError("conflict", `${name} can't be changed here`, {
      detail: { is: String(config[rule.key]) },
      hint: rule.fixed,
    });
  }
  try {
    return { rule, next: validate({ ...config, [rule.key]: rule.parse?.(text) ?? text }) };
  } catch (cause) {
    if (!(cause instanceof ShapeError)) throw cause;
    throw new AppError("usage", `${name} can't have this value: ${cause.message}`, {
      detail: { value: text },
      hint: "--help of the create command says what it takes.",
      cause,
    });
  }
}

/**
 * What `config get` answers: all settings by their names, or one's value; without passwords.
 *
 * @throws {AppError} usage: there is no such setting
 */
export function showSettings<C extends object>(
  rules: readonly SettingRule<C>[],
  config: C,
  name: string | undefined,
  json: boolean,
): string {
  const shown = ({ key }: SettingRule<C>): unknown => {
    const value = config[key];
    return typeof value === "string" ? scrub(value) : (value ?? null);
  };
  if (name !== undefined) {
    const value = shown(settingNamed(rules, name));
    return json ? JSON.stringify(value) : String(value ?? "");
  }
  const all = rules.map((rule) => [rule.name, shown(rule)] as const);
  return json
    ? JSON.stringify(Object.fromEntries(all), undefined, 2)
    : all.map(([key, value]) => `${key} = ${value ?? ""}`).join("\n");
}

/** @throws {AppError} usage: not a whole number from 1 to 65535 */
export function parsePort(flag: string | undefined): number {
  if (flag === undefined) return DEFAULT_PORT;
  const result = v.safeParse(Port, /^\d+$/.test(flag) ? Number(flag) : Number.NaN);
  if (result.success) return result.output;
  throw new AppError("usage", "a port is a whole number from 1 to 65535", {
    detail: { pgport: flag },
    hint: "Give --pgport a free port, such as 5432.",
  });
}

/**
 * Where HTTP is served: `PORT` on this machine only, `HOST:PORT`, `[IPv6]:PORT`, or `*:PORT` at every address.
 *
 * @throws {AppError} usage: it is none of these
 */
export function parseHttpAddress(text: string): HttpAddress {
  const [, bracketed, bare, port = ""] =
    /^(?:(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/[\]]+)):)?(\d+)$/.exec(text) ?? [];
  const result = v.safeParse(Port, port === "" ? Number.NaN : Number(port));
  if (result.success) {
    const host = bracketed ?? bare ?? "127.0.0.1";
    return { host: host === "*" ? "0.0.0.0" : host, port: result.output };
  }
  throw new AppError("usage", "an address to serve HTTP at is [HOST:]PORT", {
    detail: { http: text },
    hint: "Give --http 8008 for this machine only, --http '*:8008' for every address, or HOST:PORT.",
  });
}

/** @throws {AppError} usage: not a whole number from `min` to `max` */
export function parseCount(name: string, value: string, max: number, min = 0): number {
  const count = /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (count >= min && count <= max) return count;
  throw new AppError("usage", `--${name} takes a whole number from ${min} to ${max}`, {
    detail: { [name]: value },
    hint: `Give --${name} a number such as ${Math.min(max, 50)}.`,
  });
}

/** The flag of every service that can serve HTTP. */
export const httpArg = {
  http: {
    type: "string",
    description:
      "Serve health checks and metrics over HTTP at [HOST:]PORT; a port alone: for this machine only",
  },
} as const;

/** What a keeper does for others on its host. */
export const keeperServiceArgs = {
  ...httpArg,
  hooksDir: {
    type: "string",
    description: "The directory of programs to call when this node's state changes",
  },
  hookTimeout: { type: "string", description: "Seconds until a hook is killed (10)" },
} as const;

export type HttpSetting = Pick<MonitorConfig, "http">;
export type KeeperServices = Pick<KeeperConfig, "http" | "hooksDir" | "hookTimeoutMs">;

/** @throws {AppError} usage: it can't be an address */
export function httpSetting(args: { readonly http?: string | undefined }): HttpSetting {
  if (args.http === undefined) return {};
  parseHttpAddress(args.http);
  return { http: args.http };
}

/** Call it before the working directory changes: a relative path is one from there. */
export function keeperServices(args: {
  readonly http?: string | undefined;
  readonly hooksDir?: string | undefined;
  readonly hookTimeout?: string | undefined;
}): KeeperServices {
  const { hooksDir, hookTimeout } = args;
  return {
    ...httpSetting(args),
    ...(hooksDir === undefined ? {} : { hooksDir: resolve(hooksDir) }),
    ...(hookTimeout === undefined
      ? {}
      : { hookTimeoutMs: 1000 * parseCount("hook-timeout", hookTimeout, 3600, 1) }),
  };
}

/** How a server of ours encrypts. */
export const tlsArgs = {
  sslSelfSigned: {
    type: "boolean",
    description: "TLS by a certificate made here: it encrypts, and proves nothing",
  },
  sslCaFile: {
    type: "string",
    description: "TLS: the authority that others' certificates come from",
  },
  sslCrlFile: { type: "string", description: "TLS: the authority's list of revoked certificates" },
  serverCert: { type: "string", description: "TLS: this server's certificate" },
  serverKey: { type: "string", description: "TLS: the key of --server-cert" },
  sslMode: {
    type: "enum",
    options: [...SSL_MODES] as string[],
    description: "How this side connects (self-signed: require; with an authority: verify-full)",
  },
} as const;

/** How a server of ours lets others in, and how it encrypts. */
export const securityArgs = {
  auth: {
    type: "enum",
    options: [...AUTH_METHODS] as string[],
    default: "trust",
    description:
      "How logins are checked; trust: from this machine not at all, others by scram-sha-256",
  },
  ...tlsArgs,
  noSsl: { type: "boolean", description: "No TLS, also where others connect over a network" },
  skipPgHba: { type: "boolean", description: "Leave pg_hba.conf alone" },
  pgHbaLan: { type: "boolean", description: "Let the local network in, by password" },
} as const;

type TlsFlags = {
  readonly sslSelfSigned?: boolean | undefined;
  readonly sslCaFile?: string | undefined;
  readonly sslCrlFile?: string | undefined;
  readonly serverCert?: string | undefined;
  readonly serverKey?: string | undefined;
  readonly sslMode?: string | undefined;
  readonly noSsl?: boolean | undefined;
};
type SecurityFlags = TlsFlags & {
  readonly auth: string;
  readonly skipPgHba?: boolean | undefined;
  readonly pgHbaLan?: boolean | undefined;
};

const clash = (message: string, hint: string): AppError => new AppError("usage", message, { hint });

/**
 * @param isRemote others reach this server over a network: without a word about it that is encrypted
 * @throws {AppError} usage: flags contradict each other, or one is missing
 */
export function parseSecurity(
  flags: SecurityFlags,
  directory: string,
  isRemote: boolean,
): Pick<KeeperConfig, "auth" | "tls" | "hba"> {
  const { noSsl, serverCert, serverKey, sslCaFile, sslCrlFile } = flags;
  const isSaid = noSsl || [serverCert, serverKey, sslCaFile, sslCrlFile].some((path) => path);
  const tls = parseTls(isRemote && !isSaid ? { ...flags, sslSelfSigned: true } : flags, directory);
  const auth = flags.auth as Auth;
  if (auth === "cert" && tls?.ca === undefined) {
    throw clash(
      "--auth cert takes certificates of an authority",
      "Give --ssl-ca-file, --server-cert and --server-key as well.",
    );
  }
  if (flags.skipPgHba && flags.pgHbaLan) {
    throw clash("--skip-pg-hba and --pg-hba-lan exclude each other", "Give one of them.");
  }
  const hba = flags.skipPgHba ? "skip" : flags.pgHbaLan ? "lan" : undefined;
  return { auth, ...(hba && { hba }), ...(tls && { tls }) };
}

/** @param directory where a self-signed certificate is kept */
export function parseTls(flags: TlsFlags, directory: string): TlsConfig | undefined {
  const paths = {
    cert: flags.serverCert,
    key: flags.serverKey,
    ca: flags.sslCaFile,
    crl: flags.sslCrlFile,
  };
  const given = Object.values(paths).some((path) => path !== undefined);
  const kinds = [given, flags.sslSelfSigned, flags.noSsl].filter((each) => each === true);
  if (kinds.length > 1) {
    throw clash(
      "--no-ssl, --ssl-self-signed and certificates exclude each other",
      "Give one of them.",
    );
  }
  const mode = flags.sslMode as TlsConfig["mode"] | undefined;
  if (!given && !flags.sslSelfSigned) {
    if (mode === undefined) return undefined;
    throw clash(
      "--ssl-mode needs a certificate",
      "Add --ssl-self-signed, or --ssl-ca-file, --server-cert and --server-key.",
    );
  }
  const isVerifying = mode === "verify-ca" || mode === "verify-full";
  if (isVerifying && paths.ca === undefined) {
    throw clash(
      "there is nothing to verify certificates by",
      `Give --ssl-ca-file, --server-cert and --server-key with --ssl-mode ${mode}, or take --ssl-mode require.`,
    );
  }
  if (flags.sslSelfSigned) {
    return {
      mode: mode ?? "require",
      selfSigned: true,
      cert: join(directory, "server.crt"),
      key: join(directory, "server.key"),
    };
  }
  const { cert, key, ca, crl } = paths;
  if (cert === undefined || key === undefined) {
    throw clash(
      "a server's TLS needs its certificate and its key",
      "Give both --server-cert and --server-key, or --ssl-self-signed.",
    );
  }
  return {
    mode: mode ?? (ca === undefined ? "require" : "verify-full"),
    selfSigned: false,
    cert: resolve(STARTED_IN, cert),
    key: resolve(STARTED_IN, key),
    ...(ca !== undefined && { ca: resolve(STARTED_IN, ca) }),
    ...(crl !== undefined && { crl: resolve(STARTED_IN, crl) }),
  };
}

/** For enable ssl. @throws {AppError} usage: no certificate is named */
export function requireTls(flags: TlsFlags, directory: string): TlsConfig {
  const tls = parseTls(flags, directory);
  if (tls) return tls;
  throw clash(
    "no certificate is named",
    "Give --ssl-self-signed, or --ssl-ca-file, --server-cert and --server-key.",
  );
}

/**
 * A password, from a file that is for its owner only, or from standard input; never from a command line.
 *
 * @param path "-": standard input
 * @throws {AppError} usage, permission: there is no password, or it's there for others to read
 */
export function readPasswordFile(path: string): string {
  let text: string;
  try {
    if (path !== "-" && (statSync(path).mode & 0o077) !== 0) {
      throw new AppError("permission", "a file with a password can be read by others", {
        detail: { path },
        hint: `chmod 600 ${path}`,
      });
    }
    text = readFileSync(path === "-" ? 0 : path, "utf8").replace(/\r?\n$/, "");
  } catch (cause) {
    if (cause instanceof AppError) throw cause;
    throw new AppError("usage", "could not read the password", {
      detail: { path, reason: errorText(cause) },
      hint: "Give a file of mode 0600 with the password in its only line, or - for standard input.",
      cause,
    });
  }
  if (text !== "" && !/[\r\n\0]/.test(text)) return text;
  throw new AppError("usage", "a password is one line, and not empty", {
    detail: { path },
    hint: "Give a file with the password in its only line, or - for standard input.",
  });
}

/** The monitor's URI from the flag or the environment; checked, and without anything connected. */
export function requireMonitorUri(flag: string | undefined): string {
  const uri = flag ?? process.env["PG_AUTOCTL_MONITOR"];
  if (!uri) {
    throw new AppError("usage", "no monitor given", {
      hint: "Give --monitor URI, as roles/monitor.ts create printed it, or set PG_AUTOCTL_MONITOR.",
    });
  }
  const { password } = parseUri(uri);
  if (password !== undefined && flag !== undefined) {
    throw new AppError("usage", "a password must not stand on a command line", {
      hint: "Put it into a file of mode 0600 that PGPASSFILE names, or ~/.pgpass, and leave it out of --monitor.",
    });
  }
  return uri;
}

/** The flags of commands that ask a monitor; `locateMonitor` makes sense of them. */
export const whereArgs = {
  pgdata: { type: "string", description: "A node's data directory on this machine (or PGDATA)" },
  monitor: { type: "string", description: "The monitor's URI (or PG_AUTOCTL_MONITOR)" },
  formation: { type: "string", description: "The formation (the node's, else default)" },
} as const;

export const groupArg = {
  type: "string",
  description: "The group (the node's, else 0)",
} as const;

/** Which monitor, formation and group a question is about: named, or those of a node on this machine. */
export function locateMonitor(args: {
  readonly pgdata?: string | undefined;
  readonly monitor?: string | undefined;
  readonly formation?: string | undefined;
  readonly group?: string | undefined;
}): { monitor: string; formation: string; group: number } {
  const group = args.group === undefined ? undefined : parseCount("group", args.group, 1_000_000);
  const named =
    args.monitor ?? (args.pgdata === undefined ? process.env["PG_AUTOCTL_MONITOR"] : undefined);
  if (named !== undefined || (args.pgdata === undefined && !process.env["PGDATA"])) {
    const monitor = requireMonitorUri(args.monitor);
    return { monitor, formation: args.formation ?? "default", group: group ?? 0 };
  }
  const config = loadKeeperConfig(enterPgdata(args.pgdata));
  const formation = args.formation ?? config.formation;
  const ofNode = formation === config.formation ? config.group : 0;
  return { monitor: config.monitor, formation, group: group ?? ofNode };
}
