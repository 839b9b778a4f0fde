/**
 * Whether a standby's WAL is part of another server's. Timeline numbers prove nothing alone: two
 * servers promoted from the same point count on with the same number. So the last bytes that were
 * replayed here are compared with the same bytes there.
 */
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { formatLsn } from "../group/lsn.ts";
import type { Observation } from "../pg/local.ts";
import type { Tablespace } from "../pg/tablespaces.ts";
import {
  type Branch,
  historyFile,
  isWithinHistory,
  parseHistory,
  segmentFile,
  segmentNames,
} from "../pg/timeline.ts";
import type { Promotion } from "../shapes.ts";
import { AppError } from "../sys/errors.ts";
import { queryOnce, type Target, tlsProblem } from "../sys/sql.ts";
import { TABLESPACES } from "./tablespaces.ts";

/** As much as holds the checksums of the last few records. */
const COMPARED_BYTES = 512;
const ASK_TIMEOUT_MS = 2000;

export type Source = {
  readonly systemIdentifier: string;
  readonly timeline: number;
  readonly checkpointTimeline: number;
  /** Bytes: how far its WAL is on its disk. */
  readonly lsn: bigint;
  readonly slots: readonly string[];
  readonly history: string;
  readonly segmentBytes: bigint;
  readonly tablespaces: readonly Tablespace[];
};

/** @throws {AppError} config: the certificate of one side isn't good for the other; else as `queryOnce` */
const ask: typeof queryOnce = async (target, ...question) => {
  try {
    return await queryOnce(target, ...question);
  } catch (error) {
    const tls = tlsProblem(error);
    if (tls === undefined) throw error;
    throw new AppError("config", `could not connect to another node: ${tls.says}`, {
      detail: { host: target.host, port: target.port },
      hint: tls.hint,
      cause: error,
    });
  }
};

/** What the primary says of itself; its control file follows a promotion only with a checkpoint. */
export async function askSource(target: Target): Promise<Source | undefined> {
  const [row] = await ask<{
    sysid: string;
    timeline: number;
    checkpoint: number;
    lsn: string;
    slots: string[];
    history: string | null;
    segment: string;
    tablespaces: Tablespace[];
  }>(
    target,
    `select (select system_identifier::text from pg_control_system()) as sysid, me.timeline,
       (select timeline_id from pg_control_checkpoint()) as checkpoint,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::text as lsn,
       to_json(array(select slot_name::text from pg_replication_slots where wal_status is distinct from 'lost')) as slots,
       convert_from(pg_read_binary_file('pg_wal/' || lpad(upper(to_hex(me.timeline)), 8, '0') || '.history',
         0, 1048576, true), 'UTF8') as history,
       pg_size_bytes(current_setting('wal_segment_size'))::text as segment,
       (select coalesce(json_agg(found), '[]') from (${TABLESPACES}) found) as tablespaces
     from (select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int as timeline offset 0) as me`,
    [],
    { timeoutMs: ASK_TIMEOUT_MS },
  );
  return (
    row && {
      systemIdentifier: row.sysid,
      timeline: row.timeline,
      checkpointTimeline: row.checkpoint,
      lsn: BigInt(row.lsn),
      slots: row.slots,
      history: row.history ?? "",
      segmentBytes: BigInt(row.segment),
      tablespaces: row.tablespaces,
    }
  );
}

/** A range of a segment of the source; undefined when it has none of that name any more. */
async function sourceBytes(
  target: Target,
  names: readonly string[],
  offset: bigint,
  length: number,
): Promise<Buffer | undefined> {
  for (const name of names) {
    const [row] = await ask<{ bytes: Buffer | null }>(
      target,
      "select pg_read_binary_file('pg_wal/' || $1::text, $2::bigint, $3::bigint, true) as bytes",
      [name, offset, length],
      { timeoutMs: ASK_TIMEOUT_MS },
    );
    if (row?.bytes) return row.bytes;
  }
  return undefined;
}

function localBytes(
  pgdata: string,
  name: string,
  offset: bigint,
  length: number,
): Buffer | undefined {
  let fd: number;
  try {
    fd = openSync(join(pgdata, "pg_wal", name), "r");
  } catch {
    return undefined;
  }
  try {
    const buffer = Buffer.alloc(length);
    return buffer.subarray(0, readSync(fd, buffer, 0, length, Number(offset)));
  } finally {
    closeSync(fd);
  }
}

/**
 * `part`: the WAL replayed here is part of the source's, and it has what comes next. `diverged`: it is
 * not. `gone`: the source no longer has the WAL that it would be compared with, and that comes next.
 */
export type Ancestry = "part" | "diverged" | "gone";

/** @param seen a running standby of this data directory */
export async function ancestryOf(
  pgdata: string,
  seen: Observation,
  source: Source,
  target: Target,
): Promise<Ancestry> {
  const { timeline, replayLsn: lsn } = seen;
  if (!seen.inRecovery || lsn === undefined) return "diverged";
  const history = parseHistory(source.history);
  if (!isWithinHistory({ timeline, lsn }, source.timeline, history, source.lsn)) return "diverged";
  const { segmentBytes } = source;
  const last = lsn - 1n;
  const inSegment = (last % segmentBytes) + 1n;
  const length = Number(inSegment < COMPARED_BYTES ? inSegment : BigInt(COMPARED_BYTES));
  const offset = inSegment - BigInt(length);
  const names = segmentNames(timeline, last, source.timeline, history, segmentBytes);
  const there = await sourceBytes(target, names, offset, length);
  if (there === undefined) return "gone";
  const here = [...names, segmentFile(timeline, last, segmentBytes)]
    .map((name) => localBytes(pgdata, name, offset, length))
    .find((bytes) => bytes !== undefined);
  return here?.equals(there) ? "part" : "diverged";
}

/** @throws {Error} the timeline's history file can't be read */
export const historyOf = (pgdata: string, timeline: number): Branch[] =>
  parseHistory(readFileSync(join(pgdata, "pg_wal", historyFile(timeline)), "latin1"));

/** The timeline from which a server was promoted to this one; 0: none. @throws {Error} its history file can't be read */
export const parentTimeline = (pgdata: string, timeline: number): number =>
  historyOf(pgdata, timeline).at(-1)?.timeline ?? 0;

/** Where a server that has just been promoted left its old timeline. @throws {Error} its history file can't be read */
export function promotionOf(pgdata: string, timeline: number): Promotion {
  return { timeline, forkLsn: formatLsn(historyOf(pgdata, timeline).at(-1)?.forkLsn ?? 0n) };
}
