/** Whether PGDATA still holds what the keeper's own directory remembers of it: somebody may have emptied or exchanged it. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { endianness } from "node:os";
import { join } from "node:path";
import { type NodeState, STATE_TRAITS } from "../fsm.ts";
import type { KeeperState } from "../shapes.ts";
import { AppError } from "../sys/errors.ts";

const CONTROL = "global/pg_control";
/** What a keeper that runs has written meanwhile into a directory that was emptied under it. */
const OURS = /^(postgresql-auto-failover.*|standby\.signal|pg_hba\.conf|pg_ident\.conf)$/;

/**
 * The system identifier of the cluster in PGDATA, where it's another one than this node's.
 *
 * It stands at the start of pg_control in every version, in this machine's byte order; to look at it costs a failover
 * nothing, unlike pg_controldata.
 */
export function foreignIn(pgdata: string, { systemIdentifier }: KeeperState): string | undefined {
  let control: Buffer;
  try {
    control = readFileSync(join(pgdata, CONTROL));
  } catch {
    return undefined; // unknown is not foreign: PostgreSQL says itself what keeps it from starting
  }
  if (systemIdentifier === null || control.length < 8) return undefined;
  const found = String(
    endianness() === "LE" ? control.readBigUInt64LE() : control.readBigUInt64BE(),
  );
  return found === systemIdentifier ? undefined : found;
}

/** @returns undefined where nothing is there; a path that can't be looked at is there */
function look<T>(at: (path: string) => T, path: string): T | "hidden" | undefined {
  try {
    return at(path);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENOENT" ? undefined : "hidden";
  }
}

function isEmptied(pgdata: string): boolean {
  const names = look((path) => readdirSync(path), pgdata) ?? [];
  return names !== "hidden" && names.every((name) => OURS.test(name));
}

/** It may hold commits that nobody else has: that is for an operator to say. */
const wasPrimary = (state: NodeState): boolean =>
  STATE_TRAITS[state].role === "primary" || STATE_TRAITS[state].postgres === "down";

/**
 * A running keeper logs an error's message without its hint, so the next step stands in the message.
 *
 * @returns whether the data is there; it isn't where a standby's directory is empty or absent, and may be copied anew
 * @throws {AppError} conflict: it's another cluster's, or no cluster's; state: that of a node that was the primary is gone
 */
export function ownDataIsThere(pgdata: string, state: KeeperState): boolean {
  const found = foreignIn(pgdata, state);
  if (found !== undefined) {
    throw new AppError(
      "conflict",
      "the data directory belongs to another cluster, nothing is started or changed there: put this node's data back, or move what is there away, and a standby is copied anew",
      { detail: { pgdata, own: state.systemIdentifier ?? undefined, found } },
    );
  }
  const isThere = look((path) => statSync(path), join(pgdata, CONTROL)) !== undefined;
  if (state.data !== "ready" || isThere) return true;
  if (wasPrimary(state.state)) {
    throw new AppError(
      "state",
      "the data directory holds no cluster, and this node was the primary: mount its file system, or put the data back; if it is lost for good, run roles/keeper.ts drop, then create",
      { detail: { pgdata } },
    );
  }
  if (isEmptied(pgdata)) return false;
  throw new AppError(
    "conflict",
    "the data directory holds no cluster, but other files, which no copy replaces: move them away, and this standby is copied anew",
    { detail: { pgdata } },
  );
}
