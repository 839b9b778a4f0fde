/**
 * An application on the primary's own host with one session, opened before the trouble: it inserts
 * one row after another over the Unix socket, which no cut touches, for as long as the session lasts.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Service } from "../helpers/service.ts";
import { ask, type Client, codeOf, openClient } from "../helpers/sql.ts";
import { nowMs } from "../helpers/wait.ts";

/** Longer than any scenario: only the server ends the wait of a commit. */
const PATIENCE_MS = 120_000;

let sessions = 0;

export class HeldSession implements AsyncDisposable {
  readonly #client: Client;
  readonly #table: string;
  readonly #acknowledgedMs: number[] = [];
  #stopping = false;
  #running: Promise<void> | undefined;
  /** The error that ended the session. */
  end: string | undefined;

  private constructor(client: Client) {
    sessions += 1;
    this.#client = client;
    this.#table = `held_${process.pid}_${sessions}`;
  }

  static async open(node: Service): Promise<HeldSession> {
    const [, , , , directory = ""] = readFileSync(
      join(node.pgdata, "postmaster.pid"),
      "utf8",
    ).split("\n");
    const session = new HeldSession(openClient({ host: directory, port: node.port }, node.login));
    await session.#client.query(`create table ${session.#table} (id int primary key)`);
    await session.#insert();
    session.#running = session.#run();
    return session;
  }

  /** How many of its rows were acknowledged at that time or later. */
  acknowledgedSince(timeMs: number): number {
    return this.#acknowledgedMs.filter((atMs) => atMs >= timeMs).length;
  }

  /** How many of the acknowledged rows a server doesn't hold. */
  async lostOn(node: Service): Promise<number> {
    const rows = await ask(node.address, node.login, `select id from ${this.#table}`);
    const present = new Set(rows.map(({ id }) => Number(id)));
    return this.#acknowledgedMs.filter((_, index) => !present.has(index + 1)).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    await this.#client.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    try {
      while (!this.#stopping) {
        await this.#insert();
        await Bun.sleep(10);
      }
    } catch (error) {
      this.end = `${codeOf(error)} ${error}`;
    }
  }

  async #insert(): Promise<void> {
    const id = this.#acknowledgedMs.length + 1;
    await this.#client.query(`insert into ${this.#table} values ($1)`, [id], PATIENCE_MS);
    this.#acknowledgedMs.push(nowMs());
  }
}
