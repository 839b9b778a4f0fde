/** SQL to the local server: what it is, how far it has come, and the few things asked of it. */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError, invariant } from "../sys/errors.ts";
import { readIfExists } from "../sys/files.ts";
import { waitUntil } from "../sys/retry.ts";
import type { Db, Target } from "../sys/sql.ts";
import { queryOnce, sqlState } from "../sys/sql.ts";
import { ping } from "./ping.ts";
import { readProcess } from "./processes.ts";
import type { Postmaster } from "./server.ts";
import { readPostmaster } from "./server.ts";

const CONNECT_TIMEOUT_MS = 1000;
const RELOAD_TIMEOUT_MS = 1000;
const RELOAD_RETRY_MS = 200;
const PROMOTE_POLL_MS = 3;
const SQL_SLOT_EXISTS = "42710";
/** For statements that come again and again. */
const PREPARED = { prepare: true };

export type Observation = {
  readonly inRecovery: boolean;
  readonly timeline: number;
  /** bytes; of a primary its flush position, of a standby the greatest of received and replayed */
  readonly lsn: bigint;
  /** bytes; undefined on a primary */
  readonly replayLsn: bigint | undefined;
  readonly receiver:
    | {
        readonly status: string;
        /** since its last message, by the server's wall clock; since its start, where none has come */
        readonly silentMs: number;
        readonly host: string;
        readonly port: number;
        readonly timeline: number;
      }
    | undefined;
  /** synchronous_standby_names in the files as the postmaster has read them, not yet "in force" */
  readonly syncNames: string;
  readonly readOnlyDefault: boolean;
  /** every walsender, of base backups too */
  readonly standbys: readonly {
    readonly applicationName: string;
    readonly state: string;
    readonly syncState: string;
    readonly flushLsn: bigint | undefined;
    /** ISO 8601, by the clock of the standby */
    readonly replyTime: string | undefined;
  }[];
  /** physical ones that outlive their connection */
  readonly slots: readonly {
    readonly name: string;
    readonly active: boolean;
    readonly restartLsn: bigint | undefined;
    /** as pg_replication_slots has it: "lost" when the WAL that it reserved is gone */
    readonly walStatus: string;
  }[];
  /** bytes that a slot may hold back at most; undefined: any amount */
  readonly slotKeepBytes: bigint | undefined;
  /** a process waits for the disk with WAL in its hands; on a standby the walreceiver has been silent for longer than it may */
  readonly walWaits: boolean;
  readonly systemIdentifier: string;
};

export type WalProgress = Pick<Observation, "lsn" | "walWaits">;

/** How to reach the server that postmaster.pid describes: its Unix socket, else the loopback. */
export function localTarget(
  postmaster: Postmaster,
  login: {
    readonly user: string;
    readonly database: string;
    readonly applicationName: string;
  },
): Target {
  const { socketDir, listen, port } = postmaster;
  const everywhere: Record<string, string> = {
    "": "127.0.0.1",
    "*": "127.0.0.1",
    "0.0.0.0": "127.0.0.1",
    "::": "::1",
  };
  // A name that begins with @ is a socket outside the file system, which our client can't open.
  const host = socketDir.startsWith("/") ? socketDir : (everywhere[listen] ?? listen);
  const target = { host, port, ...login, connectTimeoutMs: CONNECT_TIMEOUT_MS };
  return host.startsWith("/") ? target : { ...target, ssl: { mode: "prefer" } };
}

/*
 * The highest timeline of a WAL segment that holds a standby's last byte. Without a walreceiver it is
 * the only trace of a timeline that the standby has followed since its last restartpoint, and a
 * standby that seems to be on an older one than it is would be rewound or passed over for nothing. A
 * segment without its timeline's history is left over from a life that was taken back by a rewind.
 */
const TIMELINE_OF_SEGMENTS = `
  SELECT max(('x' || substr(file, 1, 8))::bit(32)::int)
  FROM pg_ls_dir('pg_wal') AS file,
    (SELECT greatest(pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
       '0/0'), '0/0') - 1, 0) AS byte, pg_size_bytes(current_setting('wal_segment_size')) AS size) AS last
  WHERE substr(file, 9) = lpad(upper(to_hex(div(byte, 4294967296)::bigint)), 8, '0')
      || lpad(upper(to_hex(div(mod(byte, 4294967296), size)::bigint)), 8, '0')
    AND file ~ '^[0-9A-F]{24}$'
    AND (file LIKE '00000001%'
      OR (pg_stat_file('pg_wal/' || substr(file, 1, 8) || '.history', true)).size IS NOT NULL)`;

/**
 * A walreceiver shows as "streaming" before it has asked for any WAL, and ends a moment later if that is refused
 * (its slot is held by a walsender that hangs, say). Both times are its start until the first message has come; an
 * idle primary sends none for a while, so that one that has lasted counts without.
 */
const ONLY_BEGUN = `receiver.last_msg_send_time = receiver.last_msg_receipt_time
        AND receiver.last_msg_receipt_time > clock_timestamp() - interval '250 ms'`;

/*
 * pg_is_in_recovery() is asked once: a promotion between two answers would have the functions of one
 * role called in the other, which is an error. `OFFSET 0` keeps the planner from copying the call.
 */
const ME = "(SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) AS me";

const LSN = `pg_wal_lsn_diff(
      CASE WHEN me.in_recovery
        THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0')
        ELSE pg_current_wal_flush_lsn()
      END, '0/0')::text`;

/*
 * The events are called WALWrite, … until PostgreSQL 16, WalWrite, … since. A walreceiver names none while it writes, but
 * ends itself when it has heard nothing for its timeout, unless it can't.
 */
const WAL_WAITS = `CASE WHEN me.in_recovery
      THEN coalesce(current_setting('wal_receiver_timeout') <> '0' AND clock_timestamp()
        > receiver.last_msg_receipt_time + current_setting('wal_receiver_timeout')::interval, false)
      ELSE pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn() AND EXISTS (
        SELECT FROM pg_stat_get_activity(NULL)
        WHERE wait_event_type = 'IO' AND wait_event ~* '^wal(init)?(write|sync)$')
    END`;

const OBSERVE = `
  SELECT me.in_recovery,
    CASE WHEN me.in_recovery
      THEN greatest(checkpoint.timeline_id, recovery.min_recovery_end_timeline,
        CASE WHEN receiver.pid IS NULL THEN (${TIMELINE_OF_SEGMENTS}) ELSE receiver.received_tli END)
      ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int
    END AS timeline,
    ${LSN} AS lsn,
    CASE WHEN me.in_recovery
      THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::text
    END AS replay_lsn,
    CASE WHEN receiver.pid IS NOT NULL THEN json_build_object(
      'status', CASE WHEN ${ONLY_BEGUN} THEN 'starting' ELSE coalesce(receiver.status, '') END,
      'silentMs', extract(epoch FROM clock_timestamp() - receiver.last_msg_receipt_time) * 1000,
      'host', coalesce(receiver.sender_host, ''),
      'port', coalesce(receiver.sender_port, 0), 'timeline', coalesce(receiver.received_tli, 0))::text
    END AS receiver,
    current_setting('synchronous_standby_names') AS sync_names,
    current_setting('default_transaction_read_only') AS read_only_default,
    (SELECT coalesce(json_agg(json_build_object(
        'applicationName', application_name, 'state', coalesce(state, ''),
        'syncState', coalesce(sync_state, ''),
        'flushLsn', pg_wal_lsn_diff(flush_lsn, '0/0')::text, 'replyTime', reply_time)
        ORDER BY application_name, pid), '[]')::text FROM pg_stat_replication) AS standbys,
    (SELECT coalesce(json_agg(json_build_object(
        'name', slot_name, 'active', active,
        'restartLsn', pg_wal_lsn_diff(restart_lsn, '0/0')::text,
        'walStatus', coalesce(wal_status, '')) ORDER BY slot_name), '[]')::text
      FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary) AS slots,
    pg_size_bytes(current_setting('max_slot_wal_keep_size'))::text AS slot_keep,
    ${WAL_WAITS} AS wal_waits,
    control.system_identifier::text AS system_identifier
  FROM ${ME}
    CROSS JOIN pg_control_system() AS control
    CROSS JOIN pg_control_checkpoint() AS checkpoint
    CROSS JOIN pg_control_recovery() AS recovery
    LEFT JOIN pg_stat_wal_receiver AS receiver ON true`;

type ObserveRow = {
  in_recovery: boolean;
  timeline: number;
  lsn: string;
  replay_lsn: string | null;
  receiver: string | null;
  sync_names: string;
  read_only_default: string;
  standbys: string;
  slots: string;
  slot_keep: string;
  wal_waits: boolean;
  system_identifier: string;
};
type StandbyJson = {
  applicationName: string;
  state: string;
  syncState: string;
  flushLsn: string | null;
  replyTime: string | null;
};
type SlotJson = { name: string; active: boolean; restartLsn: string | null; walStatus: string };

const bytes = (text: string | null): bigint | undefined =>
  text === null ? undefined : BigInt(text);

/**
 * The server's state in one round trip, as primary, as standby, and in between.
 *
 * @see PostgreSQL 15 docs, "Recovery Information Functions", "pg_stat_wal_receiver"
 */
export async function observe(db: Db): Promise<Observation> {
  const [row] = await db.query<ObserveRow>(OBSERVE, [], PREPARED);
  invariant(row, "the query about the local server has one row");
  return {
    inRecovery: row.in_recovery,
    timeline: Number(row.timeline),
    lsn: BigInt(row.lsn),
    replayLsn: bytes(row.replay_lsn),
    receiver: row.receiver === null ? undefined : JSON.parse(row.receiver),
    syncNames: row.sync_names,
    readOnlyDefault: row.read_only_default === "on",
    standbys: (JSON.parse(row.standbys) as StandbyJson[]).map((standby) => ({
      ...standby,
      flushLsn: bytes(standby.flushLsn),
      replyTime: standby.replyTime ?? undefined,
    })),
    slots: (JSON.parse(row.slots) as SlotJson[]).map(({ restartLsn, ...slot }) => ({
      ...slot,
      restartLsn: bytes(restartLsn),
    })),
    slotKeepBytes: row.slot_keep.startsWith("-") ? undefined : BigInt(row.slot_keep),
    walWaits: row.wal_waits,
    systemIdentifier: row.system_identifier,
  };
}

/**
 * How far WAL has got, asked over a connection of its own, and of nothing that is held by whoever waits for the disk: who
 * updates pg_control, which `observe` reads, may be one of them.
 */
export async function walProgress(target: Target, timeoutMs: number): Promise<WalProgress> {
  const [row] = await queryOnce<Pick<ObserveRow, "lsn" | "wal_waits">>(
    target,
    `SELECT ${LSN} AS lsn, ${WAL_WAITS} AS wal_waits
     FROM ${ME} LEFT JOIN pg_stat_get_wal_receiver() AS receiver ON true`,
    [],
    { timeoutMs },
  );
  invariant(row, "the query about WAL has one row");
  return { lsn: BigInt(row.lsn), walWaits: row.wal_waits };
}

/**
 * Writes a little WAL and flushes it, waiting for no standby. Each one that streams flushes it too, and says so
 * within milliseconds; while nothing is written it speaks only at each wal_receiver_status_interval, 1 s or more.
 */
export async function flushSomeWal(db: Db, timeoutMs: number): Promise<void> {
  await db.query(
    `SELECT set_config('synchronous_commit', 'local', true),
       pg_logical_emit_message(true, 'pg_auto_failover', '')`,
    [],
    { timeoutMs, ...PREPARED },
  );
}

const MICROSECONDS = (time: string): string => `(extract(epoch FROM ${time}) * 1000000)::bigint`;

/**
 * Has the server reread its configuration, and waits until the postmaster has passed that on to
 * every process of it (which proves nothing about when each takes it up: `reloadTaken` does).
 *
 * A new connection is the witness that the postmaster has: it takes none, and forks no process for
 * one, before it has dealt with a signal that was sent earlier. That it has found the files in order
 * our own session tells, which has had its signal by then and rereads them with its next statement.
 *
 * @throws {AppError} timeout: no proof within a second
 */
export async function reload(db: Db): Promise<void> {
  type Asked = { asked_us: string; login: string; database: string; directory: string };
  const begin = monotonicMs();
  for (;;) {
    // the time first, then the signal: the inner query is done before
    const [asked] = await db.query<Asked>(
      `SELECT asked_us, login, database, directory, pg_reload_conf()
       FROM (SELECT ${MICROSECONDS("clock_timestamp()")}::text AS asked_us, session_user::text AS login,
         current_database()::text AS database, current_setting('data_directory') AS directory OFFSET 0) AS before`,
      [],
      PREPARED,
    );
    invariant(asked, "a query without a table has one row");
    const postmaster = readPostmaster(asked.directory);
    if (!postmaster) {
      throw new AppError("state", "the server lost its postmaster.pid", {
        detail: { pgdata: asked.directory },
      });
    }
    const login = { user: asked.login, database: asked.database, applicationName: "" };
    const witness = await ping(localTarget(postmaster, login), RELOAD_TIMEOUT_MS);
    const [own] = await db.query<{ taken: boolean }>(
      `SELECT ${MICROSECONDS("pg_conf_load_time()")} > $1::bigint AS taken`,
      [asked.asked_us],
      PREPARED,
    );
    if (witness === "answered" && own?.taken) {
      return;
    }
    if (monotonicMs() - begin > RELOAD_TIMEOUT_MS) {
      throw new AppError("timeout", "PostgreSQL doesn't take up its new configuration", {
        detail: { pgdata: asked.directory, timeout_ms: RELOAD_TIMEOUT_MS },
      });
    }
    // each attempt has the server log what it finds wrong in its files
    await delay(RELOAD_RETRY_MS);
  }
}

const TLS_TIMEOUT_MS = 10_000;

/**
 * Waits until new sessions find TLS on, or off.
 *
 * @throws {AppError} timeout: whoever was told has not done it, or PostgreSQL has refused its files
 */
export async function awaitTls(target: Target, on: boolean): Promise<void> {
  const wanted = async (): Promise<true | undefined> => {
    const [row] = await queryOnce<{ ssl: string }>(target, "SELECT current_setting('ssl') AS ssl");
    return row?.ssl === (on ? "on" : "off") || undefined;
  };
  await waitUntil(wanted, {
    timeoutMs: TLS_TIMEOUT_MS,
    everyMs: 50,
    what: `PostgreSQL to turn TLS ${on ? "on" : "off"}; its log says what is in the way`,
  });
}

/** As `reload`, for who needn't know when: new sessions have it from the postmaster's next turn on. */
export async function requestReload(db: Db): Promise<void> {
  await db.query("SELECT pg_reload_conf()");
}

/**
 * The waits in which a process has looked for a reload just before: each is in a loop that looks between two waits, and
 * the handler of the signal sets the latch that ends a wait. So it is, by these names, from 13 to 18. Walsenders wait on
 * a condition variable as well since 16, and since 18 the checkpointer has a second wait, at its end, under another
 * name: neither changes that.
 *
 * @see PostgreSQL's CheckpointerMain in checkpointer.c, WalSndLoop in walsender.c, and WaitForWALToBecomeAvailable in
 *   xlogrecovery.c (13 and 14: xlog.c)
 */
const IDLE_WAITS: Readonly<Record<"checkpointer" | "startup" | "walsender", readonly string[]>> = {
  checkpointer: ["CheckpointerMain"],
  startup: ["RecoveryWalStream", "RecoveryRetrieveRetryInterval"],
  walsender: ["WalSenderMain"],
};

type Waiting = { readonly pid: number; readonly wait: string };

const waitingOf = ({ pid, wait }: { pid: number; wait: string | null }): Waiting => ({
  pid: Number(pid),
  wait: wait ?? "",
});

async function auxiliary(db: Db, backend: string): Promise<Waiting | undefined> {
  const [row] = await db.query<{ pid: number; wait: string | null }>(
    "SELECT pid, wait_event AS wait FROM pg_stat_activity WHERE backend_type = $1",
    [backend],
    PREPARED,
  );
  return row && waitingOf(row);
}

/** Those that acknowledge commits, or may: a base backup's never does. */
async function walsenders(db: Db, name: string): Promise<Waiting[]> {
  const rows = await db.query<{ pid: number; wait: string | null }>(
    `SELECT pid, wait_event AS wait FROM pg_stat_activity JOIN pg_stat_replication AS sender USING (pid)
     WHERE sender.application_name LIKE $1 AND sender.state <> 'backup'`,
    [name],
    PREPARED,
  );
  return rows.map(waitingOf);
}

/** Whether SIGHUP waits for a process that hasn't run since it was sent. Signal 1 is bit 0. */
export function hasPendingHangup(status: string): boolean {
  const masks = [...status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm)];
  return masks.length !== 2 || masks.some(([, mask]) => (BigInt(`0x${mask}`) & 1n) === 1n);
}

/**
 * One look for proof, in an order that matters: SIGHUP isn't pending, so its handler has begun; the
 * process sleeps, so it has ended and what it asked for is done or will be before the idle wait;
 * it is in its idle wait.
 */
function sleepsSinceSignal(pid: number): boolean {
  const status = readIfExists(`/proc/${pid}/status`);
  if (status === undefined || hasPendingHangup(status)) return false;
  return readProcess(pid)?.state === "S";
}

async function isIdleSinceSignal(db: Db, backend: "checkpointer" | "startup"): Promise<boolean> {
  const before = await auxiliary(db, backend);
  if (!before || !sleepsSinceSignal(before.pid)) return false;
  const after = await auxiliary(db, backend);
  return after?.pid === before.pid && IDLE_WAITS[backend].includes(after.wait);
}

/**
 * Whether an auxiliary process has taken up the configuration of the last `reload`: the checkpointer
 * puts synchronous_standby_names in force, the startup process lets go of a walreceiver.
 *
 * @returns false when there is no proof within timeoutMs; the caller then restarts the server
 */
export async function reloadTaken(
  db: Db,
  backend: "checkpointer" | "startup",
  options: { readonly timeoutMs: number; readonly signal?: AbortSignal },
): Promise<boolean> {
  const { timeoutMs, signal } = options;
  if (process.platform !== "linux") {
    if (backend === "startup") {
      return false;
    }
    // It looks for a reload before it begins a checkpoint.
    return checkpoint(db, timeoutMs).then(
      () => true,
      () => false,
    );
  }
  const begin = monotonicMs();
  for (;;) {
    signal?.throwIfAborted();
    if (await isIdleSinceSignal(db, backend)) {
      return true;
    }
    const elapsedMs = monotonicMs() - begin;
    if (elapsedMs >= timeoutMs) {
      return false;
    }
    await delay(elapsedMs < 100 ? 1 : 10, signal);
  }
}

/**
 * Waits until no walsender goes by an older list of synchronous standbys: each that was there has
 * taken up the configuration of the last `reload`, or has ended. One that is too busy to show it
 * within `patienceMs` is terminated: its standby comes back at once, to a new one.
 *
 * @param name of the walsenders' applications, as a pattern of LIKE
 * @returns false when one is still there after timeoutMs
 */
export async function walsendersTaken(
  db: Db,
  name: string,
  options: {
    readonly patienceMs: number;
    readonly timeoutMs: number;
    readonly signal?: AbortSignal;
  },
): Promise<boolean> {
  const { patienceMs, timeoutMs, signal } = options;
  const begin = monotonicMs();
  const provable = process.platform === "linux";
  // those that begin later have the configuration from the postmaster, which had reread it
  let open = (await walsenders(db, name)).map(({ pid }) => pid);
  let terminated = false;
  for (;;) {
    signal?.throwIfAborted();
    const asleep = provable ? open.filter(sleepsSinceSignal) : [];
    const now = open.length > 0 ? await walsenders(db, name) : [];
    open = open.filter((pid) => {
      const there = now.find((each) => each.pid === pid);
      return there && !(asleep.includes(pid) && IDLE_WAITS.walsender.includes(there.wait));
    });
    if (open.length === 0) return true;
    const elapsedMs = monotonicMs() - begin;
    if (elapsedMs >= timeoutMs) return false;
    if (!terminated && (elapsedMs >= patienceMs || !provable)) {
      terminated = true;
      await db.query("SELECT pg_terminate_backend(pid) FROM unnest($1::text::int[]) AS pid", [
        `{${open.join()}}`,
      ]);
    }
    await delay(elapsedMs < 100 ? 1 : 10, signal);
  }
}

/** A standby that finds no more WAL looks again this often: our own setting of wal_retrieve_retry_interval. */
const RETRY_MS = 200;

/**
 * Waits until a standby that receives nothing has replayed all WAL that it has: its startup process
 * sleeps between two looks for more. It does so once before it turns to what the walreceiver has left
 * behind, and that may end in the middle of a record: what is received counts, or a second look.
 *
 * @returns the end of what it could replay, in bytes
 * @throws {AppError} timeout: it replays on, or a walreceiver is back
 */
export async function replayedAll(
  db: Db,
  options: { readonly timeoutMs: number; readonly signal?: AbortSignal },
): Promise<bigint> {
  const { timeoutMs, signal } = options;
  const begin = monotonicMs();
  let reached = "";
  let since = begin;
  for (;;) {
    const [row] = await db.query<{ idle: boolean; replayed: string | null; complete: boolean }>(
      `SELECT coalesce(wait_event = 'RecoveryRetrieveRetryInterval'
           AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver), false) AS idle,
         pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::text AS replayed,
         pg_last_wal_replay_lsn() >= coalesce(pg_last_wal_receive_lsn(), '0/0') AS complete
       FROM pg_stat_activity WHERE backend_type = 'startup'`,
      [],
      PREPARED,
    );
    const now = monotonicMs();
    if (!row?.idle || row.replayed !== reached) {
      reached = row?.replayed ?? "";
      since = now;
    }
    if (row?.idle && row.replayed && (row.complete || now - since > 2 * RETRY_MS)) {
      return BigInt(row.replayed);
    }
    if (now - begin > timeoutMs) {
      throw new AppError("timeout", "the standby has not replayed all of its WAL in time", {
        detail: { timeout_ms: timeoutMs, reached },
      });
    }
    await delay(2, signal);
  }
}

/**
 * Promotes a standby, and resolves as soon as it takes writes on a timeline of its own.
 *
 * @throws {AppError} state: it isn't a standby; timeout: it still is one after timeoutMs; postgres: it
 *   opened without a new timeline or without that one's history
 */
export async function promote(
  db: Db,
  options: {
    readonly timeoutMs: number;
    readonly signal?: AbortSignal;
    /** What it has just been seen to be. */
    readonly before?: Pick<Observation, "inRecovery" | "timeline">;
  },
): Promise<void> {
  const { timeoutMs, signal } = options;
  const begin = monotonicMs();
  const before = options.before ?? (await observe(db));
  if (!before.inRecovery) {
    throw new AppError("state", "could not promote: this server is a primary already", {
      detail: { timeline: before.timeline },
    });
  }
  const [sent] = await db.query<{ sent: boolean }>("SELECT pg_promote(false) AS sent");
  if (!sent?.sent) {
    throw new AppError("postgres", "could not signal the server to promote");
  }
  for (;;) {
    const [now] = await db.query<{ in_recovery: boolean }>(
      "SELECT pg_is_in_recovery() AS in_recovery",
      [],
      PREPARED,
    );
    if (now && !now.in_recovery) {
      break;
    }
    if (monotonicMs() - begin > timeoutMs) {
      throw new AppError("timeout", "the promotion takes too long", {
        detail: { timeout_ms: timeoutMs },
        hint: "It may still end well: the server replays all WAL that it has before it opens.",
      });
    }
    await delay(PROMOTE_POLL_MS, signal);
  }
  const [after] = await db.query<{ file: string; history: boolean }>(
    `SELECT file, (pg_stat_file('pg_wal/' || substr(file, 1, 8) || '.history', true)).size IS NOT NULL
       AS history
     FROM (SELECT pg_walfile_name(pg_current_wal_flush_lsn()) AS file) AS wal`,
  );
  const timeline = Number.parseInt(after?.file.slice(0, 8) ?? "", 16);
  if (!(timeline > before.timeline) || !after?.history) {
    throw new AppError("postgres", "the server left recovery without a new timeline", {
      detail: { timeline, before: before.timeline, history: after?.history },
      hint: "Stop it: what it writes now can't be told apart from the old primary's writes.",
    });
  }
}

/** A checkpoint; after a promotion it is what tells pg_rewind of the new timeline. */
export async function checkpoint(db: Db, timeoutMs: number): Promise<void> {
  await db.query("CHECKPOINT", [], { timeoutMs });
}

/** Makes a physical slot that reserves WAL from now on, unless it is there. */
export async function createSlot(db: Db, name: string): Promise<void> {
  try {
    await db.query(
      `SELECT pg_create_physical_replication_slot($1::text, true)
       WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`,
      [name],
    );
  } catch (error) {
    if (sqlState(error) !== SQL_SLOT_EXISTS) {
      throw error;
    }
  }
}

/** Drops a slot if it is there. One in use is an error: end its walsender first. */
export async function dropSlot(db: Db, name: string): Promise<void> {
  await db.query(
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1",
    [name],
  );
}

/**
 * What pg_authid stores of a password. Made here, so that the password itself is in no statement, and
 * so in no log of statements.
 *
 * @param salt random bytes; of an existing verifier, to compare with it
 * @see RFC 5803; PostgreSQL's src/common/scram-common.c
 */
export function scramVerifier(password: string, salt: Uint8Array, iterations = 4096): string {
  const salted = pbkdf2Sync(password.normalize("NFKC"), salt, iterations, 32, "sha256");
  const hmac = (text: string): Buffer => createHmac("sha256", salted).update(text).digest();
  const stored = createHash("sha256").update(hmac("Client Key")).digest("base64");
  const base64Salt = Buffer.from(salt).toString("base64");
  return `SCRAM-SHA-256$${iterations}:${base64Salt}$${stored}:${hmac("Server Key").toString("base64")}`;
}

/** Whether what is stored is that password, so that it needn't be written again. */
export function isVerifierOf(password: string, stored: string): boolean {
  const [, iterations, salt] = /^SCRAM-SHA-256\$(\d+):([^$]+)\$/.exec(stored) ?? [];
  return (
    iterations !== undefined &&
    salt !== undefined &&
    stored === scramVerifier(password, Buffer.from(salt, "base64"), Number(iterations))
  );
}

const REPLICATOR = "pgautofailover_replicator";
const HEALTH_CHECKER = "pgautofailover_monitor";
/** What pg_rewind calls on its source. @see PostgreSQL 15 docs, "pg_rewind", Notes */
const REWIND_FUNCTIONS = [
  "pg_catalog.pg_ls_dir(text, boolean, boolean)",
  "pg_catalog.pg_stat_file(text, boolean)",
  "pg_catalog.pg_read_binary_file(text)",
  "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/**
 * Makes the two logins that the other nodes and the monitor use here, and mends them where they
 * differ: one that replicates and that pg_rewind can use in this database, and one without rights.
 * Standbys get them by replication: for a primary only.
 *
 * @param passwords of the logins; left out, a login keeps what it has
 */
export async function ensureRoles(
  db: Db,
  passwords: {
    readonly replicator?: string | undefined;
    readonly monitor?: string | undefined;
  } = {},
): Promise<void> {
  const roles = [
    { name: REPLICATOR, options: "LOGIN REPLICATION", password: passwords.replicator },
    { name: HEALTH_CHECKER, options: "LOGIN NOREPLICATION", password: passwords.monitor },
  ];
  await db.transaction(async (query) => {
    await query("SET TRANSACTION READ WRITE");
    // A primary that waits for its standbys must not keep its keeper waiting as well.
    await query("SET LOCAL synchronous_commit = local");
    for (const { name, options, password } of roles) {
      type Found = { rolcanlogin: boolean; rolreplication: boolean; rolpassword: string | null };
      const [found] = await query<Found>(
        "SELECT rolcanlogin, rolreplication, rolpassword FROM pg_authid WHERE rolname = $1",
        [name],
      );
      if (!found) {
        await query(`CREATE ROLE ${name} ${options}`);
      } else if (!found.rolcanlogin || found.rolreplication !== (name === REPLICATOR)) {
        await query(`ALTER ROLE ${name} ${options}`);
      }
      if (password !== undefined && !isVerifierOf(password, found?.rolpassword ?? "")) {
        const verifier = scramVerifier(password, randomBytes(16));
        await query(`ALTER ROLE ${name} PASSWORD '${verifier}'`);
      }
    }
    for (const signature of REWIND_FUNCTIONS) {
      await query(
        `DO $$ BEGIN IF NOT has_function_privilege('${REPLICATOR}', '${signature}', 'EXECUTE') THEN
           GRANT EXECUTE ON FUNCTION ${signature} TO ${REPLICATOR}; END IF; END $$`,
      );
    }
  });
}
