/** Bounds of a call: a deadline and signals as one, and one call at a time. */

import { monotonicMs } from "./clock.ts";

type Limit = { signal: AbortSignal; remainingMs(): number; clear(): void };

/** A deadline and the callers' signals as one signal. */
function makeLimit(
  target: Target,
  timeoutMs: number,
  signals: readonly (AbortSignal | undefined)[],
): Limit {
  const deadline = monotonicMs() + timeoutMs;
  const controller = new AbortController();
  const sources = signals.filter((signal) => signal !== undefined);
  const listeners = sources.map((source) => () => controller.abort(source.reason));
  sources.forEach((source, i) => {
    if (source.aborted) controller.abort(source.reason);
    else source.addEventListener("abort", listeners[i] as () => void, { once: true });
  });
  const timer = setTimeout(() => {
    controller.abort(
      new AppError("timeout", "PostgreSQL did not answer in time", {
        detail: { code: "DEADLINE", ...where(target), timeout_ms: Math.round(timeoutMs) },
      }),
    );
  }, timeoutMs);
  return {
    signal: controller.signal,
    remainingMs: () => Math.max(0, deadline - monotonicMs()),
    clear() {
      clearTimeout(timer);
      sources.forEach((source, i) => {
        source.removeEventListener("abort", listeners[i] as () => void);
      });
    },
  };
}

/** The work's outcome, or the signal's reason and `onAbort`, whichever is first; the loser is never unhandled. */
function raceAbort<T>(
  work: Promise<T>,
  signal: AbortSignal,
  onAbort: () => Promise<void>,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason);
      void onAbort();
    };
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** One at a time, in the order of arrival. */
function makeLane() {
  let last: Promise<void> = Promise.resolve();
  return {
    async enter(signal: AbortSignal): Promise<() => void> {
      const before = last;
      let leave = () => {};
      last = new Promise<void>((resolve) => {
        leave = resolve;
      });
      try {
        await raceAbort(before, signal, async () => {});
      } catch (error) {
        // Who gives up waiting still keeps the order for those behind.
        void before.then(leave);
        throw error;
      }
      return leave;
    },
  };
}
