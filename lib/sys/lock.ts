/** One process at a time: a lock on a file that also says who holds it. */

import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { openIfExists } from "./files.ts";
import { tryLockFile } from "./native.ts";

/** A lock that is held until it is disposed of, or the process ends. */
export type Lock = Disposable;

/**
 * Takes the lock at `path`, creating the file (mode 0600); it is never removed, so that nobody can lock a file that has
 * lost its name.
 *
 * Child processes don't inherit the lock (descriptors are close-on-exec), and a killed holder lets go of it at once.
 *
 * @returns the lock, or who holds it (undefined: somebody who has not written down a pid)
 * @throws the system's error (ENOENT, EACCES, …)
 */
export function acquireLock(path: string): Lock | { heldBy: number | undefined } {
  const fd = openSync(path, "a+", 0o600);
  try {
    if (!lockOrFindHolder(fd, path)) {
      const heldBy = readPid(path);
      closeSync(fd);
      return { heldBy };
    }
    ftruncateSync(fd, 0);
    writeSync(fd, `${process.pid}\n`);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  let held = true;
  return {
    [Symbol.dispose]() {
      if (!held) return;
      held = false;
      try {
        // Emptied first: a pid must not be read as a holder's when it may be someone else's by then.
        ftruncateSync(fd, 0);
      } catch {
        // The disk has become read-only: the lock itself is let go of all the same, and is what counts.
      } finally {
        closeSync(fd);
      }
    },
  };
}

/** Those who only look hold the lock, shared, for microseconds; a new holder writes its pid as soon. */
const LOOKERS_MS = 20;

function lockOrFindHolder(fd: number, path: string): boolean {
  for (let waitedMs = 0; !tryLockFile(fd, "exclusive"); waitedMs++) {
    if (readPid(path) !== undefined || waitedMs === LOOKERS_MS) return false;
    Bun.sleepSync(1);
  }
  return true;
}

/** Whether `acquireLock` got the lock. */
export function isLock(result: ReturnType<typeof acquireLock>): result is Lock {
  return Symbol.dispose in result;
}

/**
 * The pid of the process that holds the lock at `path`, undefined when nobody does.
 *
 * It asks the lock itself: a pid in the file of a dead holder does not count, whoever has that pid now.
 */
export function lockHolder(path: string): number | undefined {
  // a holder that ends may take the file, and its folder, away meanwhile
  const fd = openIfExists(path);
  if (fd === undefined) return undefined;
  try {
    return tryLockFile(fd, "shared") ? undefined : readPid(fd);
  } finally {
    closeSync(fd);
  }
}

function readPid(file: string | number): number | undefined {
  const pid = Number.parseInt(readFileSync(file, "utf8"), 10);
  return Number.isSafeInteger(pid) && pid > 1 ? pid : undefined;
}
