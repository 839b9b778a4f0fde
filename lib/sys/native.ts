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

// unix(7) and sendto(2) of Linux.
const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SUN_PATH_MAX = 107;

// CLOCK_MONOTONIC of Linux.
const MONOTONIC_CLOCK = 1;

function openLibrary(path: string) {
  return dlopen(path, {
    socket: { args: [FFIType.i32, FFIType.i32, FFIType.i32], returns: FFIType.i32 },
    sendto: {
      args: [FFIType.i32, FFIType.ptr, FFIType.u64, FFIType.i32, FFIType.ptr, FFIType.u32],
      returns: FFIType.i64_fast,
    },
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
    return readerOf(clock);
  } catch {
    return undefined; // another C library than the one we know by name
  }
}

/** Milliseconds; undefined where there is no such clock. */
function readerOf(clock: number): (() => number) | undefined {
  const { clock_gettime } = library().symbols;
  const timespec = new BigInt64Array(2); // seconds and nanoseconds
  if (clock_gettime(clock, timespec) !== 0) return undefined;
  return () => {
    clock_gettime(clock, timespec);
    return Number(timespec[0]) * 1000 + Number(timespec[1]) / 1e6;
  };
}

/** CLOCK_MONOTONIC in microseconds, which the service manager counts in; it stands still in a suspended machine. Linux only. */
export function monotonicMicroseconds(): number {
  return Math.floor((readerOf(MONOTONIC_CLOCK)?.() ?? 0) * 1000);
}

/**
 * Sends datagrams to a Unix socket, without ever waiting. Linux only.
 *
 * @param address a path, or a name behind "@" (an abstract socket)
 * @returns a function that says whether the datagram has been taken; undefined: there can't be such a socket
 * @see unix(7)
 */
export function datagramSender(address: string): ((text: string) => boolean) | undefined {
  const path = new TextEncoder().encode(address);
  if (process.platform !== "linux" || !/^[@/]./.test(address) || path.length > SUN_PATH_MAX)
    return undefined;
  const isAbstract = address.startsWith("@");
  if (isAbstract) path[0] = 0;
  // a path ends with a zero, an abstract name where its length says
  const sockaddr = new Uint8Array(2 + path.length + (isAbstract ? 0 : 1));
  new Uint16Array(sockaddr.buffer, 0, 1)[0] = AF_UNIX;
  sockaddr.set(path, 2);
  const { socket, sendto } = library().symbols;
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return undefined;
  return (text) => {
    const bytes = new TextEncoder().encode(text);
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    return sendto(fd, bytes, bytes.length, flags, sockaddr, sockaddr.length) === bytes.length;
  };
}
