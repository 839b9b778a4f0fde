/**
 * The actions that the keeper's table names: one short function each. Every one may run twice, may
 * be cut off at any point, and stops at its signal.
 */
import { existsSync, readdirSync } from "node:fs";
import { type Action, PROMISED } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import { standbyName } from "../group/quorum.ts";
import type { SyncSet } from "../group/view.ts";
import { baseBackup, controlData, ensureConfig, initdb, rewind } from "../pg/commands.ts";
import {
  ensureRoles,
  type Observation,
  promote,
  reloadTaken,
  replayedAll,
  requestReload,
} from "../pg/local.ts";
import { livePostmaster, removeMisleadingPidFile } from "../pg/server.ts";
import { clearStandbySettings, hasStandbySignal, writeStandbySettings } from "../pg/settings.ts";
import { removeTablespaces } from "../pg/tablespaces.ts";
import type { KeeperState, Peer } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { AppError, errorText, invariant } from "../sys/errors.ts";
import { removeTree } from "../sys/files.ts";
import { waitUntil } from "../sys/retry.ts";
import { openDb } from "../sys/sql.ts";
import { ancestryOf, askSource, parentTimeline, promotionOf, type Source } from "./ancestry.ts";
import {
  adoptNode,
  advanceSync,
  CLEAN_STOP,
  DRAIN_STOP,
  demotionStop,
  dropOwnSlots,
  enforceSync,
  fenceStop,
  giveUpLostData,
  localDb,
  localTargetOf,
  log,
  look,
  maintainSlots,
  type Node,
  ownId,
  peers,
  reloadSettings,
  save,
  startNode,
  stopNode,
  takeNames,
  upstreamConninfo,
  upstreamOf,
  upstreamTarget,
  writeFollowing,
  writeHba,
  writeSettings,
} from "./node.ts";
import { progressLine } from "./progress.ts";
import { copyPaths, prepareTablespaces, swapSteps } from "./tablespaces.ts";

type Transit = (node: Node, signal: AbortSignal) => Promise<void>;

const INITDB_TIMEOUT_MS = 120_000;
/** Without any progress; a backup as a whole may take as long as it takes. */
const BACKUP_STALL_MS = 120_000;
const SOURCE_READY_MS = 60_000;
const PROMOTE_TIMEOUT_MS = 60_000;
const REPLAY_TIMEOUT_MS = 60_000;
const APPLY_PATIENCE_MS = 1000;
const RECEIVE_NOTHING_MS = 15_000;

/** Nobody to wait for: a standby's names, and those of a server that has just been promoted. */
const nobody = (node: Node): SyncSet => ({
  version: 0,
  primaryId: ownId(node),
  members: [],
  number: 0,
});

/** The set that the monitor assigned, when it's meant for this node; else nobody. */
function assigned(node: Node): SyncSet {
  const set = node.answer?.sync;
  invariant(set !== undefined, "the monitor has answered");
  return set.primaryId === ownId(node) ? set : { ...nobody(node), version: set.version };
}

const initPrimary: Transit = async (node, signal) => {
  const { config, binaries } = node;
  if (hasStandbySignal(config.pgdata) || existsSync(`${config.pgdata}/recovery.signal`)) {
    throw new AppError("conflict", "the first node of a group can't be a standby", {
      detail: { pgdata: config.pgdata },
      hint: "Create its primary's node first, and this one joins with the data that it has; or promote it.",
    });
  }
  if (node.state.data === "none" && !existsSync(`${config.pgdata}/PG_VERSION`)) {
    log.info(`Initialising a PostgreSQL cluster at "${config.pgdata}"`);
    await initdb({ binaries, pgdata: config.pgdata, timeoutMs: INITDB_TIMEOUT_MS, signal });
  }
  const { systemIdentifier } = await controlData(binaries, config.pgdata);
  save(node, { data: "ready", systemIdentifier });
  writeSettings(node, { set: assigned(node) });
  writeHba(node);
  if (adoptNode(node)) await reloadSettings(node);
  else await startNode(node, "primary", signal);
  await ensureRoles(localDb(node));
  const dbname = node.answer?.dbname ?? "postgres";
  const found = await localDb(node).query("select from pg_database where datname = $1", [dbname]);
  if (found.length > 0) log.info(`Database "${dbname}" already exists, skipping`);
  else {
    const [quoted] = await localDb(node).query<{ name: string }>("select quote_ident($1) as name", [
      dbname,
    ]);
    await localDb(node).query(`create database ${quoted?.name}`, [], { timeoutMs: 30_000 });
  }
  await look(node);
};

const prepareReplication: Transit = async (node) => {
  writeHba(node);
  await ensureRoles(localDb(node));
  await reloadSettings(node);
  await admitPeers(node);
};

/** What a standby needs here before it can connect. */
async function admitPeers(node: Node): Promise<void> {
  if (writeHba(node)) await reloadSettings(node);
  await look(node);
  await maintainSlots(node);
}

const enableSync: Transit = async (node, signal) => {
  // it may take until a standby is back, and that one must be let in
  await admitPeers(node);
  await enforceSync(node, () => assigned(node), signal);
};

/** Usually in force at once; where it takes a standby's return, that is what the state stands for. */
const applySettings: Transit = async (node, signal) => {
  await enforceSync(node, () => assigned(node), signal, APPLY_PATIENCE_MS).catch((error) => {
    if (!(error instanceof AppError) || error.kind !== "timeout") throw error;
  });
};

const disableSync: Transit = async (node, signal) => {
  await advanceSync(node, assigned(node), signal);
};

const becomeSingle: Transit = async (node, signal) => {
  await advanceSync(node, assigned(node), signal);
  await look(node);
  await maintainSlots(node);
};

/** Follows nobody from here on; the walreceiver, if there was one, has ended. @param seen what it has just been seen to be */
async function receiveNothing(node: Node, signal: AbortSignal, seen?: Observation): Promise<void> {
  writeFollowing(node, undefined);
  // The settings of a promoted server that is not open yet: nothing is left to reload later.
  writeSettings(node, { set: nobody(node), readOnly: true });
  // one that was promoted by hand, and accepted by an operator, goes on from there as a standby
  const isPrimary = adoptNode(node) && !(seen ?? (await look(node))).inRecovery;
  if (isPrimary) await stopNode(node, CLEAN_STOP);
  if (!adoptNode(node)) {
    await startNode(node, "standby", signal);
    return;
  }
  await reloadSettings(node);
  if (!(await reloadTaken(localDb(node), "startup", { timeoutMs: 2000, signal }))) {
    await stopNode(node, CLEAN_STOP);
    await startNode(node, "standby", signal);
  }
  await waitUntil(async () => ((await look(node)).receiver === undefined ? true : undefined), {
    timeoutMs: 10_000,
    everyMs: 2,
    signal,
    what: "the walreceiver to end",
  });
}

/**
 * This node stops receiving, for good: a promise that is durable before it's carried out. The old
 * primary can't get an acknowledgement from here any more, whatever it believes. For an election all
 * that was received is replayed too: what is reported then is what a promotion would keep.
 */
const disconnect: Transit = async (node, signal) => {
  const seen = node.server && (await look(node).catch(() => undefined));
  if (seen?.inRecovery && seen.receiver === undefined) {
    log.info(
      "PostgreSQL cannot reach the primary server: the system view pg_stat_wal_receiver has no rows",
    );
  }
  await receiveNothing(node, signal, seen);
  if (node.state.goal !== "report_lsn") return;
  if (node.observation?.inRecovery !== true) {
    throw new AppError("state", "this server is not a standby: it can't take part in an election");
  }
  await replayedAll(localDb(node), { timeoutMs: REPLAY_TIMEOUT_MS, signal });
  await look(node);
};

/** Fetches what this node lacks from where the monitor says, and receives nothing afterwards. */
const fastForward: Transit = async (node, signal) => {
  const source = peers(node).find(({ nodeId }) => nodeId === node.answer?.fetchFrom);
  if (source === undefined) {
    throw new AppError("state", "the monitor names no standby to fetch WAL from");
  }
  log.info(
    `Fetching WAL up to ${formatLsn(source.lsn)} from node ${source.nodeId} "${source.name}" (${source.host}:${source.port})`,
  );
  if (!adoptNode(node)) await startNode(node, "standby", signal);
  try {
    // the promise to receive nothing from the old primary stays: a start after a crash follows nobody
    writeStandbySettings(node.config.pgdata, {
      primaryConninfo: upstreamConninfo(node, source),
      primarySlotName: "",
    });
    await reloadSettings(node);
    const reached = async () => ((await look(node)).replayLsn ?? 0n) >= source.lsn || undefined;
    await waitUntil(reached, {
      timeoutMs: REPLAY_TIMEOUT_MS,
      everyMs: 5,
      signal,
      what: "the missing WAL",
    });
  } finally {
    await receiveNothing(node, AbortSignal.timeout(RECEIVE_NOTHING_MS));
  }
  await look(node);
};

/** A promotion that was cut off leaves a standby, and is done again; it's proven by its timeline. */
async function ensurePromoted(
  node: Node,
  signal: AbortSignal,
  { before, reached }: { before?: Observation | undefined; reached?: KeeperState["state"] } = {},
): Promise<void> {
  const { promotedFrom } = node.state;
  invariant(promotedFrom !== null, "the timeline to leave has been saved");
  let seen = before ?? (await look(node));
  if (seen.inRecovery) {
    await promote(localDb(node), { timeoutMs: PROMOTE_TIMEOUT_MS, signal, before: seen });
    seen = await look(node);
  }
  if (seen.inRecovery || seen.timeline <= promotedFrom) {
    throw new AppError("state", "the promotion has not left its timeline behind", {
      detail: { timeline: seen.timeline, promoted_from: promotedFrom },
    });
  }
  signal.throwIfAborted();
  save(node, {
    promotion: promotionOf(node.config.pgdata, seen.timeline),
    ...(reached && { state: reached }),
  });
  log.info(`PostgreSQL is promoted: timeline ${promotedFrom} → ${seen.timeline}`);
}

/** Somebody may have promoted it by hand since it was elected: then that is the promotion. */
async function timelineToLeave(node: Node, seen: Observation | undefined): Promise<number> {
  const { pgdata } = node.config;
  if (seen === undefined) return (await controlData(node.binaries, pgdata)).reachedTimeline;
  return seen.inRecovery ? seen.timeline : parentTimeline(pgdata, seen.timeline);
}

/** Promotes, read-only for ordinary clients until the monitor says that the old primary is fenced. */
const promoteSelf: Transit = async (node, signal) => {
  const before = adoptNode(node) ? await look(node) : undefined;
  if (node.state.promotedFrom === null) {
    save(node, { promotedFrom: await timelineToLeave(node, before) });
  }
  const changed = writeSettings(node, { set: nobody(node), readOnly: true });
  if (!adoptNode(node)) await startNode(node, "standby", signal);
  else if (changed) await reloadSettings(node);
  await ensurePromoted(node, signal, { before, reached: "stop_replication" });
};

const openForWrites: Transit = async (node, signal) => {
  // it may have crashed since, and come back as the standby that it was
  if (node.state.promotedFrom !== null && node.observation?.inRecovery !== false) {
    await ensurePromoted(node, signal);
  }
  const set = assigned(node);
  if (set.number > 0) await takeNames(node, set, signal);
  writeSettings(node, {});
  // each session takes it up with its next statement, a new one at once
  await requestReload(localDb(node));
  clearStandbySettings(node.config.pgdata);
  save(node, { promotedFrom: null });
};

const stop: Transit = async (node) => {
  await stopNode(node, demotionStop(node));
};

/** For a switchover the server writes a checkpoint while it still serves, and is stopped in an orderly way then. */
const drain: Transit = async (node, signal) => {
  if (node.answer?.planned !== true || !adoptNode(node)) return stop(node, signal);
  log.info("Writing a checkpoint before PostgreSQL is stopped");
  await writeCheckpoint(node, (node.answer.policy.switchoverTimeoutMs * 2) / 3, signal);
  signal.throwIfAborted();
  const began = monotonicMs();
  if (!(await stopNode(node, DRAIN_STOP))) return;
  const tookMs = Math.round(monotonicMs() - began);
  const { state, checkpointLsn } = await controlData(node.binaries, node.config.pgdata);
  // the record begins there, and nothing follows it
  if (state === "shut down") {
    node.shutdown = { lsn: formatLsn(checkpointLsn + 1n), tookMs };
  }
};

/** Takes writes again after a failover that was called off, or a fence that nobody made use of. */
const resume: Transit = async (node, signal) => {
  writeSettings(node, { set: assigned(node) });
  if (!adoptNode(node)) await startNode(node, "primary", signal);
  const { goal } = node.state;
  if (goal === "primary" || goal === "apply_settings") await applySettings(node, signal);
};

/**
 * A running standby follows the primary, without a restart where its WAL is part of the primary's;
 * where it isn't, it's rewound, or copied anew.
 *
 * A node that has promised to receive nothing leaves that state first: were this given up half-way,
 * it would stream from the new primary and still pass for one that doesn't.
 */
const rejoin: Transit = async (node, signal) => {
  const upstream = requireUpstream(node);
  if (PROMISED.includes(node.state.state)) save(node, { state: "catchingup" });
  giveUpLostData(node);
  if (node.state.data === "ready") {
    if (!adoptNode(node)) await startNode(node, "standby", signal);
    if (node.state.following === upstream.nodeId && node.state.state === "secondary") {
      // an attempt before, cut off in between, may have written what the server has not read yet
      await reloadSettings(node);
      return;
    }
    const way = await wayBack(node, upstream);
    if (way === "copy") return takeBack(node, signal, { byCopy: true });
    if (way === "follow") {
      // a promotion that was called off before it was carried out
      if (node.state.promotedFrom !== null) save(node, { promotedFrom: null });
      writeSettings(node, { set: nobody(node), readOnly: true });
      writeFollowing(node, upstream);
      await reloadSettings(node);
      return;
    }
  }
  await rewindOrClone(node, signal);
};

/** Whether the primary goes on where this standby's WAL ends, and if not, whether a rewind would help. */
async function wayBack(node: Node, upstream: Peer): Promise<"follow" | "rewind" | "copy"> {
  const target = upstreamTarget(node, upstream);
  // In this order: what is received between the two questions would seem to be ahead of the primary.
  const seen = await look(node);
  const source = await askSource(target);
  if (source === undefined) {
    throw new AppError("postgres", "the primary does not say where it is", {
      detail: { host: upstream.host, port: upstream.port },
    });
  }
  requireSameSystem(node, source);
  const ancestry = await ancestryOf(node.config.pgdata, seen, source, target);
  if (ancestry === "part") return "follow";
  const where = `timeline ${seen.timeline}, ${formatLsn(seen.replayLsn ?? seen.lsn)}`;
  log.warn(
    ancestry === "gone"
      ? `The primary no longer has the WAL that this standby needs (${where})`
      : `This server's WAL (${where}) is not part of the primary's (timeline ${source.timeline}, ${formatLsn(source.lsn)})`,
  );
  return ancestry === "gone" || seen.timeline === source.timeline ? "copy" : "rewind";
}

function requireUpstream(node: Node): Peer {
  const upstream = upstreamOf(node);
  if (upstream) return upstream;
  throw new AppError("state", "there is no primary to follow", {
    hint: "The node goes on by itself as soon as its group has one.",
  });
}

/** Waits until the primary can be copied or rewound from: checkpointed on its timeline, our slot there. */
function sourceReady(node: Node, upstream: Peer, signal: AbortSignal): Promise<Source> {
  let last: unknown;
  return waitUntil(
    async () => {
      try {
        const source = await askSource(upstreamTarget(node, upstream));
        const ready =
          source &&
          source.checkpointTimeline >= source.timeline &&
          source.slots.includes(standbyName(ownId(node)));
        return ready ? source : undefined;
      } catch (error) {
        // a certificate that isn't accepted doesn't get better by waiting
        if (error instanceof AppError && error.kind === "config") throw error;
        last = error;
        return undefined;
      }
    },
    {
      timeoutMs: SOURCE_READY_MS,
      everyMs: 50,
      signal,
      what: "the primary to be ready for a new standby",
    },
  ).catch((error: unknown) => {
    const isSaid = error instanceof AppError && error.kind !== "timeout";
    if (last === undefined || signal.aborted || isSaid) throw error;
    throw new AppError("postgres", `the primary is not ready for a standby: ${errorText(last)}`, {
      detail: { host: upstream.host, port: upstream.port },
      hint: "The primary's log, and that of its keeper, say more; create can be run again.",
      cause: last,
    });
  });
}

function requireSameSystem(node: Node, source: Source): void {
  const own = node.state.systemIdentifier;
  if (own === null || own === source.systemIdentifier) return;
  throw new AppError("conflict", "the data directory belongs to another cluster than the primary", {
    detail: { pgdata: node.config.pgdata, own, primary: source.systemIdentifier },
    hint: "Create the node over an empty directory.",
  });
}

/** For the primary's tablespaces; nothing has been touched when they can't have their place here. */
const makePlaces = (node: Node, upstream: Peer, { tablespaces }: Source): Promise<void> =>
  prepareTablespaces(
    node.config.pgdata,
    node.binaries.major,
    upstreamTarget(node, upstream),
    tablespaces,
  );

/** A base backup beside the data directory, which is replaced only by a complete one. */
async function clone(
  node: Node,
  upstream: Peer,
  source: Source,
  signal: AbortSignal,
): Promise<void> {
  const { config, binaries } = node;
  const [copy] = copyPaths(config.pgdata);
  if (node.state.data !== "copied") {
    // what is there already is no use to a start, but stays until the copy is complete
    save(node, { data: "copying" });
    removeTablespaces(copy);
    removeTree(copy);
    log.info(`Copying the primary with pg_basebackup from ${upstream.host}:${upstream.port}`);
    const progress = progressLine("pg_basebackup");
    await baseBackup({
      binaries,
      target: copy,
      conninfo: upstreamConninfo(node, upstream),
      slot: standbyName(ownId(node)),
      tablespaces: source.tablespaces,
      timeoutMs: BACKUP_STALL_MS,
      signal,
      onProgress: progress,
    });
    await ensureConfig(binaries, config.pgdata, { directory: copy });
    save(node, { data: "copied" });
  }
  await stopNode(node, fenceStop(node));
  for (const _ of swapSteps(config.pgdata));
  save(node, { data: "ready", systemIdentifier: source.systemIdentifier });
}

async function rewindFrom(
  node: Node,
  upstream: Peer,
  source: Source,
  signal: AbortSignal,
): Promise<void> {
  const { config, binaries } = node;
  const { reachedTimeline: timeline, state } = await controlData(binaries, config.pgdata);
  if (timeline === source.timeline) {
    // pg_rewind takes servers with the same timeline for the same history, which two promotions disprove
    if (!state.includes("recovery")) {
      throw new AppError("conflict", "both servers were promoted to the same timeline", {
        detail: { timeline },
      });
    }
    log.info(`No rewind is needed: this node is on timeline ${timeline} already`);
    return;
  }
  // a crashed server is brought to a clean end first: nothing may wait for a standby then
  writeSettings(node, { set: nobody(node) });
  removeMisleadingPidFile(config.pgdata);
  save(node, { data: "rewinding" });
  log.info(
    `Rewinding with pg_rewind to ${upstream.host}:${upstream.port}, timeline ${timeline} → ${source.timeline}`,
  );
  await rewind({
    binaries,
    pgdata: config.pgdata,
    source: upstreamConninfo(node, upstream),
    signal,
    onProgress: progressLine("pg_rewind"),
  });
  save(node, { data: "ready" });
}

async function startAsStandby(node: Node, upstream: Peer, signal: AbortSignal): Promise<void> {
  node.written = undefined;
  save(node, { promotedFrom: null });
  await ensureConfig(node.binaries, node.config.pgdata);
  writeSettings(node, { set: nobody(node), readOnly: true });
  writeFollowing(node, upstream);
  await startNode(node, "standby", signal);
  await dropOwnSlots(node);
}

/** @param options byCopy: a rewind is of no use, the data of this node is given up, though not before its server is stopped */
async function takeBack(
  node: Node,
  signal: AbortSignal,
  { byCopy }: { readonly byCopy: boolean },
): Promise<void> {
  giveUpLostData(node);
  const upstream = requireUpstream(node);
  const source = await sourceReady(node, upstream, signal);
  requireSameSystem(node, source);
  await makePlaces(node, upstream, source);
  signal.throwIfAborted();
  await stopNode(node, fenceStop(node));
  if (byCopy && node.state.data === "ready") save(node, { data: "copying" });
  if (node.state.data === "ready") {
    try {
      await rewindFrom(node, upstream, source, signal);
    } catch (error) {
      if (signal.aborted) throw error;
      log.warn(`pg_rewind failed, falling back to pg_basebackup: ${errorText(error)}`);
      save(node, { data: "copying" });
    }
  }
  if (node.state.data !== "ready") await clone(node, upstream, source, signal);
  await startAsStandby(node, upstream, signal);
}

const rewindOrClone: Transit = (node, signal) => takeBack(node, signal, { byCopy: false });

const initStandby: Transit = async (node, signal) => {
  const upstream = requireUpstream(node);
  const source = await sourceReady(node, upstream, signal);
  if (node.state.data === "none" || node.state.data === "copying" || node.state.data === "copied") {
    const there = existsSync(node.config.pgdata) && readdirSync(node.config.pgdata).length > 0;
    invariant(!there || node.state.data !== "none", "create has seen an empty data directory");
    await makePlaces(node, upstream, source);
    await clone(node, upstream, source, signal);
    await startAsStandby(node, upstream, signal);
    return;
  }
  if (!(await isFreshCopy(node, source))) return rewindOrClone(node, signal);
  await makePlaces(node, upstream, source);
  await stopNode(node, fenceStop(node));
  await startAsStandby(node, upstream, signal);
};

/**
 * A copy of a cluster that has been a primary of its own on this timeline may differ unnoticed.
 *
 * @returns whether it's a base backup that has not been started yet, whose pg_control is its source's
 */
async function isFreshCopy(node: Node, source: Source): Promise<boolean> {
  const { pgdata } = node.config;
  const { state, reachedTimeline } = await controlData(node.binaries, pgdata);
  if (state.includes("recovery") || reachedTimeline !== source.timeline) return false;
  if (existsSync(`${pgdata}/backup_label`)) return true;
  throw new AppError(
    "conflict",
    "the data directory was a primary's, and may differ from the group's",
    {
      detail: { pgdata, state, timeline: reachedTimeline },
      hint: "Give an empty directory: the node is then copied from its group's primary.",
    },
  );
}

const record: Transit = async () => undefined;

export const TRANSITIONS: Readonly<Record<Action, Transit>> = {
  initPrimary,
  initStandby,
  record,
  prepareReplication,
  becomeSingle,
  enableSync,
  applySettings,
  disableSync,
  disconnect,
  fastForward,
  promote: promoteSelf,
  openForWrites,
  drain,
  stop,
  resume,
  rejoin,
  rewindOrClone,
};

/** After a promotion: standbys can rewind to this node once its control file knows the timeline. */
export async function checkpointTimeline(node: Node, signal: AbortSignal): Promise<void> {
  const [row] = await localDb(node).query<{ behind: boolean }>(
    `select (select timeline_id from pg_control_checkpoint()) <
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int as behind`,
  );
  if (row?.behind) await writeCheckpoint(node, 600_000, signal);
}

/** On a connection of its own: others are not to wait behind it. */
async function writeCheckpoint(node: Node, timeoutMs: number, signal: AbortSignal): Promise<void> {
  const postmaster = livePostmaster(node.config.pgdata);
  if (!postmaster) return;
  await using db = openDb(localTargetOf(postmaster));
  await db.query("CHECKPOINT", [], { timeoutMs, signal });
}
