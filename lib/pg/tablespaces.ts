/**
 * Tablespaces: directories elsewhere that belong to a data directory. A base backup of one grows in a
 * subdirectory of its location, whose parent may be another file system, and replaces what is there
 * only when it's complete.
 */
import {
  existsSync,
  mkdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, sep } from "node:path";
import { AppError } from "../sys/errors.ts";
import { namesIn, readIfExists, removeTree, syncDirectory } from "../sys/files.ts";
import { logger } from "../sys/log.ts";
import { currentUser } from "../sys/user.ts";
import { isAlive, isPostgres, listProcesses, worksIn } from "./processes.ts";

const log = logger("postgres");

/** What stands beside PostgreSQL's own directory in a tablespace's location while it's replaced. */
const COPY = "pg_auto_failover_copy";
const REPLACED = "pg_auto_failover_replaced";

export type Tablespace = { readonly oid: string; readonly location: string };

type Link = Tablespace & {
  /** Of a base backup that has not been put in its place: the subdirectory that it stands in. */
  readonly copy: string | undefined;
};

/** Those of a data directory, or of a copy of one. */
export function tablespacesOf(pgdata: string): Link[] {
  return namesIn(join(pgdata, "pg_tblspc")).flatMap((oid) => {
    try {
      const target = readlinkSync(join(pgdata, "pg_tblspc", oid));
      const copy = basename(target) === COPY ? target : undefined;
      return [{ oid, location: copy === undefined ? target : dirname(target), copy }];
    } catch {
      return []; // a directory: PostgreSQL's own tests make tablespaces that are no links
    }
  });
}

/** The arguments with which pg_basebackup copies each of them to where `placeCopies` finds it. */
export const mappingArguments = (tablespaces: readonly Tablespace[]): string[] =>
  tablespaces.map(({ location }) => {
    const [from, to] = [location, join(location, COPY)].map((path) => path.replaceAll("=", "\\="));
    return `--tablespace-mapping=${from}=${to}`;
  });

/** Removes the copies of a base backup that was not completed. */
export function removeCopies(tablespaces: readonly Tablespace[]): void {
  for (const { location } of tablespaces) removeTree(join(location, COPY));
}

/** @returns the pid of another server on this machine that has a tablespace in that very directory */
function otherUser(location: string, pgdata: string): number | undefined {
  const here = statSync(location, { throwIfNoEntry: false });
  const isSame = (pid: number, theirs: string): boolean => {
    try {
      // as that process sees it, which may have mounts of its own
      const there = statSync(`/proc/${pid}/root${theirs}`);
      return there.dev === here?.dev && there.ino === here.ino;
    } catch {
      return false;
    }
  };
  return listProcesses().find(
    (one) =>
      isAlive(one) &&
      isPostgres(one) &&
      worksIn(pgdata, one.pid) === false &&
      tablespacesOf(`/proc/${one.pid}/cwd`).some((link) => isSame(one.pid, link.location)),
  )?.pid;
}

/** @throws {AppError} permission: it's missing and can't be made */
export function makeLocation(location: string): void {
  try {
    const isNew = mkdirSync(location, { recursive: true, mode: 0o700 }) !== undefined;
    if (isNew) log.info("Made the directory of a tablespace", { location });
  } catch (cause) {
    throw locationError("could not make the directory of a tablespace", location, cause);
  }
}

const locationError = (message: string, location: string, cause: unknown): AppError =>
  new AppError("permission", message, {
    detail: { location, reason: (cause as Error).message },
    hint: `Make it, for the user that runs PostgreSQL: install -d -o ${currentUser()} -m 0700 ${location}`,
    cause,
  });

/** Whether the source's tablespace is in the very directory that we would use. */
async function isShared(
  { oid, location }: Tablespace,
  sourceHas: (path: string) => Promise<boolean>,
): Promise<boolean> {
  const name = `.pg_auto_failover_${crypto.randomUUID()}`;
  try {
    writeFileSync(join(location, name), "", { flag: "wx", mode: 0o600 });
  } catch (cause) {
    throw locationError("could not write into the directory of a tablespace", location, cause);
  }
  try {
    return await sourceHas(`pg_tblspc/${oid}/${name}`);
  } finally {
    rmSync(join(location, name), { force: true });
  }
}

/**
 * Makes sure that each of the source's tablespaces can have its place here: PostgreSQL gives a
 * tablespace the same path on every node.
 *
 * @param options.known data directories of this node: what their tablespaces hold is ours
 * @param options.sourceHas whether the source has a file, by its path in its data directory
 * @throws {AppError} conflict: another server's files are there, or it lies in the data directory;
 *   permission: a directory is missing and can't be made, or can't be written
 */
export async function prepareLocations(
  tablespaces: readonly Tablespace[],
  options: {
    readonly pgdata: string;
    readonly known: readonly string[];
    readonly major: number;
    readonly sourceHas: (path: string) => Promise<boolean>;
  },
): Promise<void> {
  const { pgdata, major } = options;
  const own = options.known.flatMap(tablespacesOf).map(({ location }) => location);
  for (const tablespace of tablespaces) {
    const { location } = tablespace;
    if (`${location}${sep}`.startsWith(`${pgdata}${sep}`)) {
      throw new AppError("conflict", "a tablespace of the group lies inside this data directory", {
        detail: { location, pgdata },
        hint: "Give this node another --pgdata, or move the tablespace's tables to one elsewhere.",
      });
    }
    if (!existsSync(location)) {
      makeLocation(location);
      continue;
    }
    const isForeign = !own.includes(location) && versionDirectories(location, major).length > 0;
    if (
      isForeign ||
      otherUser(location, pgdata) !== undefined ||
      (await isShared(tablespace, options.sourceHas))
    ) {
      throw new AppError("conflict", "the place of a tablespace holds another server's files", {
        detail: { location },
        hint: "A tablespace has the same path on each node, so two nodes on one machine can't both have it: make this node on another machine. What nothing uses any more may be removed.",
      });
    }
  }
}

const versionDirectories = (location: string, major: number): string[] =>
  namesIn(location).filter((name) => new RegExp(`^PG_${major}_\\d+$`).test(name));

/**
 * Puts the tablespaces of a complete base backup where their server will look for them, what was there
 * aside. A system call a step: it may be cut off after each, and goes on from there.
 *
 * @param copy the base backup's data directory, whose links lead to its tablespaces
 */
export function* placeCopies(copy: string): Generator<void> {
  for (const { oid, location, copy: from } of tablespacesOf(copy)) {
    if (from === undefined) continue;
    const aside = join(location, REPLACED);
    for (const name of namesIn(from)) {
      const place = join(location, name);
      if (existsSync(place)) {
        removeTree(join(aside, name));
        mkdirSync(aside, { recursive: true, mode: 0o700 });
        yield;
        renameSync(place, join(aside, name));
        yield;
      }
      renameSync(join(from, name), place);
      yield;
    }
    removeTree(from);
    syncDirectory(location);
    yield;
    const link = join(copy, "tablespace.link");
    rmSync(link, { force: true });
    symlinkSync(location, link);
    yield;
    renameSync(link, join(copy, "pg_tblspc", oid));
    syncDirectory(join(copy, "pg_tblspc"));
    yield;
  }
}

/** Removes what `placeCopies` has put aside, once the copy is where its server looks for it. */
export function removeReplaced(pgdata: string): void {
  for (const { location } of tablespacesOf(pgdata)) removeTree(join(location, REPLACED));
}

/**
 * Removes what a data directory's tablespaces hold; their directories stay, which may be mount points.
 *
 * @param keep another data directory, whose tablespaces stay
 */
export function removeTablespaces(pgdata: string, keep?: string): void {
  const major = Number.parseInt(readIfExists(join(pgdata, "PG_VERSION")) ?? "", 10);
  const kept = keep === undefined ? [] : tablespacesOf(keep).map(({ location }) => location);
  for (const { location, copy } of tablespacesOf(pgdata)) {
    if (copy !== undefined) {
      removeTree(copy);
      continue;
    }
    if (kept.includes(location)) continue;
    const pid = otherUser(location, pgdata);
    if (pid !== undefined) {
      log.warn("The files of a tablespace stay, since another server uses them", { location, pid });
      continue;
    }
    for (const name of [...versionDirectories(location, major), REPLACED]) {
      removeTree(join(location, name));
    }
  }
}
