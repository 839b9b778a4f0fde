/** Clients that never stop: each tries every host in turn, and remembers what became of each attempt. */

import { outcomeOf } from "../../../lib/drill/outage.ts";
import {
  type Address,
  ask,
  type Client,
  codeOf,
  type Login,
  openClient,
  type Row,
} from "../../helpers/sql.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";
import type { Contents, Operation } from "./checker.ts";

/** Between the starts of two attempts of a client. */
const PERIOD_MS = 25;
const TIMEOUT_MS = 3000;
const ANSWER_MS = 20_000;

const TIMELINE =
  "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int as timeline";
const INSERT = `insert into chaos_rows (value, client) values ($1, $2) returning ${TIMELINE}`;
const APPEND = `insert into chaos_lists as l (client, list) values ($2, array[$1::bigint])
  on conflict (client) do update set list = l.list || excluded.list returning ${TIMELINE}`;

export class Workload {
  readonly #hosts: readonly Address[];
  readonly #login: Login;
  readonly #clients: number;
  #operations: Operation[] = [];
  #lastValue = 0;
  #round = 0;
  #pausing = false;
  #running: Promise<void>[] = [];

  constructor(hosts: readonly Address[], login: Login, clients: number) {
    this.#hosts = hosts;
    this.#login = login;
    this.#clients = clients;
  }

  /** The tables of all rounds. */
  async prepare(primary: Address): Promise<void> {
    await ask(
      primary,
      this.#login,
      "create table chaos_rows (value bigint primary key, client text not null)",
    );
    await ask(
      primary,
      this.#login,
      "create table chaos_lists (client text primary key, list bigint[] not null)",
    );
  }

  /** Begins a round, with lists of its own. */
  start(): void {
    this.#round += 1;
    this.#operations = [];
    this.#pausing = false;
    this.#running = Array.from({ length: this.#clients }, (_, index) =>
      this.#write(`${index % 2 === 0 ? "i" : "a"}${index}r${this.#round}`, index),
    );
  }

  /** Ends the round; what is in flight is waited for. @returns all attempts of the round */
  async stop(): Promise<Operation[]> {
    this.#pausing = true;
    await Promise.all(this.#running);
    return this.#operations;
  }

  /** The server of the last acknowledged write. */
  get lastPort(): number | undefined {
    return this.#operations.findLast(({ outcome }) => outcome === "ok")?.port;
  }

  get acknowledged(): number {
    return this.#operations.filter(({ outcome }) => outcome === "ok").length;
  }

  async waitForWrites(count: number, timeoutMs: number): Promise<void> {
    const goal = this.acknowledged + count;
    await waitFor(`${count} acknowledged writes`, timeoutMs, () => this.acknowledged >= goal);
  }

  /** What a server holds of these attempts. */
  async contents(server: Address, operations: readonly Operation[]): Promise<Contents> {
    const first = Math.min(...operations.map(({ value }) => value));
    const rows = await this.#asked(server, "select value from chaos_rows where value >= $1", first);
    const lists = await this.#asked(
      server,
      "select client, to_json(list)::text as list from chaos_lists where client like $1",
      `%r${this.#round}`,
    );
    return {
      rows: new Set(rows.map(({ value }) => Number(value))),
      lists: new Map(lists.map((row) => [String(row["client"]), JSON.parse(String(row["list"]))])),
    };
  }

  /** A number that tells whether earlier rounds' rows are all there. */
  async countBefore(server: Address, value: number): Promise<number> {
    const text = "select count(*) as rows from chaos_rows where value < $1";
    const [row] = await this.#asked(server, text, value);
    return Number(row?.["rows"]);
  }

  /** What is read may be read again: on a busy machine a connection can take too long. */
  #asked(server: Address, text: string, value: unknown): Promise<Row[]> {
    return waitFor(`an answer of port ${server.port}`, ANSWER_MS, () =>
      ask(server, this.#login, text, [value], ANSWER_MS),
    );
  }

  async #write(client: string, index: number): Promise<void> {
    let connection: Client | undefined;
    let turn = index;
    let refused = 0;
    while (!this.#pausing) {
      const startMs = nowMs();
      const host = this.#hosts[turn % this.#hosts.length] as Address;
      connection ??= openClient(host, this.#login);
      const operation = await this.#attempt(client, connection, host.port);
      this.#operations.push(operation);
      if (operation.outcome === "ok") {
        refused = 0;
      } else {
        const old = connection;
        connection = undefined;
        await old.close();
        turn += 1;
        refused += 1;
        if (refused % this.#hosts.length !== 0) continue;
      }
      await Bun.sleep(Math.max(0, startMs + PERIOD_MS - nowMs()));
    }
    await connection?.close();
  }

  async #attempt(client: string, connection: Client, port: number): Promise<Operation> {
    this.#lastValue += 1;
    const value = this.#lastValue;
    const startMs = nowMs();
    const kind = client.startsWith("i") ? "insert" : "append";
    const end = (outcome: Operation["outcome"]): Operation => {
      return { client, kind, value, outcome, startMs, endMs: nowMs(), port };
    };
    try {
      const [row] = await connection.query(
        kind === "insert" ? INSERT : APPEND,
        [value, client],
        TIMEOUT_MS,
      );
      return { ...end("ok"), timeline: Number(row?.["timeline"]) };
    } catch (error) {
      return end(outcomeOf(codeOf(error)));
    }
  }
}
