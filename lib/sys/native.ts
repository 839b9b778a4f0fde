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

// CLOCK_BOOTTIME of Linux; macOS has it as CLOCK_MONOTONIC, which counts sleep there.
const BOOT_CLOCKS: Partial<Record<NodeJS.Platform, number>> = { linux: 7, darwin: 6 };

function openLibrary(path: string) {
  return dlopen(path, {
    flock: { args: [FFIType.i32, FFIType.i32], returns: FFIType.i32 },
    clock_gettime: { args: [FFIType.i32, FFIType.ptr], returns: FFIType.i32 },
  });
}

let opened: ReturnType<typeof openLibrary> | undefined;

function library(): ReturnType<typeof openLibrary> {
  const path = LIBRARIES[process.platform];
  invariant(path !== undefined, "system calls are made on Linux and macOS only");
  opened ??= openLibrary(path);
  return opened;
}

/**
 * Takes the lock of an open file, without waiting: "exclusive" beside nobody, "shared" beside other shared ones.
 *
 * The lock belongs to the open file: it ends when the descriptor is closed or the process dies, in whatever way.
 *
 * @returns false when another open file holds it
 * @see flock(2)
 */
export function tryLockFile(fd: number, mode: "exclusive" | "shared"): boolean {
  return library().symbols.flock(fd, (mode === "shared" ? LOCK_SH : LOCK_EX) | LOCK_NB) === 0;
}

/**
 * The clock that counts milliseconds since the machine was started, those too for which it was suspended.
 *
 * @returns a function that takes less than a microsecond; undefined where there is no such clock
 * @see clock_gettime(2)
 */
export function bootClock(): (() => number) | undefined {
  const clock = BOOT_CLOCKS[process.platform];
  if (clock === undefined) return undefined;
  try {
    const { clock_gettime } = library().symbols;
    const timespec = new BigInt64Array(2); // seconds and nanoseconds
    if (clock_gettime(clock, timespec) !== 0) return undefined;
    return () => {
      clock_gettime(clock, timespec);
      return Number(timespec[0]) * 1000 + Number(timespec[1]) / 1e6;
    };
  } catch {
    return undefined; // another C library than the one we know by name
  }
}
