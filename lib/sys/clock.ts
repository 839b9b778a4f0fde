/** Time as this program uses it: a clock that never jumps, and the only sleep. */

/**
 * Milliseconds on a clock that only goes forward; its zero has no meaning.
 *
 * On Linux this is CLOCK_MONOTONIC: it does not count the time that a machine was suspended.
 */
export function monotonicMs(): number {
  return performance.now();
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
