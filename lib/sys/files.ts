/** Small files that are whole at any time; most of them must survive a power cut. */

import {
  closeSync,
  fchmodSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { chmod, open, rename, rm, writeFile } from "node:fs/promises";
import { release } from "node:os";
import { dirname } from "node:path";

/**
 * Replaces the file at `path` as a whole: afterwards, also after a crash at any moment, it holds either what it held
 * before or all of `text`. When this returns the new text is on the disk.
 *
 * @param mode permission bits, e.g. 0o600; the umask does not weaken or widen them
 * @throws the system's error (ENOENT, ENOSPC, EACCES, …); the file is then as before and no temporary file is left
 */
export function writeDurably(path: string, text: string, mode: number): void {
  replace(path, text, mode, fsyncSync);
  syncDirectory(dirname(path));
}

/** As `writeDurably`, but only a crash of this process does it no harm: after a power cut the file may be any older one, or empty. */
export function writeAtomically(path: string, text: string, mode: number): void {
  replace(path, text, mode, () => {});
}

/** As `writeDurably`, beside everything else: a disk that hangs holds up nobody. @throws as it does */
export async function writeDurablyBeside(path: string, text: string, mode: number): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    await rm(temporary, { force: true });
    await writeFile(temporary, text, { mode, flag: "wx", flush: true });
    await chmod(temporary, mode);
    await rename(temporary, path);
    const directory = await open(dirname(path), "r");
    await directory.sync().finally(() => directory.close());
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

function replace(path: string, text: string, mode: number, sync: (fd: number) => void): void {
  const temporary = `${path}.${process.pid}.tmp`;
  // What a process of the same pid left behind when it was killed.
  rmSync(temporary, { force: true });
  try {
    const fd = openSync(temporary, "wx", mode);
    try {
      fchmodSync(fd, mode);
      writeFully(fd, text);
      sync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

/** A pipe whose reader is slow is given this long, and then up. */
const PIPE_WAITS_MAX = 1000;

/**
 * Writes all of `text`, also to a terminal or pipe that takes it in parts or not yet.
 *
 * @throws the system's error, e.g. EPIPE, or EAGAIN after a second in which nothing could be written
 */
export function writeFully(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  let waits = 0;
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(fd, bytes, done);
      waits = 0;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN" || ++waits > PIPE_WAITS_MAX)
        throw error;
      Bun.sleepSync(1);
    }
  }
}

/** Removes a file, if it is there, and makes that durable. */
export function removeDurably(path: string): void {
  rmSync(path, { force: true });
  syncDirectory(dirname(path));
}

/** Makes the names in a directory durable: files created, renamed or removed in it. */
export function syncDirectory(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The names in a directory; none where it isn't there, or can't be read. */
export function namesIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

/** Removes whatever is there, if anything is. */
export const removeTree = (path: string): void => rmSync(path, { recursive: true, force: true });

/** The file's text, or undefined when there is none; other errors (EACCES, EISDIR, …) are thrown. */
export function readIfExists(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

/** A descriptor for reading. */
export function openIfExists(path: string): number | undefined {
  try {
    return openSync(path, "r");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code;
  return code === "ENOENT" || code === "ENOTDIR";
}

/**
 * Whether one call can bring a whole file system to disk and tell of errors; file by file a large directory takes long,
 * also where nothing has changed.
 *
 * @param kernel as uname -r prints it
 * @see syncfs(2): errors are told since Linux 5.8
 */
export function hasSyncfs(kernel = release(), platform: string = process.platform): boolean {
  const [major = 0, minor = 0] = kernel.split(".").map((part) => Number.parseInt(part, 10));
  return platform === "linux" && (major > 5 || (major === 5 && minor >= 8));
}
