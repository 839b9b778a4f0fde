/** The drill's writer, as a test uses it: it tries each host every 10 ms, and remembers what became of each row. */
import { compare, longestGap, timesOf } from "../../lib/drill/outage.ts";
import { onPrimary, readRuns, startWorkload, type Workload } from "../../lib/drill/workload.ts";
import type { Ssl, Target } from "../../lib/sys/sql.ts";
import type { Address, Login } from "./sql.ts";
import { nowMs } from "./wait.ts";

/** The product's words for what the driver is told. */
const sslOf = (ssl: Record<string, unknown>): Ssl =>
  ssl["rejectUnauthorized"] === false
    ? { mode: "require" }
    : { mode: "verify-full", ca: String(ssl["ca"]) };

/** So that each writer has a table of its own. */
let writers = 0;

export type Acknowledged = { id: number; atMs: number; port: number };

export type WriterReport = {
  acknowledged: number;
  /** Attempts whose end nobody knows: the connection broke or time ran out. */
  unknown: number;
  /** Acknowledged rows that the server doesn't have. */
  lost: readonly number[];
  /** Rows on the server that were never attempted, or whose attempt was refused. */
  unexpected: readonly number[];
};

export class Writer implements AsyncDisposable {
  readonly #workload: Workload;
  readonly #targetOf: (address: Address) => Target;
  readonly #table: string;
  #stopping = false;

  private constructor(
    targets: readonly Target[],
    targetOf: (address: Address) => Target,
    table: string,
  ) {
    this.#table = table;
    this.#targetOf = targetOf;
    this.#workload = startWorkload({ targets, table, writers: 1, writesPerSecond: 100 });
  }

  /**
   * Makes a table of its own, starts, and comes back after the first acknowledgement.
   *
   * @param uri the client's connection string with all hosts, as roles/uri.ts prints it
   */
  static async start(uri: string, login: Login): Promise<Writer> {
    const { user, password, ssl } = login;
    const targetOf = (address: Address): Target => ({
      ...{ ...address, user, password, database: databaseOf(uri) },
      ...{ applicationName: "test", connectTimeoutMs: 500 },
      ...(ssl !== undefined && { ssl: sslOf(ssl) }),
    });
    const targets = hostsOf(uri).map(targetOf);
    writers += 1;
    const table = `writes_${process.pid}_${writers}`;
    const text = `create table if not exists ${table} (id bigint primary key, at timestamptz default clock_timestamp())`;
    await onPrimary(targets, 10_000, (query) => query(text));
    const writer = new Writer(targets, targetOf, table);
    await writer.waitForWrites(1, 10_000);
    return writer;
  }

  /** The last few errors, for a test that wants to tell why nothing is written. */
  get errors(): string[] {
    return this.#workload.errors;
  }

  get stopped(): boolean {
    return this.#stopping;
  }

  get acknowledged(): number {
    return this.#workload.acknowledged();
  }

  /** Waits until `count` more rows than now are acknowledged. */
  waitForWrites(count: number, timeoutMs: number): Promise<void> {
    return this.#workload.waitForWrites(count, timeoutMs);
  }

  /** Longest time without an acknowledgement from `sinceMs` on; also counts the time until now. */
  longestGapMs(sinceMs: number): number {
    const times = timesOf(this.#workload.attempts);
    const { fromMs, toMs } = longestGap(
      times,
      sinceMs,
      this.#stopping ? (times.at(-1) ?? sinceMs) : nowMs(),
    );
    return toMs - fromMs;
  }

  /** When the first row after `sinceMs` was acknowledged by another server than `port`. */
  firstElsewhere(port: number, sinceMs: number): Acknowledged | undefined {
    return this.#workload.attempts.find(
      (row) => row.outcome === "ok" && row.atMs >= sinceMs && row.port !== port,
    );
  }

  /** Ends the writing; the write in flight is waited for. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#workload.stop();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** Compares what was acknowledged with what a server holds; stop the writer before. */
  async compareWith(address: Address): Promise<WriterReport> {
    const runs = await readRuns(this.#targetOf(address), this.#table);
    const { attempts, begun, acknowledged } = this.#workload;
    const { lost, unexpected, found, notFound } = compare(attempts, runs, begun());
    const unknown = found.length + notFound.length;
    return { acknowledged: acknowledged(), unknown, lost, unexpected };
  }
}

/** Hosts of `postgres://h1:p1,h2:p2/db?…`, in the order of the string. */
function hostsOf(uri: string): Address[] {
  const [, authority] = /^postgres(?:ql)?:\/\/([^/?]+)/.exec(uri) ?? [];
  if (authority === undefined) throw new Error(`not a connection string: ${uri}`);
  const list = authority.slice(authority.lastIndexOf("@") + 1);
  return list.split(",").map((part) => {
    const colon = part.lastIndexOf(":");
    return { host: part.slice(0, colon), port: Number(part.slice(colon + 1)) };
  });
}

function databaseOf(uri: string): string {
  return /^postgres(?:ql)?:\/\/[^/]+\/([^?]*)/.exec(uri)?.[1] ?? "postgres";
}
