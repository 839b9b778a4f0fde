/** Looking at the monitor again and again, for as long as somebody wants to see. */
import type { EventRow } from "../shapes.ts";
import { delay, monotonicMs } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import type { MonitorClient } from "./client.ts";

/** Not everything that changes is told by a notification. */
const LOOK_EVERY_MS = 1000;

/**
 * Looks at once, whenever something may have changed, and each second; a look that fails is tried again. Returns when the
 * signal is aborted, also in the middle of a look.
 *
 * @param onAway called after each look that failed, with the reason
 */
export async function keepLooking(
  monitor: MonitorClient,
  signal: AbortSignal,
  look: () => Promise<void>,
  onAway: (reason: string) => void,
): Promise<void> {
  let wake = new AbortController();
  const over = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
  monitor.watch(() => wake.abort()).catch(() => {}); // it goes on trying, and we look anyway
  while (!signal.aborted) {
    wake = new AbortController();
    try {
      await Promise.race([look(), over]);
    } catch (error) {
      onAway(errorText(error));
      wake = new AbortController(); // what comes of the loss itself is no reason to hurry
    }
    await delay(LOOK_EVERY_MS, AbortSignal.any([signal, wake.signal])).catch(() => {});
  }
}

/** How long a transaction that has taken an event's id can take to commit, and more. */
const SETTLED_MS = 10_000;
/** Time without an answer is no time in which a transaction could end. */
const STEP_MAX_MS = 2000;

/**
 * Each event once. An event may be committed after one with a greater id was seen, so all ids are read again from the one on
 * below which nothing can appear any more.
 */
export type Sieve = {
  /** Events from the next id on are to be read. */
  readonly floor: () => number;
  /** Those of an answer that haven't been seen. @param nowMs on a clock that only goes forward */
  readonly fresh: (rows: readonly EventRow[], nowMs: number) => EventRow[];
};

export function makeSieve(): Sieve {
  const seenAt = new Map<number, number>();
  let floor: number | undefined;
  let lastMs: number | undefined;
  let answeredMs = 0;
  return {
    floor: () => floor ?? 0,
    fresh(rows, nowMs) {
      answeredMs += Math.min(nowMs - (lastMs ?? nowMs), STEP_MAX_MS);
      lastMs = nowMs;
      floor ??= Number(rows[0]?.eventid ?? 1) - 1;
      const fresh = rows.filter(({ eventid }) => !seenAt.has(Number(eventid)));
      for (const { eventid } of fresh) seenAt.set(Number(eventid), answeredMs);
      for (const [id, atMs] of seenAt) {
        if (answeredMs - atMs > SETTLED_MS) floor = Math.max(floor, id);
      }
      for (const id of seenAt.keys()) if (id <= floor) seenAt.delete(id);
      return fresh;
    },
  };
}

/**
 * Hands on each event that comes after those that are known, until the signal is aborted.
 *
 * @param known the last ones that were read, oldest first; none: every event is new
 * @param onAway called once when the monitor no longer answers, with the reason
 */
export async function followEvents(
  monitor: MonitorClient,
  formation: string,
  known: readonly EventRow[],
  signal: AbortSignal,
  { onEvent, onAway }: { onEvent: (row: EventRow) => void; onAway: (reason: string) => void },
): Promise<void> {
  const sieve = makeSieve();
  sieve.fresh(known, monotonicMs());
  let isAway = false;
  const look = async (): Promise<void> => {
    const found = await monitor.eventsAfter(formation, sieve.floor());
    isAway = false;
    for (const row of sieve.fresh(found, monotonicMs())) onEvent(row);
  };
  await keepLooking(monitor, signal, look, (reason) => {
    if (!isAway) onAway(reason);
    isAway = true;
  });
}
