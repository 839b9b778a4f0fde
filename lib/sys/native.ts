/** The few system calls that neither Bun nor Node offers; Linux and macOS. */

import { dlopen, FFIType } from "bun:ffi";
import { invariant } from "./errors.ts";

const LIBRARIES: Partial<Record<NodeJS.Platform, string>> = {
  linux: "libc.so.6",
  darwin: "libSystem.B.dylib",
};

// flock(2): the same values on Linux and macOS.
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;

function openLibrary(path: string) {
  return dlopen(path, { flock: { args: [FFIType.i32, FFIType.i32], returns: FFIType.i32 } });
}

let library: ReturnType<typeof openLibrary> | undefined;

/**
 * Takes the lock of an open file, without waiting: "exclusive" beside nobody, "shared" beside other shared ones.
 *
 * The lock belongs to the open file: it ends when the descriptor is closed or the process dies, in whatever way.
 *
 * @returns false when another open file holds it
 * @see flock(2)
 */
export function tryLockFile(fd: number, mode: "exclusive" | "shared"): boolean {
  if (library === undefined) {
    const path = LIBRARIES[process.platform];
    invariant(path !== undefined, "file locks work on Linux and macOS only");
    library = openLibrary(path);
  }
  return library.symbols.flock(fd, (mode === "shared" ? LOCK_SH : LOCK_EX) | LOCK_NB) === 0;
}
