/** The monitor's own PostgreSQL: created, started, migrated and kept running. */
import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
  loadMonitorConfig,
  makeNodeDirectory,
  nodePaths,
  parseHttpAddress,
  removeNodeDirectory,
  saveConfig,
  settingText,
} from "../config.ts";
import { hbaAddresses, isLoopback, localNetworks } from "../pg/addresses.ts";
import { findBinaries } from "../pg/binaries.ts";
import { dataVersion, initdb } from "../pg/commands.ts";
import {
  type Access,
  localLines,
  nodeLines,
  tlsOnlyLines,
  writeHbaBlock,
  writeIdentBlock,
} from "../pg/hba.ts";
import { awaitTls, isVerifierOf, localTarget, scramVerifier } from "../pg/local.ts";
import {
  adoptServer,
  livePostmaster,
  type Postmaster,
  type ServerProcess,
  startServer,
  stopServer,
} from "../pg/server.ts";
import { writeManagedSettings } from "../pg/settings.ts";
import { demandsTls, prepareTls, tlsParams, tlsSettings } from "../pg/tls.ts";
import type { MonitorConfig, TlsConfig } from "../shapes.ts";
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { readIfExists, writeDurably } from "../sys/files.ts";
import { serveHttp } from "../sys/http.ts";
import { lockHolder } from "../sys/lock.ts";
import { logger } from "../sys/log.ts";
import { openNotifier } from "../sys/notify.ts";
import { passfileLine, passwordOfLine } from "../sys/passfile.ts";
import { openDb, queryOnce, type Target, withUriParams } from "../sys/sql.ts";
import { currentUser } from "../sys/user.ts";
import { monitorReply, type Overview } from "./http.ts";
import { watchGroups } from "./loop.ts";
import { MIGRATIONS } from "./schema/migrations.ts";

const log = logger("monitor");

export const MONITOR_DATABASE = "pg_auto_failover";
const LOGIN = "autoctl_node";
const STOP_BOUNDS = { fastMs: 30_000, immediateMs: 5000, killMs: 5000 };
const START_TIMEOUT_MS = 60_000;
const PASSWORD_FILE = "autoctl_node.pgpass";

/** Where keepers and operators find the monitor, and how they encrypt. */
export const monitorUri = ({ nodename, pgport, tls }: MonitorConfig): string =>
  withUriParams(
    `postgres://autoctl_node@${nodename.includes(":") ? `[${nodename}]` : nodename}:${pgport}/${MONITOR_DATABASE}`,
    tls ? tlsParams(tls) : {},
  );

/** The file with autoctl_node's password, in libpq's format. */
export const passwordFile = (config: MonitorConfig): string =>
  join(nodePaths(config.pgdata).directory, PASSWORD_FILE);

const targetOf = (postmaster: Postmaster, database: string): Target =>
  localTarget(postmaster, {
    user: currentUser(),
    database,
    applicationName: "pg_auto_failover monitor",
  });

/** @throws {AppError} postgres: it does not run */
export const ownTarget = (config: MonitorConfig): Target =>
  targetOf(postmasterOf(config), MONITOR_DATABASE);

const MAX_CONNECTIONS = 2500;

function configure(config: MonitorConfig): void {
  const local = isLoopback(config.nodename);
  writeManagedSettings(config.pgdata, {
    port: String(config.pgport),
    listen_addresses: local ? "localhost" : "*",
    password_encryption: "scram-sha-256",
    // each keeper holds a connection; what is not used costs some memory's addresses
    max_connections: String(MAX_CONNECTIONS),
    // tables of a few rows: each session plans a statement once, not for each of its parameters
    plan_cache_mode: "force_generic_plan",
    // a vanished keeper's session must not keep its locks (seconds)
    tcp_keepalives_idle: "5",
    tcp_keepalives_interval: "2",
    tcp_keepalives_count: "3",
    log_min_messages: "info",
    // keepers' identities, and passwords, come as parameters
    log_parameter_max_length: "0",
    log_parameter_max_length_on_error: "0",
    logging_collector: "off",
    ...tlsSettings(config.tls),
  });
  if (config.hba === "skip") return;
  const access: Access = {
    auth: config.auth,
    type: demandsTls(config.tls) ? "hostssl" : "host",
    lan: config.hba === "lan",
  };
  const anywhere = local ? [] : config.hba === "lan" ? localNetworks(config.nodename) : ["all"];
  const loopback = config.auth === "trust" ? [] : hbaAddresses("localhost");
  writeHbaBlock(config.pgdata, [
    ...nodeLines(access, LOGIN, loopback, [MONITOR_DATABASE]),
    ...localLines({ ...access, lan: false }, config.nodename, LOGIN, [MONITOR_DATABASE]),
    ...nodeLines(access, LOGIN, anywhere, [MONITOR_DATABASE]),
    ...tlsOnlyLines(access, LOGIN),
  ]);
  // whoever the authority has given a certificate may be a node
  if (config.auth === "cert") writeIdentBlock(config.pgdata, ["/^.+$"], LOGIN);
}

async function startInstance(config: MonitorConfig, signal?: AbortSignal): Promise<ServerProcess> {
  const adopted = adoptServer(config.pgdata);
  if (adopted) return adopted;
  const binaries = await findBinaries({ pgctl: config.pgctl });
  return startServer({
    binaries,
    pgdata: config.pgdata,
    port: config.pgport,
    logFile: nodePaths(config.pgdata).postgresLog,
    timeoutMs: START_TIMEOUT_MS,
    ...(signal ? { signal } : {}),
  });
}

function postmasterOf(config: MonitorConfig): Postmaster {
  const postmaster = livePostmaster(config.pgdata);
  if (postmaster) return postmaster;
  throw new AppError("postgres", "the monitor's PostgreSQL is not running", {
    detail: { pgdata: config.pgdata },
    hint: `Start it with roles/monitor.ts run --pgdata ${config.pgdata}, and read its log: ${nodePaths(config.pgdata).postgresLog}`,
  });
}

/** autoctl_node's: in the file first, so that nobody has to know it who can't read it there. */
async function setPassword(
  config: MonitorConfig,
  maintenance: Target,
  password: string,
): Promise<void> {
  const key = { host: "*", port: config.pgport, database: MONITOR_DATABASE, user: LOGIN };
  writeDurably(passwordFile(config), `${passfileLine(key, password)}\n`, 0o600);
  // text of our own making: a verifier holds no quote
  await queryOnce(
    maintenance,
    `alter role autoctl_node password '${scramVerifier(password, randomBytes(16))}'`,
  );
}

const generatedPassword = (): string => randomBytes(24).toString("base64url");

/** @throws {AppError} conflict: another password than the given one is in use */
async function preparePassword(
  config: MonitorConfig,
  maintenance: Target,
  given: string | undefined,
): Promise<void> {
  const [login] = await queryOnce<{ rolpassword: string | null }>(
    maintenance,
    "select rolpassword from pg_authid where rolname = 'autoctl_node'",
  );
  const stored = login?.rolpassword ?? undefined;
  if (stored === undefined) {
    // the keepers know the password of the monitor that was here before
    const [kept = ""] = (readIfExists(passwordFile(config)) ?? "").split(/\r?\n/);
    const password = given ?? passwordOfLine(kept) ?? generatedPassword();
    return setPassword(config, maintenance, password);
  }
  // the file may be taken away once its password has been handed out
  if (given === undefined || isVerifierOf(given, stored)) return;
  throw new AppError("conflict", "the monitor has another password for autoctl_node", {
    hint: "Give that one, or leave --password-file out; roles/monitor.ts rotate-password changes it.",
  });
}

/**
 * Gives autoctl_node another password, at once; connections that are there go on.
 *
 * @param given undefined: a generated one
 * @throws {AppError} postgres: the monitor's PostgreSQL does not run
 */
export async function changePassword(
  config: MonitorConfig,
  given: string | undefined,
): Promise<void> {
  const maintenance = targetOf(postmasterOf(config), "postgres");
  await setPassword(config, maintenance, given ?? generatedPassword());
}

/** Database, login and schema; every part may exist already. */
async function prepareDatabase(config: MonitorConfig, password?: string): Promise<void> {
  const postmaster = postmasterOf(config);
  const maintenance = targetOf(postmaster, "postgres");
  const has = async (text: string): Promise<boolean> =>
    (await queryOnce(maintenance, text)).length > 0;
  if (!(await has("select from pg_roles where rolname = 'autoctl_node'"))) {
    await queryOnce(maintenance, "create role autoctl_node login");
  }
  await preparePassword(config, maintenance, password);
  if (!(await has(`select from pg_database where datname = '${MONITOR_DATABASE}'`))) {
    await queryOnce(maintenance, `create database ${MONITOR_DATABASE}`, [], { timeoutMs: 30_000 });
  }
  await migrate(ownTarget(config));
}

/** Runs the numbered migrations that the database hasn't had, all in one transaction. */
export async function migrate(
  target: Target,
  migrations: readonly string[] = MIGRATIONS,
): Promise<number> {
  await using db = openDb(target);
  await db.query(
    "create table if not exists public.pg_auto_failover_schema (version int primary key, at timestamptz default now())",
  );
  const [row] = await db.query<{ version: number | null }>(
    "select max(version) as version from public.pg_auto_failover_schema",
  );
  const current = row?.version ?? 0;
  if (current > migrations.length) {
    throw new AppError(
      "monitor",
      "the monitor's database was made by a later version of this software",
      {
        detail: { database_version: current, known: migrations.length },
        hint: "Run the version that made it, or a later one.",
      },
    );
  }
  const missing = migrations.slice(current);
  if (missing.length > 0) {
    const stamps = missing.map(
      (_, index) =>
        `insert into public.pg_auto_failover_schema (version) values (${current + index + 1});`,
    );
    await db.script(`begin;\n${missing.join("\n")}\n${stamps.join("\n")}\ncommit;`, {
      timeoutMs: 60_000,
    });
  }
  return missing.length;
}

function refuseOtherSettings(known: MonitorConfig, given: MonitorConfig): void {
  for (const key of ["pgport", "nodename", "auth", "tls", "hba", "http"] as const) {
    if (given[key] === undefined || Bun.deepEquals(known[key], given[key])) continue;
    throw new AppError(
      "conflict",
      "this data directory has a monitor already, with other settings",
      {
        detail: { setting: key, is: settingText(known[key]), given: settingText(given[key]) },
        hint: "Give the same flags, or drop the monitor first: roles/monitor.ts drop --pgdata DIR.",
      },
    );
  }
}

/**
 * @param password autoctl_node's; undefined: the one that it has, else a generated one
 * @returns "created", or "existed" when this very monitor was there already
 */
export async function createMonitor(
  wanted: MonitorConfig,
  password?: string,
): Promise<"created" | "existed"> {
  const paths = nodePaths(wanted.pgdata);
  const ours = existsSync(paths.monitorConfig);
  const config = ours ? { ...loadMonitorConfig(wanted.pgdata), pgctl: wanted.pgctl } : wanted;
  const binaries = await findBinaries({ pgctl: config.pgctl });
  const version = dataVersion(config.pgdata);
  if (version !== undefined && !ours) {
    throw new AppError("conflict", "the data directory holds a cluster that is not a monitor", {
      detail: { pgdata: config.pgdata },
      hint: "Give an empty or missing directory with --pgdata: a monitor has a PostgreSQL of its own.",
    });
  }
  if (version !== undefined && version !== binaries.major) {
    throw new AppError("conflict", "the data directory is of another major version", {
      detail: { pgdata: config.pgdata, data: version, binaries: binaries.major },
      hint: "Name the right binaries with --pgctl.",
    });
  }
  if (ours) refuseOtherSettings(config, wanted);
  const vacant = !existsSync(config.pgdata) || readdirSync(config.pgdata).length === 0;
  makeNodeDirectory(paths);
  try {
    await prepareTls(config.tls, config.nodename);
    saveConfig(paths.monitorConfig, config);
    if (version === undefined) {
      log.info(`Initialising a PostgreSQL cluster at "${config.pgdata}"`);
      await initdb({ binaries, pgdata: config.pgdata, timeoutMs: 120_000 });
    }
    configure(config);
    await startInstance(config);
    await prepareDatabase(config, password);
  } catch (error) {
    // a create that failed leaves nothing that blocks the next one
    if (!ours) {
      if (vacant) await removeMonitor(config).catch(() => undefined);
      else removeNodeDirectory(paths);
    }
    throw error;
  }
  return ours && version !== undefined ? "existed" : "created";
}

/** Backends of a killed server hold its port for a moment; whoever starts us wants to hear of others. */
const PORT_PATIENCE_MS = 5000;

/**
 * Keeps the instance up and serves all groups.
 *
 * @param stop ends it, and PostgreSQL with it
 * @param leave ends it at once; PostgreSQL stays, and the next run adopts it
 */
export async function runMonitor(
  { pgdata, http }: MonitorConfig,
  {
    stop,
    leave,
    onReload,
  }: {
    readonly stop: AbortSignal;
    readonly leave: AbortSignal;
    readonly onReload: (reload: () => void) => void;
  },
): Promise<void> {
  using notifier = openNotifier();
  onReload(() => {
    log.info("Reloading the settings");
    notifier.reloading(reconfigure(pgdata).catch((error: unknown) => log.error(errorText(error))));
  });
  const signal = AbortSignal.any([stop, leave]);
  signal.addEventListener("abort", () => notifier.stopping(), { once: true });
  const started = monotonicMs();
  let failures = 0;
  let wasReady = false;
  const overview: Overview = { isServing: false, groups: new Map() };
  using _http =
    http === undefined
      ? undefined
      : serveHttp(
          parseHttpAddress(http),
          (path) => monitorReply(overview, path, monotonicMs()),
          log,
        );
  while (!signal.aborted) {
    try {
      const config = loadMonitorConfig(pgdata);
      configure(config);
      const start = startInstance(config, signal);
      if (failures === 0) notifier.starting(start);
      const server = await start;
      await prepareDatabase(config);
      notifier.status(`Serving at ${monitorUri(config)}`);
      log.info(
        `PostgreSQL is running with pid ${server.pid}; the monitor is ready at ${monitorUri(config)}`,
      );
      failures = 0;
      wasReady = true;
      await watchGroups(
        ownTarget(config),
        signal,
        overview,
        tlsParams(config.tls, config.auth === "cert"),
        notifier,
      );
      if (!signal.aborted) log.warn("Lost the connection to the monitor's PostgreSQL");
    } catch (error) {
      if (signal.aborted) break;
      const conflict = error instanceof AppError && error.kind === "conflict";
      if (conflict && !wasReady && monotonicMs() - started > PORT_PATIENCE_MS) throw error;
      failures += 1;
      log.error(errorText(error));
      notifier.status(errorText(error));
      await delay(Math.min(100 * 2 ** failures, 2000), signal).catch(() => undefined);
    }
  }
  if (leave.aborted) return;
  await stopServer(pgdata, STOP_BOUNDS);
  log.info("PostgreSQL of the monitor is stopped");
}

/** What monitor.json says now, in force. */
async function reconfigure(pgdata: string): Promise<void> {
  const config = loadMonitorConfig(pgdata);
  configure(config);
  await queryOnce(targetOf(postmasterOf(config), "postgres"), "select pg_reload_conf()");
}

/**
 * Changes how the monitor encrypts, at once where it runs. Keepers whose URI has no sslmode use TLS as soon as it's there.
 *
 * @param tls undefined: no TLS of ours
 */
export async function changeMonitorTls(pgdata: string, tls: TlsConfig | undefined): Promise<void> {
  const { tls: _, ...rest } = loadMonitorConfig(pgdata);
  const config: MonitorConfig = { ...rest, ...(tls && { tls }) };
  await prepareTls(tls, config.nodename);
  saveConfig(nodePaths(pgdata).monitorConfig, config);
  if (livePostmaster(pgdata) === undefined) return;
  const pid = lockHolder(nodePaths(pgdata).lock);
  if (pid !== undefined && pid > 1) process.kill(pid, "SIGHUP");
  else await reconfigure(pgdata);
  await awaitTls(targetOf(postmasterOf(config), "postgres"), tls !== undefined);
}

export async function removeMonitor(config: MonitorConfig): Promise<void> {
  await stopServer(config.pgdata, { ...STOP_BOUNDS, fastMs: 5000 });
  rmSync(config.pgdata, { recursive: true, force: true });
  removeNodeDirectory(nodePaths(config.pgdata));
}
