/** Time as this program uses it: a clock that never jumps, and the only sleep. */

import { readIfExists } from "./files.ts";
import { bootClock } from "./native.ts";

let clock: (() => number) | undefined;

/**
 * Milliseconds on a clock that only goes forward, also while the machine is suspended.
 *
 * Within one boot (`bootId`) all processes of a machine have the same. Where the system has no such clock it's
 * Bun's own, whose zero is the start of this process, and which stands still in a suspended machine.
 */
export function monotonicMs(): number {
  clock ??= bootClock() ?? (() => performance.now());
  return clock();
}

/** Names this boot of the machine; undefined where `monotonicMs` of two processes can't be compared, or that isn't known. */
export function bootId(): string | undefined {
  if (bootClock() === undefined) return undefined;
  return readIfExists("/proc/sys/kernel/random/boot_id")?.trim();
}

/**
 * Waits.
 *
 * @param ms milliseconds, 0 or more
 * @throws the signal's reason, at once, when it is aborted
 */
export function delay(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}
