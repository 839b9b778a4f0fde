/** Writers that never stop: they know every host of the client's URI, and remember what became of each row. */
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { waitUntil } from "../sys/retry.ts";
import { type Db, openDb, type Query, queryOnce, sqlState, type Target } from "../sys/sql.ts";
import { type Attempt, outcomeOf, type Run } from "./outage.ts";

/** Who finds no host that takes writes goes round them again so soon: an outage is measured no finer. */
const ROUND_MS = 10;
/** A write that takes longer is given up; nobody knows then whether it was done. */
const WRITE_TIMEOUT_MS = 3000;
const ERRORS_KEPT = 5;
const READ_TIMEOUT_MS = 30_000;

export type WorkloadOptions = {
  /** Of every host, the login's. */
  readonly targets: readonly Target[];
  /** As SQL wants it; with a column `id`. */
  readonly table: string;
  readonly writers: number;
  /** Of all writers together, while all goes well. */
  readonly writesPerSecond: number;
};

export type Workload = AsyncDisposable & {
  /** In the order of their ends. */
  readonly attempts: readonly Attempt[];
  /** How many have begun: their numbers are 1 to this. */
  readonly begun: () => number;
  readonly acknowledged: () => number;
  /** How often each kind of error came, by its code. */
  readonly failures: ReadonlyMap<string, number>;
  /** The last few errors in words. */
  readonly errors: string[];
  /** Waits until so many more rows than now are acknowledged. @throws {AppError} timeout */
  waitForWrites(count: number, timeoutMs: number, signal?: AbortSignal): Promise<void>;
  /** Ends the writing; writes in flight are waited for. */
  stop(): Promise<void>;
};

/** Starts the writers. */
export function startWorkload(options: WorkloadOptions): Workload {
  const { targets, table, writers, writesPerSecond } = options;
  const text = `insert into ${table} (id) values ($1)`;
  const attempts: Attempt[] = [];
  const failures = new Map<string, number>();
  const errors: string[] = [];
  let begun = 0;
  let acknowledged = 0;
  const stopping = new AbortController();

  const remember = (error: unknown): void => {
    const code = sqlState(error) ?? "";
    failures.set(code, (failures.get(code) ?? 0) + 1);
    errors.push(errorText(error));
    if (errors.length > ERRORS_KEPT) errors.shift();
  };

  /** One attempt with a number of its own: none is tried twice. */
  const write = async (db: Db, { port }: Target): Promise<boolean> => {
    begun += 1;
    const id = begun;
    try {
      await db.query(text, [id], { timeoutMs: WRITE_TIMEOUT_MS });
      acknowledged += 1;
      attempts.push({ id, port, atMs: monotonicMs(), outcome: "ok" });
      return true;
    } catch (error) {
      const outcome = outcomeOf(sqlState(error));
      attempts.push({ id, port, atMs: monotonicMs(), outcome });
      remember(error);
      return false;
    }
  };

  const run = async (index: number): Promise<void> => {
    const hosts = targets.map((target) => ({ target, db: openDb(target) }));
    const pause = (untilMs: number) =>
      delay(Math.max(0, untilMs - monotonicMs()), stopping.signal).catch(() => {});
    const periodMs = (writers * 1000) / writesPerSecond;
    // so that they don't write all at once
    await pause(monotonicMs() + (index * periodMs) / writers);
    let turn = 0;
    let refusedInARow = 0;
    while (!stopping.signal.aborted) {
      const startedMs = monotonicMs();
      const host = hosts[turn % hosts.length];
      if (host !== undefined && (await write(host.db, host.target))) {
        refusedInARow = 0;
        await pause(startedMs + periodMs);
      } else {
        turn += 1;
        refusedInARow += 1;
        // the other hosts at once, and then round again: all writers together no more often than one alone
        if (refusedInARow % hosts.length === 0) await pause(startedMs + ROUND_MS * writers);
      }
    }
    await Promise.all(hosts.map(({ db }) => db.close()));
  };

  const running = Promise.all(Array.from({ length: writers }, (_, index) => run(index)));
  const stop = async (): Promise<void> => {
    stopping.abort();
    await running;
  };
  return {
    attempts,
    failures,
    errors,
    begun: () => begun,
    acknowledged: () => acknowledged,
    async waitForWrites(count, timeoutMs, signal) {
      const goal = acknowledged + count;
      const look = () => (acknowledged >= goal ? true : undefined);
      const what = `${count} acknowledged writes`;
      await waitUntil(look, { timeoutMs, everyMs: 5, what, signal }).catch((error) => {
        if (signal?.aborted || !(error instanceof AppError)) throw error;
        const detail = { ...error.detail, last_error: errors.at(-1) };
        throw new AppError("timeout", error.message, { detail });
      });
    },
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** The numbers of the rows that a server holds. */
export async function readRuns(target: Target, table: string): Promise<Run[]> {
  const text = `select min(id) as first, max(id) as last
    from (select id, id - row_number() over (order by id) as run from ${table}) as numbered group by run order by 1`;
  const rows = await queryOnce(target, text, [], { timeoutMs: READ_TIMEOUT_MS });
  return rows.map(({ first, last }) => [Number(first), Number(last)]);
}

/** Whether it may go well in a moment, or on another host. */
const mayPass = (error: unknown): boolean =>
  error instanceof AppError &&
  (error.kind === "timeout" ||
    (error.kind === "postgres" && !/^(28|3D|42)/.test(sqlState(error) ?? "")));

/**
 * Does something on whichever host takes writes now.
 *
 * @throws the last error when none does in time
 */
export async function onPrimary<T>(
  targets: readonly Target[],
  timeoutMs: number,
  work: (query: Query) => Promise<T>,
): Promise<T> {
  let last: unknown;
  const look = async (): Promise<{ value: T } | undefined> => {
    for (const target of targets) {
      await using db = openDb(target);
      try {
        const [row] = await db.query("select pg_is_in_recovery() as standby");
        if (row?.["standby"] === false) return { value: await db.transaction(work) };
      } catch (error) {
        last = error;
        if (!mayPass(error)) throw error;
      }
    }
    return undefined;
  };
  const what = "a primary that takes writes";
  return waitUntil(look, { timeoutMs, everyMs: 50, what }).then(
    ({ value }) => value,
    (error) => {
      throw last ?? error;
    },
  );
}
