/** The life of a node around its loop: created, run, asked, stopped and dropped. */
import { existsSync } from "node:fs";
import {
  type KeeperServices,
  loadKeeperConfig,
  makeNodeDirectory,
  type NodePaths,
  nodePaths,
  ownFileError,
  removeNodeDirectory,
  saveConfig,
  settingText,
} from "../config.ts";
import type { NodeState } from "../fsm.ts";
import { DEFAULT_POLICY } from "../group/view.ts";
import { monitorTarget, openMonitor } from "../monitor/client.ts";
import { makeHostBook } from "../pg/addresses.ts";
import { type Binaries, findBinaries, updateBefore } from "../pg/binaries.ts";
import { dataVersion } from "../pg/commands.ts";
import { leaveStartToKeeper } from "../pg/config_files.ts";
import { isPortBusy, livePostmaster, stopServer } from "../pg/server.ts";
import { prepareTls } from "../pg/tls.ts";
import type { Answer, KeeperConfig, KeeperState } from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { acquireLock, isLock, type Lock, lockHolder } from "../sys/lock.ts";
import { openNotifier } from "../sys/notify.ts";
import { waitUntil } from "../sys/retry.ts";
import { NO_TLS_PARAMS, passwordFor, withUriParams } from "../sys/sql.ts";
import { type Found, inspect } from "./existing.ts";
import { type LoopOptions, runLoop } from "./loop.ts";
import { CLEAN_STOP, log, type Node, save } from "./node.ts";
import { readSecret, withMonitorLogin, writeMonitorPassword, writeSecret } from "./passfile.ts";
import { loadState, newState, saveState } from "./state_file.ts";
import { destroyData } from "./tablespaces.ts";

const GOAL_TIMEOUT_MS = 15_000;
const JOIN_TIMEOUT_MS = 60_000;
const END_TIMEOUT_MS = 90_000;

/** @throws {AppError} conflict: another process holds it; state: its file can't be written */
export function lockNode(paths: NodePaths): Lock {
  let lock: ReturnType<typeof acquireLock>;
  try {
    lock = acquireLock(paths.lock);
  } catch (cause) {
    throw ownFileError(paths.lock, cause);
  }
  if (isLock(lock)) return lock;
  throw new AppError("conflict", "another process works on this data directory", {
    detail: { pid: lock.heldBy, lock: paths.lock },
    hint: "Stop it first, with the stop command of its role.",
  });
}

function makeNode(config: KeeperConfig, binaries: Binaries, state: KeeperState): Node {
  return {
    config,
    paths: nodePaths(config.pgdata),
    binaries,
    state,
    answer: undefined,
    policy: DEFAULT_POLICY,
    hosts: makeHostBook(),
    logins: undefined,
    secret: readSecret(nodePaths(config.pgdata)),
    server: undefined,
    sync: undefined,
    written: undefined,
    observation: undefined,
    db: undefined,
    target: undefined,
    slotsWarnedOf: new Set(),
    stopping: false,
    shutdown: undefined,
    suspect: () => undefined,
  };
}

export type Created = {
  readonly state: NodeState;
  readonly name: string | undefined;
  readonly nodeId: number | undefined;
  readonly existed: boolean;
};

/** The part of the settings that must stay the same when `create` is run again. */
const SAME: readonly (keyof KeeperConfig)[] = [
  "pgport",
  "monitor",
  "formation",
  "nodename",
  "name",
  "http",
  "hooksDir",
  "hookTimeoutMs",
  "auth",
  "tls",
  "hba",
];

/** How one logs in there may have changed since: `changeTls`. */
const isSame = (key: keyof KeeperConfig, known: KeeperConfig, given: KeeperConfig): boolean => {
  const place = (uri: string) =>
    withUriParams(uri, { ...NO_TLS_PARAMS, passfile: undefined }, true);
  if (key === "monitor") return place(known.monitor) === place(given.monitor);
  return given[key] === undefined || Bun.deepEquals(known[key], given[key]);
};

/** @returns the settings as they stand; the flags of a second create must not contradict the first */
function settleConfig(
  wanted: KeeperConfig,
  paths: NodePaths,
): { config: KeeperConfig; existed: boolean } {
  if (!existsSync(paths.keeperConfig)) return { config: wanted, existed: false };
  const config = loadKeeperConfig(wanted.pgdata);
  const different = SAME.find((key) => !isSame(key, config, wanted));
  if (different !== undefined) {
    throw new AppError(
      "conflict",
      "this data directory has a keeper already, with other settings",
      {
        detail: {
          setting: different,
          is: settingText(config[different]),
          given: settingText(wanted[different]),
        },
        hint: "Give the same flags to continue, or drop the node first: roles/keeper.ts drop --pgdata DIR.",
      },
    );
  }
  return { config, existed: true };
}

/**
 * Registers the node and brings it to its first place in the group; may be run again after it was
 * interrupted. A failure before the node has data leaves nothing behind.
 *
 * @param replicationPassword of the first node of its group: what all will replicate with
 */
export async function createNode(
  wanted: KeeperConfig,
  signals: { stop: AbortSignal; leave: AbortSignal },
  replicationPassword?: string,
): Promise<Created> {
  const paths = nodePaths(wanted.pgdata);
  if (existsSync(nodePaths(wanted.pgdata).monitorConfig)) {
    throw new AppError("conflict", "the data directory is that of a monitor", {
      detail: { pgdata: wanted.pgdata },
      hint: "A keeper needs a data directory of its own: give another --pgdata.",
    });
  }
  const given = withMonitorLogin(wanted, paths);
  if (await isRemoved(given.monitor, paths)) {
    using _gone = lockNode(paths);
    forget(paths);
  }
  const { config, existed } = settleConfig(given, paths);
  const binaries = await findBinaries({ pgctl: config.pgctl });
  const known = loadState(paths.state);
  const arrived = (state: NodeState): boolean => state !== "init" && state !== "wait_standby";
  if (existed && known && arrived(known.state) && lockHolder(paths.lock) !== undefined) {
    return { state: known.state, name: known.name, nodeId: known.nodeId, existed };
  }
  const found: Found = known ?? (await inspect(config, binaries));
  await requireFreePort(config);
  const made = !existsSync(paths.directory);
  makeNodeDirectory(paths);
  using _lock = lockNode(paths);
  try {
    await prepareTls(config.tls, config.nodename);
  } catch (error) {
    if (made) removeNodeDirectory(paths);
    throw error;
  }
  const node = makeNode(
    config,
    binaries,
    known ?? { ...newState(), data: found.data, systemIdentifier: found.systemIdentifier },
  );
  try {
    await register(node, replicationPassword);
  } catch (error) {
    if (made) removeNodeDirectory(paths);
    throw error;
  }
  if (existed && arrived(node.state.state)) {
    return {
      state: node.state.state,
      name: node.state.name,
      nodeId: node.state.nodeId,
      existed: true,
    };
  }
  if (leaveStartToKeeper(config.pgdata)) {
    log.info("Debian's start.conf of this cluster says manual now (systemctl daemon-reload)");
  }
  const state = await runLoop(node, {
    ...signals,
    until: arrived,
    failFast: { goalTimeoutMs: GOAL_TIMEOUT_MS, joinTimeoutMs: JOIN_TIMEOUT_MS },
  }).catch(async (error: unknown) => {
    // what can't work is as if it had not been registered: the next create may have other flags
    const isUntouched = !existed && node.state.data === found.data;
    const isRefused =
      error instanceof AppError && (error.kind === "conflict" || error.kind === "config");
    if (isRefused && isUntouched) await withdraw(node);
    throw error;
  });
  if (!arrived(state))
    throw new AppError("state", "create was interrupted; run it again to continue", {
      detail: { state },
    });
  if (found.formerSlot !== undefined) {
    log.warn(
      "This standby has a slot of its own now: on its primary, drop the one that it used, or its WAL is kept for nobody",
      { slot: found.formerSlot },
    );
  }
  return { state, name: node.state.name, nodeId: node.state.nodeId, existed };
}

/** A node that was removed, whether its keeper has heard of it or not, is made anew: its goals are void. */
async function isRemoved(uri: string, paths: NodePaths): Promise<boolean> {
  const state = loadState(paths.state);
  if (isOut(state)) return true;
  if (state === undefined || lockHolder(paths.lock) !== undefined) return false;
  await using monitor = openMonitor(uri);
  return await monitor.wasRemoved(state.identity);
}

/** A node that can't be what its data is: it's as if it had not been registered. */
async function withdraw({ config, paths, state }: Node): Promise<void> {
  if (state.nodeId === undefined) return;
  try {
    await using monitor = openMonitor(config.monitor);
    await monitor.removeNode(state.nodeId, true);
    removeNodeDirectory(paths);
  } catch (error) {
    log.warn(`The node stays registered: ${errorText(error)}`);
  }
}

/** Better now than after a long copy. */
export async function requireFreePort({
  pgdata,
  pgport,
}: Pick<KeeperConfig, "pgdata" | "pgport">): Promise<void> {
  if (livePostmaster(pgdata) !== undefined || !(await isPortBusy(pgport))) return;
  throw new AppError("conflict", "PostgreSQL's port is in use", {
    detail: { port: pgport },
    hint: `Stop what listens on port ${pgport}, or choose another with --pgport.`,
  });
}

/** The identity is durable before the monitor knows it, so that a second try is the same node. */
async function register(node: Node, replicationPassword: string | undefined): Promise<void> {
  const { config, paths, state } = node;
  await using monitor = openMonitor(config.monitor);
  if (loadState(paths.state) === undefined) {
    // the login, the schema and the formation are checked before anything is written
    if ((await monitor.databaseOf(config.formation)) === undefined) {
      throw new AppError("conflict", "the formation does not exist", {
        detail: { formation: config.formation },
        hint: "Give the name of an existing formation with --formation, or make it with roles/formation.ts create.",
      });
    }
    saveState(paths.state, state);
  }
  const registration = {
    formation: config.formation,
    group: config.group,
    host: config.nodename,
    port: config.pgport,
    name: config.name,
    identity: state.identity,
    systemIdentifier: state.systemIdentifier ?? undefined,
    dbname: config.dbname,
    candidatePriority: config.candidatePriority,
    replicationQuorum: config.replicationQuorum,
  };
  let answer = await monitor.register(registration);
  if (replicationPassword !== undefined && replicationPassword !== answer.secret?.password) {
    if (answer.nodes.length > 0) {
      log.warn(
        "The group has a replication password already; roles/formation.ts rotate-password changes it",
      );
    } else {
      await monitor.setReplicationPassword(config.formation, answer.groupId, replicationPassword);
      answer = await monitor.register(registration);
    }
  }
  saveConfig(paths.keeperConfig, config);
  keepPasswords(node, answer);
  save(node, {
    nodeId: answer.nodeId,
    groupId: answer.groupId,
    name: answer.name,
    incarnation: state.incarnation + 1,
  });
  node.answer = answer;
  log.info(
    `Registered node ${config.nodename}:${config.pgport} with id ${answer.nodeId} in formation "${config.formation}", group ${answer.groupId}`,
  );
}

/** From here on neither the keeper nor PostgreSQL's programs need the environment to log in anywhere. */
function keepPasswords(node: Node, { secret }: Answer): void {
  if (secret) {
    writeSecret(node.paths, secret);
    node.secret = secret;
  }
  const target = monitorTarget(node.config.monitor);
  const password = target.password ?? passwordFor(target);
  if (password !== undefined) writeMonitorPassword(node.paths, password);
}

/** @throws {AppError} state: the node has not been registered */
export function requireState(paths: NodePaths): KeeperState {
  const state = loadState(paths.state);
  if (state?.nodeId !== undefined) return state;
  throw new AppError("state", "this node has not been registered", {
    hint: "Run roles/keeper.ts create again: it continues.",
  });
}

/** Dropped, and the monitor has forgotten its number: nothing is left to be said or heard. */
const isOut = (state: KeeperState | undefined): boolean =>
  state?.state === "dropped" && state.nodeId === undefined;

/**
 * Runs the node until it's stopped.
 *
 * @param services go before those of the settings file
 * @returns "dropped" when it's no more part of the group
 */
export async function runNode(
  pgdata: string,
  services: KeeperServices,
  options: Pick<LoopOptions, "stop" | "leave" | "onReload">,
): Promise<NodeState> {
  const config = { ...loadKeeperConfig(pgdata), ...services };
  const paths = nodePaths(pgdata);
  using _lock = lockNode(paths);
  const binaries = await findBinaries({ pgctl: config.pgctl });
  if (isOut(loadState(paths.state))) return "dropped";
  const state = requireState(paths);
  const version = dataVersion(pgdata);
  if (version !== undefined && version !== binaries.major) {
    throw new AppError("conflict", "the data directory is of another major version", {
      detail: { pgdata, data: version, binaries: binaries.major },
      hint: "Name the right binaries in keeper.json, or run the old ones.",
    });
  }
  const update = updateBefore(binaries);
  if (update !== undefined) {
    log.warn(
      `This PostgreSQL may acknowledge commits without a standby in the first moments after a start: update it to ${update} or later`,
      { version: binaries.version },
    );
  }
  const node = makeNode(config, binaries, state);
  save(node, { incarnation: state.incarnation + 1 });
  log.info(
    `Keeper of node ${state.nodeId} "${state.name}" runs; last known state is "${state.state}"`,
  );
  using notifier = openNotifier();
  const ended = await runLoop(node, { ...options, notifier });
  // the next run says so as well, with or without the monitor
  if (ended === "dropped") save(node, { state: "dropped", goal: "dropped", nodeId: undefined });
  return ended;
}

/** The data stays, and nothing that would make the node come back. */
const forget = (paths: NodePaths): void => removeNodeDirectory(paths);

export type Status = {
  readonly keeper: {
    readonly pid: number | undefined;
    readonly state: NodeState;
    readonly goal: NodeState;
    readonly name: string | undefined;
    readonly nodeId: number | undefined;
  };
  readonly postgres: { readonly pid: number | undefined; readonly port: number };
  readonly pgdata: string;
};

/** Reads files only: safe at any time, and without a monitor. */
export function statusOf(pgdata: string): Status {
  const config = loadKeeperConfig(pgdata);
  const paths = nodePaths(pgdata);
  const state = loadState(paths.state) ?? newState();
  return {
    keeper: {
      pid: lockHolder(paths.lock),
      state: state.state,
      goal: state.goal,
      name: state.name,
      nodeId: state.nodeId,
    },
    postgres: { pid: livePostmaster(pgdata)?.pid, port: config.pgport },
    pgdata,
  };
}

/** Signals the process that holds the lock. @returns its pid; undefined when there is none */
export function signalRole(pgdata: string, signal: NodeJS.Signals): number | undefined {
  const pid = lockHolder(nodePaths(pgdata).lock);
  if (pid !== undefined && pid > 1) process.kill(pid, signal);
  return pid;
}

/** SIGTERM to the role's process, and waits until it has let go; a server without one is stopped too. */
export async function stopRole(pgdata: string): Promise<"is stopped" | "was not running"> {
  const { lock } = nodePaths(pgdata);
  const pid = signalRole(pgdata, "SIGTERM");
  if (pid !== undefined) {
    await waitUntil(() => (lockHolder(lock) === undefined ? true : undefined), {
      timeoutMs: END_TIMEOUT_MS,
      everyMs: 20,
      what: `process ${pid} to end`,
    });
  }
  const how = await stopServer(pgdata, CLEAN_STOP);
  return pid === undefined && how === "not running" ? "was not running" : "is stopped";
}

/**
 * Takes the node out of its group. A running keeper stops PostgreSQL, confirms, and ends; without
 * one this does it.
 */
export async function dropNode(
  pgdata: string,
  options: { destroy: boolean; force: boolean },
): Promise<void> {
  const config = loadKeeperConfig(pgdata);
  const paths = nodePaths(pgdata);
  const state = loadState(paths.state);
  // a keeper that calls no monitor would never hear that its node is removed
  if (config.membership === "disabled") await stopRole(pgdata);
  const running = lockHolder(paths.lock) !== undefined;
  if (state?.nodeId !== undefined) {
    try {
      await using monitor = openMonitor(config.monitor);
      await monitor.removeNode(state.nodeId, !running);
    } catch (error) {
      const isRefusal = error instanceof AppError && error.kind === "conflict";
      if (!options.force || isRefusal) throw error;
      log.warn(`The monitor was not told: ${errorText(error)}`);
      if (running) await stopRole(pgdata);
    }
  }
  if (running) {
    await waitUntil(() => (lockHolder(paths.lock) === undefined ? true : undefined), {
      timeoutMs: END_TIMEOUT_MS,
      everyMs: 20,
      what: "the keeper to stop PostgreSQL and end",
    });
  }
  await stopServer(pgdata, CLEAN_STOP);
  forget(paths);
  if (options.destroy) destroyData(pgdata);
}
