/** Waiting for conditions, never for time. */

import { monotonicMs } from "../../lib/sys/clock.ts";

/** Milliseconds on a clock that no time server moves. */
export const nowMs = monotonicMs;

/**
 * Asks until the probe yields something that isn't undefined or false.
 *
 * @param what ends the sentence "gave up after 1000 ms waiting for …"
 * @param explain more for the error's text, asked only when time is up
 * @throws {Error} time is up; the probe's last own error is its cause
 */
export async function waitFor<T>(
  what: string,
  timeoutMs: number,
  probe: () => Promise<T | undefined | false> | T | undefined | false,
  options: { everyMs?: number; explain?: () => Promise<string> | string } = {},
): Promise<T> {
  const deadlineMs = nowMs() + timeoutMs;
  let cause: unknown;
  for (;;) {
    try {
      const found = await probe();
      if (found !== undefined && found !== false) return found;
      cause = undefined;
    } catch (error) {
      cause = error;
    }
    if (nowMs() >= deadlineMs) break;
    await Bun.sleep(options.everyMs ?? 20);
  }
  const more = options.explain ? `\n${await options.explain()}` : "";
  throw new Error(`gave up after ${timeoutMs} ms waiting for ${what}${more}`, { cause });
}

/** The promise's value, or an error when it takes longer. */
export async function within<T>(timeoutMs: number, what: string, promise: Promise<T>): Promise<T> {
  promise.catch(() => {}); // A late failure has no reader any more.
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Deadline(what, timeoutMs)), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Something took longer than it may. */
export class Deadline extends Error {
  override readonly name = "Deadline";
  readonly code = "DEADLINE";
  constructor(what: string, timeoutMs: number) {
    super(`${what} took longer than ${timeoutMs} ms`);
  }
}
