/** Waiting for a condition, with an end. */

import { delay, monotonicMs } from "./clock.ts";
import { AppError } from "./errors.ts";

/** How long to wait, how often to look, and for what (a noun phrase for the message). */
export type WaitOptions = {
  readonly timeoutMs: number;
  readonly everyMs: number;
  readonly signal?: AbortSignal | undefined;
  readonly what: string;
};

/**
 * Asks `probe` at once and then every `everyMs` until it yields something else than undefined.
 *
 * An error of `probe` ends the waiting and is passed on. A probe that does not answer is given up at the deadline.
 *
 * @throws {AppError} timeout, naming `what`
 * @throws the signal's reason when it is aborted
 */
export async function waitUntil<T>(
  probe: () => Promise<T | undefined> | T | undefined,
  { timeoutMs, everyMs, signal, what }: WaitOptions,
): Promise<T> {
  const deadline = monotonicMs() + timeoutMs;
  const over = new AbortController();
  const stop = signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]);
  const timer = setTimeout(() => {
    over.abort(
      new AppError("timeout", `gave up waiting for ${what}`, { detail: { timeout_ms: timeoutMs } }),
    );
  }, timeoutMs);
  try {
    for (;;) {
      stop.throwIfAborted();
      const found = await unlessAborted(Promise.resolve(probe()), stop);
      if (found !== undefined) return found;
      // The last look is at the deadline itself, so a short timeout is not missed by a long period.
      await delay(Math.max(0, Math.min(everyMs, deadline - monotonicMs() - 1)), stop);
    }
  } finally {
    clearTimeout(timer);
  }
}

function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}
