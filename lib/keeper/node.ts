/** One data node as its transitions and its loop see it: durable state, server, settings. */
import type { NodePaths } from "../config.ts";
import { canTakeWrites } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import { isBinding, standbyId, standbyName, synchronousStandbyNames } from "../group/quorum.ts";
import type { Policy, SyncSet } from "../group/view.ts";
import { type HostBook, isLoopback } from "../pg/addresses.ts";
import type { Binaries } from "../pg/binaries.ts";
import { controlData } from "../pg/commands.ts";
import {
  type Access,
  localLines,
  nodeLines,
  tlsOnlyLines,
  writeHbaBlock,
  writeIdentBlock,
} from "../pg/hba.ts";
import {
  createSlot,
  dropSlot,
  localTarget,
  type Observation,
  observe,
  reload,
  reloadTaken,
  walsendersTaken,
} from "../pg/local.ts";
import {
  adoptServer,
  livePostmaster,
  type Postmaster,
  type ServerProcess,
  type StopBounds,
  type Stopped,
  startServer,
  stopServer,
} from "../pg/server.ts";
import {
  conninfo,
  hasStandbySignal,
  writeManagedSettings,
  writeStandbySettings,
} from "../pg/settings.ts";
import { demandsTls, tlsParams, tlsSettings } from "../pg/tls.ts";
import type { Answer, KeeperConfig, KeeperState, Peer, Secret, Shutdown } from "../shapes.ts";
import { AppError, errorText, invariant } from "../sys/errors.ts";
import { hasSyncfs } from "../sys/files.ts";
import { logger } from "../sys/log.ts";
import { waitUntil } from "../sys/retry.ts";
import { type Db, openDb, parseUri, sslOf, type Target, type TlsParams } from "../sys/sql.ts";
import { currentUser } from "../sys/user.ts";
import { foreignIn, ownDataIsThere } from "./own_data.ts";
import { passfileOf, REPLICATOR } from "./passfile.ts";
import { lostSlots, slotSettings, slotWarnings } from "./slots.ts";
import { saveState } from "./state_file.ts";
import { makeMissingLocations } from "./tablespaces.ts";

export const log = logger("keeper");

export const HEALTH_CHECKER = "pgautofailover_monitor";
/** Every local statement of the keeper is bounded by this, but for those that say otherwise. */
export const LOCAL_TIMEOUT_MS = 1000;
const START_TIMEOUT_MS = 60_000;
const SLOT_ADVANCE_BYTES = 16n * 1024n * 1024n;
/** Fast, then immediate, then SIGKILL; a quarter of the time is left for finding and signalling them all. */
export const fenceStop = ({ policy }: Pick<Node, "policy">): StopBounds => ({
  fastMs: policy.fenceStopTimeoutMs / 2,
  immediateMs: policy.fenceStopTimeoutMs / 4,
  killMs: 5000,
});
/** Demotion: nobody acknowledges a commit any more. */
export const demotionStop = (node: Pick<Node, "policy">): StopBounds => ({
  ...fenceStop(node),
  mayStay: true,
});
/** A switchover: a fast stop waits until the standbys have everything. */
export const DRAIN_STOP = { fastMs: 3000, immediateMs: 300, killMs: 5000 };
export const CLEAN_STOP = { fastMs: 60_000, immediateMs: 10_000, killMs: 5000 };

/** How far a change of `synchronous_standby_names` has got; in force is a fact of processes, not of files. */
export type SyncProgress = {
  /** The set whose names were written last. */
  readonly set: SyncSet;
  /** The primary's position after its processes had taken the names over; enough members must pass it. */
  readonly fromLsn: bigint | undefined;
  /** The last set that was shown to be in force in this server; `set` once it's done. */
  readonly proven: SyncSet | undefined;
};

export type Node = {
  /** Replaced as a whole when the settings are read again. */
  config: KeeperConfig;
  readonly paths: NodePaths;
  binaries: Binaries;
  state: KeeperState;
  answer: Answer | undefined;
  /** The timers that it goes by. */
  policy: Policy;
  /** With what nodes of the group replicate from each other. */
  secret: Secret | undefined;
  /** When the replicating login was last seen to have that password. */
  logins: { readonly secret: Secret; readonly atMs: number } | undefined;
  readonly hosts: HostBook;
  server: ServerProcess | undefined;
  sync: SyncProgress | undefined;
  /** The set whose names stand in the settings file. */
  written: SyncSet | undefined;
  observation: Observation | undefined;
  /** One connection to the local server, held open: its end is the first sign of the server's. */
  db: Db | undefined;
  /** Where `db` connects to. */
  target: Target | undefined;
  /** The slots that the log has warned of, for as long as the reason lasts. */
  slotsWarnedOf: ReadonlySet<string>;
  /** This keeper is stopping the server just now: its end is no crash. */
  stopping: boolean;
  /** How it was stopped for a switchover; forgotten with the next start. */
  shutdown: Shutdown | undefined;
  /** The server may have ended: the loop looks at once. */
  suspect: () => void;
};

/** Makes the change, if it is one, durable, then true. */
export function save(node: Node, change: Partial<KeeperState>): void {
  const next = { ...node.state, ...change };
  if (Bun.deepEquals(next, node.state)) return;
  saveState(node.paths.state, next);
  node.state = next;
}

export function peers(node: Node): readonly Peer[] {
  return node.answer?.nodes ?? [];
}

/** The node that standbys follow: the one whose goal is to take writes. */
export const upstreamOf = (node: Node): Peer | undefined =>
  peers(node).find(({ goal }) => canTakeWrites(goal));

export function ownId(node: Node): number {
  invariant(node.state.nodeId !== undefined, "the node has been registered");
  return node.state.nodeId;
}

export function localDb(node: Node): Db {
  if (node.db) return node.db;
  const postmaster = livePostmaster(node.config.pgdata);
  if (postmaster === undefined) throw new AppError("postgres", "PostgreSQL is not running");
  node.target = localTargetOf(postmaster);
  node.db = openDb(node.target, { onClose: () => node.suspect() });
  return node.db;
}

export const localTargetOf = (postmaster: Postmaster): Target =>
  localTarget(postmaster, {
    user: currentUser(),
    database: "postgres",
    applicationName: "pg_auto_failover keeper",
  });

export function closeLocalDb(node: Node): void {
  void node.db?.close().catch(() => undefined);
  node.db = undefined;
}

/** One round trip to the local server; the result is also what the next report says. */
export async function look(node: Node): Promise<Observation> {
  const seen = await observe(localDb(node));
  node.observation = seen;
  return seen;
}

/** How a standby, pg_basebackup and pg_rewind reach another node; never with a password in it. */
export function upstreamConninfo(node: Node, upstream: Peer, database = "postgres"): string {
  return conninfo({
    host: upstream.host,
    port: upstream.port,
    user: REPLICATOR,
    dbname: database,
    application_name: standbyName(ownId(node)),
    connect_timeout: 2,
    keepalives_idle: 1,
    keepalives_interval: 1,
    keepalives_count: 3,
    tcp_user_timeout: 3000,
    // The other side's: as long as a primary that was unplugged goes on sending this, its packets wait when it's back.
    options: "-c tcp_user_timeout=2000",
    passfile: passfileOf(node.paths),
    ...upstreamTls(node),
  });
}

const upstreamTls = ({ config }: Pick<Node, "config">): TlsParams =>
  tlsParams(config.tls, config.auth === "cert");

export function upstreamTarget(
  node: Pick<Node, "config" | "secret">,
  upstream: Pick<Peer, "host" | "port">,
): Target {
  return {
    host: upstream.host,
    port: upstream.port,
    user: REPLICATOR,
    database: "postgres",
    password: node.secret?.password,
    ssl: sslOf(upstreamTls(node)),
    applicationName: "pg_auto_failover keeper",
    connectTimeoutMs: 2000,
  };
}

/** An isolated primary has stopped itself after this time. */
export const fencedAfterMs = (policy: Policy): number =>
  policy.networkPartitionTimeoutMs + policy.fenceStopTimeoutMs;

/** A standby that seems to receive holds back a failover: it gives a silent primary up when that has stopped itself. */
export const receiverTimeoutMs = fencedAfterMs;

type Settings = {
  /** The names to hold in the file; undefined: leave what was written last. */
  readonly set?: SyncSet;
  readonly readOnly?: boolean;
};

const NOBODY: SyncSet = { version: 0, primaryId: 0, members: [], number: 0 };

const listenAddresses = ({ nodename }: KeeperConfig): string =>
  isLoopback(nodename) ? "localhost" : "*";

/** @returns whether the settings file has changed and the server must reload */
export function writeSettings(
  node: Node,
  { set = node.written ?? NOBODY, readOnly = false }: Settings,
): boolean {
  const { config } = node;
  const members = [...set.members];
  if (members.join() !== node.state.syncMembers.join()) save(node, { syncMembers: members });
  const settings = {
    port: String(config.pgport),
    listen_addresses: listenAddresses(config),
    hot_standby: "on",
    wal_log_hints: "on",
    wal_keep_size: "1GB",
    // both ends notice a dead link within seconds, a standby reconnects at once
    wal_sender_timeout: "5s",
    wal_receiver_timeout: `${receiverTimeoutMs(node.policy)}ms`,
    wal_receiver_status_interval: "1s",
    wal_retrieve_retry_interval: "200ms",
    password_encryption: "scram-sha-256",
    recovery_target_timeline: "latest",
    synchronous_standby_names: synchronousStandbyNames(set),
    default_transaction_read_only: readOnly ? "on" : "off",
    ...(node.binaries.major >= 14 && hasSyncfs() && { recovery_init_sync_method: "syncfs" }),
    ...tlsSettings(config.tls),
  };
  const changed = writeManagedSettings(config.pgdata, settings, slotSettings(config.pgdata));
  node.written = set;
  return changed;
}

/**
 * Who may connect: the other nodes for replication and rewind, the health check, this machine's own
 * users. The health check stops at the question for a password: it has none, and logs in nowhere.
 */
export function writeHba(node: Node): boolean {
  const { pgdata, auth, tls, hba, nodename, monitor } = node.config;
  if (hba === "skip") return false;
  const access: Access = {
    auth,
    type: demandsTls(tls) ? "hostssl" : "host",
    lan: hba === "lan",
  };
  const others = peers(node).filter(({ host }) => !(auth === "trust" && isLoopback(host)));
  const lines = [
    // the keeper itself, whatever an existing cluster asks of others
    `local all ${currentUser()} ${auth === "trust" ? "trust" : "peer"}`,
    ...others.flatMap(({ host }) =>
      nodeLines(access, REPLICATOR, node.hosts.hbaAddresses(host), ["replication", "postgres"]),
    ),
    ...node.hosts
      .hbaAddresses(parseUri(monitor).host)
      .map((address) => `host postgres ${HEALTH_CHECKER} ${address} scram-sha-256`),
    ...localLines(access, nodename, "all", ["all"]),
    ...localLines({ ...access, lan: false }, nodename, REPLICATOR, ["replication"]),
    ...tlsOnlyLines(access, REPLICATOR),
  ];
  const changed = writeHbaBlock(pgdata, [...new Set(lines)]);
  if (auth !== "cert") return changed;
  const names = others.map(({ host }) => host);
  return writeIdentBlock(pgdata, [...new Set(names)], REPLICATOR) || changed;
}

/** Follow this node, or nobody; durable before it's said to anyone. @returns whether a file has changed */
export function writeFollowing(node: Node, upstream: Peer | undefined): boolean {
  const following = upstream?.nodeId ?? null;
  if (node.state.following !== following) save(node, { following });
  return writeStandbySettings(node.config.pgdata, {
    primaryConninfo: upstream ? upstreamConninfo(node, upstream) : "",
    primarySlotName: upstream ? standbyName(ownId(node)) : "",
  });
}

/** A standby that has lost its data gives it up: it's copied anew as soon as the monitor lets it catch up. */
export function giveUpLostData(node: Node): void {
  const { pgdata } = node.config;
  if (ownDataIsThere(pgdata, node.state)) return;
  log.warn(
    `The data directory is empty: this standby is copied anew. If "${pgdata}" is only not mounted, stop this keeper first`,
  );
  save(node, { data: "copying" });
}

/**
 * Starts PostgreSQL in the role that the durable state gives it. A server that has been a standby
 * never opens read-write without a new timeline: a promotion that has not left its timeline behind
 * goes back to being a standby that follows nobody, and is tried again.
 */
export async function startNode(
  node: Node,
  role: "primary" | "standby",
  signal: AbortSignal,
): Promise<void> {
  const { config, binaries, paths } = node;
  closeLocalDb(node);
  node.observation = undefined;
  node.shutdown = undefined;
  giveUpLostData(node);
  if (node.state.data !== "ready") {
    throw new AppError("state", "the data directory is not complete", {
      hint: "The node is copied from its primary as soon as there is one.",
    });
  }
  let asStandby = role === "standby";
  const upstream = peers(node).find(({ nodeId }) => nodeId === node.state.following);
  if (node.state.promotedFrom !== null) {
    // the end of a promotion is in pg_control long before the checkpoint on its timeline
    const { reachedTimeline } = await controlData(binaries, config.pgdata);
    if (reachedTimeline <= node.state.promotedFrom) asStandby = true;
  }
  if (asStandby) {
    // a promise to follow nobody holds although the files may still say otherwise
    if (upstream || node.state.following === null || !hasStandbySignal(config.pgdata)) {
      writeFollowing(node, upstream);
    }
  }
  writeHba(node);
  if (asStandby && upstream) {
    // a standby ends where it replays a tablespace whose directory is missing; a primary that doesn't
    // answer holds no start up: at the next one it's there
    makeMissingLocations(upstreamTarget(node, upstream)).catch((error: unknown) => {
      const isOurs = error instanceof AppError && error.kind === "permission";
      log[isOurs ? "warn" : "debug"](errorText(error));
    });
  }
  node.server = await startServer({
    binaries,
    pgdata: config.pgdata,
    port: config.pgport,
    // the file may still have the one for an earlier address
    settings: { listen_addresses: listenAddresses(config) },
    logFile: paths.postgresLog,
    timeoutMs: START_TIMEOUT_MS,
    signal,
  });
  // until here what the server before had in force was the truth; of this one it must be shown again
  node.sync = undefined;
  void node.server.exited.then(() => node.suspect());
  await look(node);
}

/** Adopts the server that is there, whoever started it, on this node's data. @returns whether there is one */
export function adoptNode(node: Node): boolean {
  if (node.server?.alive()) return true;
  closeLocalDb(node);
  node.server = undefined;
  if (foreignIn(node.config.pgdata, node.state) !== undefined) return false;
  node.server = adoptServer(node.config.pgdata);
  if (node.server === undefined) return false;
  // what a dead server had in force still says who may take over; a living stranger's isn't known
  node.sync = undefined;
  void node.server.exited.then(() => node.suspect());
  return true;
}

/** @returns whether it ended in an orderly way: all that it wrote is in its WAL, up to a last checkpoint */
export async function stopNode(node: Node, bounds: StopBounds): Promise<boolean> {
  closeLocalDb(node);
  // where none runs, nothing is reported as running meanwhile
  node.stopping = livePostmaster(node.config.pgdata) !== undefined;
  let how: Stopped;
  try {
    how = await stopServer(node.config.pgdata, bounds);
    // what was in force stays the truth about what this server has acknowledged
    node.server = undefined;
  } finally {
    node.stopping = false;
  }
  if (how === "doomed")
    log.warn(
      "PostgreSQL is killed; processes of it stay until the disk that they wait for answers",
    );
  else if (how !== "not running") log.info(`PostgreSQL is stopped (${how})`);
  return how === "fast";
}

/** Reads the settings again; true once the postmaster has. */
export async function reloadSettings(node: Node): Promise<void> {
  await reload(localDb(node));
}

/** The names of all walsenders that serve nodes of ours. */
const OUR_WALSENDERS = "pgautofailover\\_standby\\_%";
const ENFORCE_TIMEOUT_MS = 10_000;
/** A walsender that is busy for longer is terminated rather than waited for. */
const WALSENDER_PATIENCE_MS = 200;

export const isInForce = (node: Node, set: SyncSet): boolean =>
  node.sync?.proven?.version === set.version;

/** Every process that acknowledges commits goes by the names that were reloaded last. */
async function namesTaken(node: Node, signal: AbortSignal): Promise<boolean> {
  const db = localDb(node);
  const timeoutMs = LOCAL_TIMEOUT_MS;
  return (
    (await reloadTaken(db, "checkpointer", { timeoutMs, signal })) &&
    (await walsendersTaken(db, OUR_WALSENDERS, {
      patienceMs: WALSENDER_PATIENCE_MS,
      timeoutMs,
      signal,
    }))
  );
}

function prove(node: Node, set: SyncSet): void {
  node.sync = { set, fromLsn: undefined, proven: set };
  const server = livePostmaster(node.config.pgdata);
  if (server === undefined || set.number === 0) return;
  save(node, { proof: { pid: server.pid, startedAtS: server.startedAtS, set } });
}

/**
 * Writes the assigned names, once a version. They count as in force when the server's processes have
 * taken them over and enough members have flushed past the position of that moment; until then this
 * is called again with each observation. Names that let commits wait for nobody are in force at once.
 *
 * @returns whether the set is in force
 */
export async function advanceSync(node: Node, set: SyncSet, signal: AbortSignal): Promise<boolean> {
  const names = synchronousStandbyNames(set);
  if (node.sync?.set.version !== set.version) {
    const before = node.written;
    if (before === undefined || synchronousStandbyNames(before) !== names) {
      log.info(
        names === ""
          ? "Disabling synchronous replication"
          : `Enabling synchronous replication: ${names}`,
      );
    }
    writeSettings(node, { set });
    await reloadSettings(node);
    save(node, { syncVersion: Math.max(set.version, node.state.syncVersion) });
    // what was in force before is not the whole truth any more, but stays a part of it
    node.sync = { set, fromLsn: undefined, proven: node.sync?.proven };
    if (set.number === 0) prove(node, set);
  }
  if (isInForce(node, set)) return true;
  if (node.sync.fromLsn === undefined) {
    if (!(await namesTaken(node, signal))) return false;
    const { lsn } = await look(node);
    node.sync = { ...node.sync, fromLsn: lsn };
  }
  const { fromLsn } = node.sync;
  invariant(fromLsn !== undefined, "the position has been taken");
  const seen = await look(node);
  // whatever else sets the names (ALTER SYSTEM, say) decides, not our file
  if (seen.syncNames !== names) return false;
  const passed = isBinding(set, (member) =>
    seen.standbys.some(
      ({ applicationName, syncState, flushLsn }) =>
        applicationName === standbyName(member) &&
        (syncState === "sync" || syncState === "quorum") &&
        flushLsn !== undefined &&
        flushLsn >= fromLsn,
    ),
  );
  if (passed) prove(node, set);
  return passed;
}

/**
 * What was shown to be in force stays so while the same server process runs with the same names,
 * also when the keeper that has shown it is gone.
 */
export function recallProof(node: Node, set: SyncSet): void {
  const { proof } = node.state;
  const server = livePostmaster(node.config.pgdata);
  if (proof === null || proof.set.version !== set.version || server === undefined) return;
  if (server.pid !== proof.pid || server.startedAtS !== proof.startedAtS) return;
  if (node.observation?.syncNames !== synchronousStandbyNames(set)) return;
  node.sync = { set, fromLsn: undefined, proven: set };
}

/**
 * Waits for the set that is assigned, whichever it is by then, to be in force; the standbys' replies
 * come at least once a second.
 */
export async function enforceSync(
  node: Node,
  assigned: () => SyncSet,
  signal: AbortSignal,
  timeoutMs = ENFORCE_TIMEOUT_MS,
): Promise<void> {
  await waitUntil(async () => ((await advanceSync(node, assigned(), signal)) ? true : undefined), {
    timeoutMs,
    everyMs: 10,
    signal,
    what: "the synchronous standbys to have flushed what the primary has",
  });
}

/** What the next report says is in force; nothing while it can't be proven. */
export function syncInForce(node: Node): SyncSet | null {
  return node.sync?.proven ?? null;
}

/** The processes of a server that isn't open yet go by these names from its first commit on. */
export async function takeNames(node: Node, set: SyncSet, signal: AbortSignal): Promise<void> {
  writeSettings(node, { set, readOnly: true });
  await reloadSettings(node);
  if (!(await namesTaken(node, signal))) {
    throw new AppError("timeout", "PostgreSQL doesn't take up the names of its standbys");
  }
}

const isOurs = (name: string): boolean => standbyId(name) !== undefined;

/** One slot for each other node: created when missing, moved along on a standby, dropped with its node. */
export async function maintainSlots(node: Node): Promise<void> {
  const seen = node.observation;
  if (seen === undefined) return;
  const wanted = new Map(peers(node).map((peer) => [standbyName(peer.nodeId), peer]));
  const warnings = slotWarnings(seen);
  for (const [name, sentence] of warnings) if (!node.slotsWarnedOf.has(name)) log.warn(sentence);
  node.slotsWarnedOf = new Set(warnings.keys());
  for (const name of lostSlots(seen)) {
    log.warn(`Replication slot "${name}" is lost: its standby has to be copied anew`);
    await dropSlot(localDb(node), name);
  }
  for (const slot of seen.slots) {
    if (isOurs(slot.name) && !wanted.has(slot.name) && !slot.active && slot.walStatus !== "lost")
      await dropSlot(localDb(node), slot.name);
  }
  for (const [name, peer] of wanted) {
    const slot = seen.slots.find((one) => one.name === name && one.walStatus !== "lost");
    if (slot === undefined) {
      await createSlot(localDb(node), name);
    } else if (seen.inRecovery && !slot.active) {
      const to =
        seen.replayLsn !== undefined && peer.lsn > seen.replayLsn ? seen.replayLsn : peer.lsn;
      if (slot.restartLsn !== undefined && to > slot.restartLsn + SLOT_ADVANCE_BYTES) {
        await localDb(node).query(
          "select pg_replication_slot_advance($1, $2::text::pg_lsn)",
          [name, formatLsn(to)],
          {
            timeoutMs: LOCAL_TIMEOUT_MS,
          },
        );
      }
    }
  }
}

/** Slots of an earlier life hold back WAL and xmin for nobody. */
export async function dropOwnSlots(node: Node): Promise<void> {
  const seen = await look(node);
  const idle = seen.slots.filter(({ name, active }) => isOurs(name) && !active);
  for (const { name } of idle) await dropSlot(localDb(node), name);
  if (idle.length > 0) await look(node);
}
