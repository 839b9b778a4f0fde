/** A group's tablespaces on this node, and how a complete copy takes the place of what was there. */
import { existsSync, renameSync } from "node:fs";
import { dirname } from "node:path";
import {
  makeLocation,
  placeCopies,
  prepareLocations,
  removeReplaced,
  removeTablespaces,
  type Tablespace,
} from "../pg/tablespaces.ts";
import { removeTree, syncDirectory } from "../sys/files.ts";
import { queryOnce, type Target } from "../sys/sql.ts";

const ASK_TIMEOUT_MS = 2000;

/** Where a base backup grows, and where what it replaces goes; names that no operator would choose. */
export const copyPaths = (pgdata: string): readonly [copy: string, replaced: string] => [
  `${pgdata}.basebackup`,
  `${pgdata}.replaced`,
];

/** A query for those with a directory of their own. */
export const TABLESPACES = `select oid::text, pg_tablespace_location(oid) as location from pg_tablespace
     where pg_tablespace_location(oid) like '/%' order by oid`;

/** Makes the directories of the source's tablespaces that are missing here. */
export async function makeMissingLocations(source: Target): Promise<void> {
  const tablespaces = await queryOnce<Tablespace>(source, TABLESPACES, [], {
    timeoutMs: ASK_TIMEOUT_MS,
  });
  for (const { location } of tablespaces) makeLocation(location);
}

/**
 * Makes sure that the source's tablespaces can have their place here.
 *
 * @throws {AppError} conflict: another server's files are there; permission: they can't be there
 */
export async function prepareTablespaces(
  pgdata: string,
  major: number,
  source: Target,
  tablespaces: readonly Tablespace[],
): Promise<void> {
  const sourceHas = async (path: string): Promise<boolean> => {
    const text = "select (pg_stat_file($1::text, true)).size is not null as there";
    const [row] = await queryOnce<{ there: boolean }>(source, text, [path], {
      timeoutMs: ASK_TIMEOUT_MS,
    });
    return row?.there === true;
  };
  const known = [pgdata, ...copyPaths(pgdata)];
  await prepareLocations(tablespaces, { pgdata, known, major, sourceHas });
}

/**
 * Puts a complete copy in the place of the data directory and of its tablespaces. It may be cut off
 * after each step, and goes on from there; what was there before goes last.
 */
export function* swapSteps(pgdata: string): Generator<void> {
  const [copy, replaced] = copyPaths(pgdata);
  if (existsSync(copy)) {
    yield* placeCopies(copy);
    if (existsSync(pgdata)) {
      removeTree(replaced);
      renameSync(pgdata, replaced);
      yield;
    }
    renameSync(copy, pgdata);
    syncDirectory(dirname(pgdata));
    yield;
  }
  removeReplaced(pgdata);
  removeTablespaces(replaced, pgdata);
  yield;
  removeTree(replaced);
}

/** Removes a node's data for good, and what its tablespaces hold. */
export function destroyData(pgdata: string): void {
  for (const path of [pgdata, ...copyPaths(pgdata)]) {
    removeTablespaces(path);
    removeTree(path);
  }
}
