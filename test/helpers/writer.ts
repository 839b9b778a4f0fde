/**
 * A client that never stops writing: it knows every host of the connection string, tries each in
 * turn every 10 ms, has one statement in flight, and remembers what became of each row.
 */
import { type Address, ask, type Client, codeOf, type Login, openClient } from "./sql.ts";
import { nowMs, waitFor } from "./wait.ts";

/** Between the starts of two writes, and between two rounds over the hosts. */
const PERIOD_MS = 10;
/** A write that takes longer is given up; nobody knows then whether it was done. */
const WRITE_TIMEOUT_MS = 3000;

/** Errors that say for certain that the row was not written. */
const REFUSALS = new Set([
  "ECONNREFUSED",
  "CONNECT_TIMEOUT",
  "25006", // read_only_sql_transaction: a standby, or a primary that takes no writes yet
  "57P03", // cannot_connect_now: starting up, shutting down
  "53300", // too_many_connections
]);

/** So that each writer has a table of its own. */
let writers = 0;

export type Acknowledged = { id: number; atMs: number; port: number };

export type WriterReport = {
  acknowledged: number;
  /** Attempts whose end nobody knows: the connection broke or time ran out. */
  unknown: number;
  /** Acknowledged rows that the server doesn't have. */
  lost: number[];
  /** Rows on the server that were never attempted, or whose attempt was refused. */
  unexpected: number[];
};

export class Writer implements AsyncDisposable {
  readonly #hosts: readonly Address[];
  readonly #login: Login;
  readonly #table: string;
  readonly #acknowledged: Acknowledged[] = [];
  readonly #unknown = new Set<number>();
  readonly #clients = new Map<number, Client>();
  #attempted = 0;
  #stopping = false;
  #running: Promise<void> | undefined;
  /** The last few errors, for a test that wants to tell why nothing is written. */
  readonly errors: string[] = [];
  /** How often each kind of error came, by its code. */
  readonly failures = new Map<string, number>();

  private constructor(hosts: readonly Address[], login: Login) {
    this.#hosts = hosts;
    this.#login = login;
    writers += 1;
    this.#table = `writes_${process.pid}_${writers}`;
  }

  /**
   * Makes a table of its own, starts, and comes back after the first acknowledgement.
   *
   * @param uri the client's connection string with all hosts, as roles/uri.ts prints it
   */
  static async start(uri: string, login: Login): Promise<Writer> {
    const writer = new Writer(hostsOf(uri), { ...login, database: databaseOf(uri) });
    await writer.#createTable();
    writer.#running = writer.#run();
    await writer.waitForWrites(1, 10_000);
    return writer;
  }

  get stopped(): boolean {
    return this.#stopping;
  }

  get acknowledged(): number {
    return this.#acknowledged.length;
  }

  /** Waits until `count` more rows than now are acknowledged. */
  async waitForWrites(count: number, timeoutMs: number): Promise<void> {
    const goal = this.acknowledged + count;
    await waitFor(`${count} acknowledged writes`, timeoutMs, () => this.acknowledged >= goal, {
      everyMs: 5,
      explain: () => `last errors: ${this.errors.join("; ")}`,
    });
  }

  /** Longest time without an acknowledgement from `sinceMs` on; also counts the time until now. */
  longestGapMs(sinceMs: number): number {
    let previousMs = sinceMs;
    let longestMs = 0;
    for (const { atMs } of this.#acknowledged) {
      if (atMs < sinceMs) {
        previousMs = atMs;
        continue;
      }
      longestMs = Math.max(longestMs, atMs - previousMs);
      previousMs = atMs;
    }
    return this.#stopping ? longestMs : Math.max(longestMs, nowMs() - previousMs);
  }

  /** When the first row after `sinceMs` was acknowledged by another server than `port`. */
  firstElsewhere(port: number, sinceMs: number): Acknowledged | undefined {
    return this.#acknowledged.find((row) => row.atMs >= sinceMs && row.port !== port);
  }

  /** Ends the writing; the write in flight is waited for. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
    for (const client of this.#clients.values()) await client.close();
    this.#clients.clear();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** Compares what was acknowledged with what a server holds; stop the writer before. */
  async compareWith(address: Address): Promise<WriterReport> {
    const rows = await ask(address, this.#login, `select id from ${this.#table}`, [], 10_000);
    const present = new Set(rows.map((row) => Number(row["id"])));
    const sure = new Set(this.#acknowledged.map(({ id }) => id));
    return {
      acknowledged: sure.size,
      unknown: this.#unknown.size,
      lost: [...sure].filter((id) => !present.has(id)),
      unexpected: [...present].filter((id) => !sure.has(id) && !this.#unknown.has(id)),
    };
  }

  async #createTable(): Promise<void> {
    await waitFor("a server that lets the writer make its table", 10_000, async () => {
      for (const host of this.#hosts) {
        try {
          const text = `create table ${this.#table} (id bigint primary key, at timestamptz)`;
          await ask(host, this.#login, text);
          return true;
        } catch (error) {
          if (codeOf(error) === "42P07") return true; // Made by the attempt before, whose answer was lost.
          this.#remember(error);
        }
      }
      return undefined;
    });
  }

  async #run(): Promise<void> {
    let turn = 0;
    let refusedInARow = 0;
    while (!this.#stopping) {
      const startedMs = nowMs();
      const host = this.#hosts[turn % this.#hosts.length] as Address;
      const written = await this.#write(host);
      if (written) {
        refusedInARow = 0;
      } else {
        turn += 1;
        refusedInARow += 1;
        if (refusedInARow % this.#hosts.length !== 0) continue; // Try the other host at once.
      }
      await Bun.sleep(Math.max(0, startedMs + PERIOD_MS - nowMs()));
    }
  }

  /** One attempt with an id of its own: an id is never tried twice. */
  async #write(host: Address): Promise<boolean> {
    this.#attempted += 1;
    const id = this.#attempted;
    const client = this.#clients.get(host.port) ?? openClient(host, this.#login);
    this.#clients.set(host.port, client);
    try {
      const text = `insert into ${this.#table} (id, at) values ($1, clock_timestamp())`;
      await client.query(text, [id], WRITE_TIMEOUT_MS);
      this.#acknowledged.push({ id, atMs: nowMs(), port: host.port });
      return true;
    } catch (error) {
      const code = codeOf(error);
      if (!REFUSALS.has(code)) this.#unknown.add(id);
      this.#remember(error);
      if (code !== "25006") {
        this.#clients.delete(host.port);
        await client.close();
      }
      return false;
    }
  }

  #remember(error: unknown): void {
    const code = codeOf(error);
    this.failures.set(code, (this.failures.get(code) ?? 0) + 1);
    this.errors.push(`${code} ${error instanceof Error ? error.message : String(error)}`);
    if (this.errors.length > 5) this.errors.shift();
  }
}

/** Hosts of `postgres://h1:p1,h2:p2/db?…`, in the order of the string. */
export function hostsOf(uri: string): Address[] {
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
