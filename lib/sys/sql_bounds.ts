/** Bounds of a call: a deadline and signals as one, and one call at a time. */

import { monotonicMs } from "./clock.ts";
import { AppError } from "./errors.ts";
import { type Target, where } from "./sql_target.ts";

/** What ends a call, and how much of its time is left. */
export type Limit = { readonly signal: AbortSignal; readonly remainingMs: () => number };

/**
 * Does `work` within its time; the signal that it gets ends with the first of the deadline and `signals`.
 *
 * @throws {AppError} timeout with code DEADLINE, the reason of a signal, or what `work` throws before either
 */
export async function bounded<T>(
  target: Target,
  timeoutMs: number,
  signals: readonly (AbortSignal | undefined)[],
  work: (limit: Limit) => Promise<T>,
): Promise<T> {
  const deadline = monotonicMs() + timeoutMs;
  const controller = new AbortController();
  const links = signals
    .filter((signal) => signal !== undefined)
    .map((signal) => ({ signal, abort: () => controller.abort(signal.reason) }));
  for (const { signal, abort } of links) {
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  }
  const timer = setTimeout(() => {
    const detail = { code: "DEADLINE", ...where(target), timeout_ms: Math.round(timeoutMs) };
    controller.abort(new AppError("timeout", "PostgreSQL did not answer in time", { detail }));
  }, timeoutMs);
  const remainingMs = () => Math.max(0, deadline - monotonicMs());
  try {
    return await work({ signal: controller.signal, remainingMs });
  } catch (error) {
    throw controller.signal.aborted ? controller.signal.reason : error;
  } finally {
    clearTimeout(timer);
    for (const { signal, abort } of links) signal.removeEventListener("abort", abort);
  }
}

/** The work's outcome, or the signal's reason and `onAbort`, whichever is first; the loser is never unhandled. */
export function raceAbort<T>(
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
export function makeLane() {
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
