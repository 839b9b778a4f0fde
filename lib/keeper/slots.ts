/** What a standby that is away may cost its primary: the WAL that its slot holds back. */
import { statfsSync } from "node:fs";
import { join } from "node:path";
import { standbyId } from "../group/quorum.ts";
import type { Observation } from "../pg/local.ts";

const GIGABYTE = 1024 ** 3;
const MEGABYTE = 1024n ** 2n;

/**
 * `max_slot_wal_keep_size`: a quarter of the file system, so that slots alone never fill it, rounded
 * down to a power of two, so that it doesn't follow the file system's every change.
 */
export function slotKeepSize(fileSystemBytes: number): string {
  const quarter = Math.max(1, fileSystemBytes / 4 / GIGABYTE);
  return `${2 ** Math.floor(Math.log2(quarter))}GB`;
}

/** That of the file system that the WAL is on; none where the system doesn't tell its size. */
export function slotSettings(pgdata: string): Readonly<Record<string, string>> {
  try {
    const { blocks, bsize } = statfsSync(join(pgdata, "pg_wal"));
    return { max_slot_wal_keep_size: slotKeepSize(blocks * bsize) };
  } catch {
    return {};
  }
}

/** Slots of ours whose standby can't use them any more. */
export const lostSlots = (seen: Observation): string[] =>
  seen.slots
    .filter(
      ({ name, active, walStatus }) =>
        walStatus === "lost" && !active && standbyId(name) !== undefined,
    )
    .map(({ name }) => name);

/** @returns by slot of ours: a sentence, for one that is about to be lost, or holds much WAL back */
export function slotWarnings(seen: Observation): ReadonlyMap<string, string> {
  const { slotKeepBytes: limit } = seen;
  const warnings = new Map<string, string>();
  for (const { name, restartLsn, walStatus } of seen.slots) {
    if (restartLsn === undefined || standbyId(name) === undefined) continue;
    const held = seen.lsn - restartLsn;
    const isMuch = limit !== undefined && 2n * held > limit;
    if (!isMuch && walStatus !== "unreserved") continue;
    const most = limit === undefined ? "" : ` of at most ${limit / MEGABYTE} MB`;
    warnings.set(
      name,
      `Replication slot "${name}" holds back ${held / MEGABYTE} MB of WAL${most}: beyond, its standby has to be copied anew`,
    );
  }
  return warnings;
}
