/** What the attempts of writers prove: how long nobody could write, and which rows are missing. */

/**
 * What became of a row: acknowledged; refused for certain; or nobody knows, since the connection broke or time ran out
 * after it had been sent.
 */
export type Outcome = "ok" | "failed" | "unknown";

/** One row that a writer tried to write, each under a number of its own. */
export type Attempt = {
  readonly id: number;
  readonly port: number;
  /** When that was known; milliseconds on a clock that only goes forward. */
  readonly atMs: number;
  readonly outcome: Outcome;
};

/** Errors that say for certain that the row was not written: before it was sent, or instead of writing it. */
const REFUSALS: readonly RegExp[] = [
  /^(ECONNREFUSED|CONNECT_TIMEOUT|ENOTFOUND|TLS_FAILED|TLS_FILE|NO_TLS)$/,
  /^25006$/, // read_only_sql_transaction: a standby, or a primary that takes no writes yet
  /^57P03$/, // cannot_connect_now: starting up, shutting down
  /^53300$/, // too_many_connections
  /^(28|3D)/, // no such login or database
  /^42/, // no such table yet, or no right to write into it
];

/** @param code SQLSTATE, or a connection's own code; undefined: none is known */
export function outcomeOf(code: string | undefined): Outcome {
  return REFUSALS.some((refusal) => refusal.test(code ?? "")) ? "failed" : "unknown";
}

export type Gap = { readonly fromMs: number; readonly toMs: number };

/**
 * The longest time without an acknowledgement that was not over at `sinceMs`.
 *
 * @param times of acknowledgements, ascending
 * @param untilMs the time from the last one until then counts too
 */
export function longestGap(times: readonly number[], sinceMs: number, untilMs: number): Gap {
  let fromMs = times.findLast((ms) => ms < sinceMs) ?? sinceMs;
  let longest: Gap = { fromMs, toMs: fromMs };
  for (const toMs of [...times.filter((ms) => ms >= sinceMs && ms <= untilMs), untilMs]) {
    if (toMs - fromMs > longest.toMs - longest.fromMs) longest = { fromMs, toMs };
    fromMs = toMs;
  }
  return longest;
}

export const timesOf = (attempts: readonly Attempt[]): number[] =>
  attempts.filter(({ outcome }) => outcome === "ok").map(({ atMs }) => atMs);

/** Numbers without a gap between them, both ends included. */
export type Run = readonly [first: number, last: number];

export type Comparison = {
  /** Acknowledged, and not there. */
  readonly lost: readonly number[];
  /** Of unknown fate, and there. */
  readonly found: readonly number[];
  readonly notFound: readonly number[];
  /** There, though refused or never tried. */
  readonly unexpected: readonly number[];
};

/**
 * Compares what became of rows with what a server holds.
 *
 * @param attempts those that were over when the server was asked
 * @param runs the numbers of the server's rows, ascending
 * @param begun how many attempts had begun by the time of the answer: numbers from 1 on
 */
export function compare(
  attempts: readonly Attempt[],
  runs: readonly Run[],
  begun: number,
): Comparison {
  const isThere = (id: number): boolean => {
    let [low, high] = [0, runs.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((runs[middle]?.[1] ?? 0) < id) low = middle + 1;
      else high = middle;
    }
    return (runs[low]?.[0] ?? Number.POSITIVE_INFINITY) <= id;
  };
  const those = (wanted: Outcome, there: boolean): number[] =>
    attempts
      .filter(({ id, outcome }) => outcome === wanted && isThere(id) === there)
      .map(({ id }) => id);
  const never = runs.flatMap(([first, last]) =>
    last > begun ? [Math.max(first, begun + 1), last] : [],
  );
  return {
    lost: those("ok", false),
    found: those("unknown", true),
    notFound: those("unknown", false),
    unexpected: [...those("failed", true), ...new Set(never)],
  };
}

export type Spread = { readonly min: number; readonly median: number; readonly max: number };

/** @returns undefined: there are no values */
export function spreadOf(values: readonly number[]): Spread | undefined {
  const sorted = values.toSorted((a, b) => a - b);
  const [min] = sorted;
  const median = sorted[Math.round(0.5 * (sorted.length - 1))];
  const max = sorted.at(-1);
  return min === undefined || median === undefined || max === undefined
    ? undefined
    : { min, median, max };
}
