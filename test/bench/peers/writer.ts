/**
 * The race's writers: the drill's workload, one for each node, so that a node that doesn't answer
 * hides nothing of the others. Each node's writer has a table of its own; all are replicated.
 */
import { type Attempt, compare, type Gap, longestGap, timesOf } from "../../../lib/drill/outage.ts";
import { readRuns, startWorkload, type Workload } from "../../../lib/drill/workload.ts";
import type { Target } from "../../../lib/sys/sql.ts";
import { type Address, ask, type Login } from "../../helpers/sql.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { RaceNode } from "./system.ts";

/** Of each node's writer, while the node takes writes. */
const WRITES_PER_SECOND = 100;

/** So that each run has tables of its own. */
let runs = 0;

type Lane = { readonly node: RaceNode; readonly table: string; readonly workload: Workload };

export class RaceWriter implements AsyncDisposable {
  readonly #targetOf: (address: Address) => Target;
  readonly #lanes: readonly Lane[];

  private constructor(lanes: readonly Lane[], targetOf: (address: Address) => Target) {
    this.#lanes = lanes;
    this.#targetOf = targetOf;
  }

  /** Makes the tables on the primary, and starts. */
  static async start(
    primary: RaceNode,
    nodes: readonly RaceNode[],
    login: Login,
  ): Promise<RaceWriter> {
    runs += 1;
    const { user, database = "postgres" } = login;
    const targetOf = (address: Address): Target => ({
      ...{ ...address, user, password: undefined, database },
      ...{ applicationName: "race", connectTimeoutMs: 500 },
    });
    const tables = nodes.map(({ label }) => `writes_${runs}_${label}`);
    for (const table of tables) {
      await ask(primary.address, login, `create table ${table} (id bigint primary key)`);
    }
    const lanes = nodes.map((node, index) => {
      const table = tables[index] ?? "";
      const targets = [targetOf(node.address)];
      const options = { targets, table, writers: 1, writesPerSecond: WRITES_PER_SECOND };
      return { node, table, workload: startWorkload(options) };
    });
    return new RaceWriter(lanes, targetOf);
  }

  get acknowledged(): number {
    return this.#lanes.reduce((sum, { workload }) => sum + workload.acknowledged(), 0);
  }

  /** Inserts of which nobody knows whether they were done. */
  get unknown(): number {
    const attempts = this.#lanes.flatMap(({ workload }) => workload.attempts);
    return attempts.filter(({ outcome }) => outcome === "unknown").length;
  }

  /** Waits until `count` more rows than now are acknowledged. */
  async waitForWrites(count: number, timeoutMs: number): Promise<void> {
    const goal = this.acknowledged + count;
    await waitFor(`${count} writes`, timeoutMs, () => this.acknowledged >= goal, { everyMs: 5 });
  }

  /** When the first row since `sinceMs` was acknowledged by another node than this. */
  firstElsewhere(node: RaceNode, sinceMs: number): number | undefined {
    const found = this.#lanes
      .filter((lane) => lane.node !== node)
      .flatMap(({ workload }) => {
        const isIt = ({ outcome, atMs }: Attempt) => outcome === "ok" && atMs >= sinceMs;
        return workload.attempts.find(isIt)?.atMs ?? [];
      });
    return found.length > 0 ? Math.min(...found) : undefined;
  }

  /** Longest time without an acknowledgement, from a fault until a later time. */
  longestGap(faultMs: number, untilMs: number): Gap {
    const times = this.#lanes.flatMap(({ workload }) => timesOf(workload.attempts));
    times.sort((a, b) => a - b);
    const { fromMs, toMs } = longestGap(times, faultMs, untilMs);
    return { fromMs: Math.max(fromMs, faultMs), toMs };
  }

  async stop(): Promise<void> {
    await Promise.all(this.#lanes.map(({ workload }) => workload.stop()));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** How many acknowledged rows a server doesn't have; stop the writers before. */
  async lostOn({ address }: RaceNode): Promise<number> {
    let lost = 0;
    for (const { table, workload } of this.#lanes) {
      const rows = await readRuns(this.#targetOf(address), table);
      lost += compare(workload.attempts, rows, workload.begun()).lost.length;
    }
    return lost;
  }
}
