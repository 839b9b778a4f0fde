/** One run: a fault, the writer's outage, what was lost, and the time until the pair is whole again. */
import { type Client, openClient, type Row } from "../../helpers/sql.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";
import { killPostmaster, postmasterOf, type Site } from "./site.ts";
import type { RaceNode, System } from "./system.ts";
import { RaceWriter } from "./writer.ts";

/** A system that isn't back within this time is taken down and set up anew. */
export const PATIENCE_MS = 120_000;
/** A frozen host is thawed so long after another has taken its place. */
const FROZEN_ON_MS = 20_000;
/** Writes that must succeed before a fault, and before what is broken comes back. */
const WRITES_BETWEEN = 50;
/** A pair that was whole, and still is, is seen so again within this time. */
const STANDS_MS = 1000;
/** How often the pair is asked whether it's whole. */
const LOOK_EVERY_MS = 25;

/**
 * A standby this close to the primary receives what is written. One that has been left behind on an
 * old timeline streams for a moment as well, and then ends.
 */
const CLOSE_BYTES = 4096;

type Fault = {
  readonly title: string;
  /** What is done to the pair. @returns when it was done, on the monotonic clock */
  strike(scene: Scene): Promise<number>;
  /** What brings the host back, once another has taken its place. */
  heal?(scene: Scene): Promise<void>;
  /** For so long after another has taken its place the host stays away. */
  readonly awayMs?: number;
  /** No operator comes after it but the one who asked for it. */
  readonly planned?: true;
  /** Whether the group has got through the fault, besides being whole. */
  over?(scene: Scene, primary: RaceNode): boolean;
};

type Scene = {
  readonly site: Site;
  readonly system: System;
  /** Before the fault. */
  readonly primary: RaceNode;
  readonly standby: RaceNode;
  /** Of the server that was killed, where one was. */
  victim?: { readonly node: RaceNode; readonly pid: number };
};

const killServer = (pick: (scene: Scene) => RaceNode) => async (scene: Scene) => {
  const node = pick(scene);
  const pid = killPostmaster(node.pgdata);
  scene.victim = { node, pid };
  return nowMs();
};

/** Another server runs where one was killed. */
const restarted = ({ victim }: Scene): boolean => {
  const pid = victim && postmasterOf(victim.node.pgdata);
  return pid !== undefined && pid !== victim?.pid;
};

export const CASES = {
  kill: {
    title: "kill -9 of the primary's postmaster",
    strike: killServer(({ primary }) => primary),
    over: restarted,
  },
  host: {
    title: "loss of the primary's host",
    strike: async ({ site, primary }) => {
      site.rack.setPort(primary.label, "down");
      const atMs = nowMs();
      site.rack.kill(primary.label);
      return atMs;
    },
    heal: async ({ site, system, primary }) => {
      site.rack.setPort(primary.label, "up");
      site.rack.forgetNeighbours(primary.label);
      await system.boot(primary);
    },
  },
  partition: {
    title: "partition of the primary",
    strike: async ({ site, primary }) => {
      site.rack.setPort(primary.label, "down");
      return nowMs();
    },
    heal: async ({ site, primary }) => site.rack.setPort(primary.label, "up"),
  },
  switchover: {
    title: "switchover",
    planned: true,
    strike: async ({ system, primary, standby }) => {
      const atMs = nowMs();
      await system.switchover(primary, standby);
      return atMs;
    },
    over: ({ primary }, next) => next !== primary,
  },
  standby: {
    title: "kill -9 of the standby's postmaster",
    strike: killServer(({ standby }) => standby),
    over: restarted,
  },
  frozen: {
    title: "primary's host frozen, thawed 20 s after the failover",
    strike: async ({ site, primary }) => {
      const atMs = nowMs();
      site.rack.freeze(primary.label);
      return atMs;
    },
    awayMs: FROZEN_ON_MS,
    heal: async ({ site, primary }) => site.rack.thaw(primary.label),
  },
} as const satisfies Record<string, Fault>;

export type CaseName = keyof typeof CASES;

/** A host that doesn't answer is given up by timers of seconds; in the other cases somebody notices at once. */
export const takesHost = (name: CaseName): boolean => "heal" in CASES[name];

/** What a run showed; times in ms, `null` where it didn't come to an end in time. */
export type Measured = {
  /** When the fault was done. */
  readonly struckAt: string;
  /** Longest time without an acknowledged write, from the fault on. */
  readonly outageMs: number | null;
  /** When that time was over, since the fault. */
  readonly outageOverMs: number | null;
  /** Until a standby streams again, since the fault, or since the host is back. */
  readonly redundantMs: number | null;
  /** Whether an operator had to bring the old primary back. */
  readonly byHand: boolean;
  readonly acknowledged: number;
  /** Acknowledged rows that the primary doesn't have in the end; `null`: there was none to ask. */
  readonly lost: number | null;
  /** Inserts of which nobody knows whether they were done. */
  readonly unknown: number;
  /** What else went wrong. */
  readonly trouble: readonly string[];
};

type Pair = { readonly primary: RaceNode; readonly standby: RaceNode };

/** Waits for a pair that its system calls healthy. */
export async function wholePair(system: System, timeoutMs: number): Promise<Pair> {
  await using watch = new Watch(system);
  const look = async (): Promise<Pair | undefined> => {
    const pair = await watch.streamingPair(false);
    if (!pair || !(await system.settled(pair.primary, pair.standby))) return undefined;
    return await watch.streamingPair(true);
  };
  return await waitFor("a healthy pair", timeoutMs, look, { everyMs: 100 });
}

/** Asks both nodes what they do, over connections that are held as long as they last. */
class Watch implements AsyncDisposable {
  readonly #system: System;
  readonly #clients = new Map<RaceNode, Client>();

  constructor(system: System) {
    this.#system = system;
  }

  /**
   * @param synchronous whether the primary's commits must wait for the standby
   * @returns undefined unless one node takes writes and the other receives from it
   */
  async streamingPair(synchronous: boolean): Promise<Pair | undefined> {
    const { nodes } = this.#system;
    const answers = await Promise.all(nodes.map((node) => this.#look(node)));
    const [primary, ...more] = nodes.filter((_, index) => answers[index]?.["writable"]);
    const standby = nodes.find((_, index) => answers[index]?.["receives"] === true);
    if (!primary || more.length > 0 || !standby) return undefined;
    const wanted = synchronous ? "synchronous" : "sends";
    const isSo = answers[nodes.indexOf(primary)]?.[wanted] === true;
    return isSo ? { primary, standby } : undefined;
  }

  /** Whether a standby receives what this node writes. */
  async sends(node: RaceNode): Promise<boolean> {
    return (await this.#look(node))?.["sends"] === true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients.values()) await client.close();
  }

  async #look(node: RaceNode): Promise<Row | undefined> {
    const client = this.#clients.get(node) ?? openClient(node.address, this.#system.login);
    this.#clients.set(node, client);
    try {
      const [row] = await client.query(WHAT_A_NODE_DOES, [], 1000);
      return row;
    } catch {
      this.#clients.delete(node);
      await client.close();
      return undefined;
    }
  }
}

const WHAT_A_NODE_DOES = `
  select not pg_is_in_recovery() and current_setting('default_transaction_read_only') = 'off' as writable,
         exists (select from pg_stat_wal_receiver where status = 'streaming') as receives,
         s.state is not null as sends, coalesce(s.sync_state in ('sync', 'quorum'), false) as synchronous
    from (values (1)) one
    left join (select state, sync_state from pg_stat_replication
                where state = 'streaming' and not pg_is_in_recovery()
                  and pg_wal_lsn_diff(case when pg_is_in_recovery() then null
                                           else pg_current_wal_flush_lsn() end, flush_lsn) < ${CLOSE_BYTES}
                limit 1) s on true`;

/**
 * Strikes a healthy pair, and waits until it's whole again or patience ends.
 *
 * @param onStrike called right before the fault
 */
export async function measure(
  site: Site,
  system: System,
  name: CaseName,
  onStrike: () => void,
): Promise<Measured> {
  const fault: Fault = CASES[name];
  const { primary, standby } = await wholePair(system, PATIENCE_MS);
  const scene: Scene = { site, system, primary, standby };
  await using watch = new Watch(system);
  await using writer = await RaceWriter.start(primary, system.nodes, system.login);
  await writer.waitForWrites(WRITES_BETWEEN, 10_000);

  const trouble: string[] = [];
  const note = (what: string) => (error: unknown) => {
    trouble.push(`${what}: ${error instanceof Error ? error.message : error}`);
  };
  onStrike();
  const startMs = nowMs();
  const faultMs = (await fault.strike(scene).catch(note("the fault"))) ?? startMs;
  const tookOver = () => writer.firstElsewhere(primary, faultMs);
  let backMs = faultMs;
  if (fault.heal) {
    const tookOverMs = await until(tookOver, PATIENCE_MS);
    if (tookOverMs !== undefined) {
      await writer.waitForWrites(WRITES_BETWEEN, 10_000).catch(note("writes"));
      await Bun.sleep(Math.max(0, tookOverMs + (fault.awayMs ?? 0) - nowMs()));
    }
    backMs = nowMs();
    await fault.heal(scene).catch(note("the return"));
  }

  let byHand = false;
  /** Once, and at once, where the system leaves its old primary lying. */
  const operatorComes = async (): Promise<void> => {
    if (byHand || fault.planned || !system.byHand) return;
    if (tookOver() === undefined || (await watch.sends(standby))) return;
    byHand = true;
    await system.byHand(standby, primary).catch(note("the operator's work"));
  };
  const wholeNow = async (): Promise<Pair | undefined> => {
    await operatorComes();
    const pair = await watch.streamingPair(system.byHand === undefined);
    return pair && (fault.over?.(scene, pair.primary) ?? true) ? pair : undefined;
  };
  const writesGoOn = (): Promise<boolean> =>
    writer.waitForWrites(WRITES_BETWEEN, 10_000).then(
      () => true,
      () => false,
    );
  const deadlineMs = nowMs() + PATIENCE_MS;
  let whole: Pair | undefined;
  let redundantMs: number | null = null;
  let writesAgain = false;
  // a server that was started again in its place may be gone again a moment later: only what lasts counts
  for (let stands = false; !stands; ) {
    whole = await until(wholeNow, deadlineMs - nowMs());
    redundantMs = whole ? nowMs() - backMs : null;
    writesAgain = await writesGoOn();
    stands = whole === undefined || (await until(wholeNow, STANDS_MS))?.primary === whole.primary;
  }
  const { fromMs, toMs } = writer.longestGap(faultMs, nowMs());
  const isOver = writesAgain && toMs - fromMs < PATIENCE_MS;
  const struckAt = new Date(Date.now() - (nowMs() - faultMs)).toISOString();
  await writer.stop();
  return {
    struckAt,
    outageMs: isOver ? toMs - fromMs : null,
    outageOverMs: isOver ? toMs - faultMs : null,
    redundantMs,
    byHand,
    acknowledged: writer.acknowledged,
    lost: whole ? await writer.lostOn(whole.primary) : null,
    unknown: writer.unknown,
    trouble,
  };
}

/** Like `waitFor`, but time that is up is an answer. */
async function until<T>(
  probe: () => Promise<T | undefined> | T | undefined,
  timeoutMs: number,
): Promise<T | undefined> {
  const deadlineMs = nowMs() + timeoutMs;
  while (nowMs() < deadlineMs) {
    const found = await probe();
    if (found !== undefined) return found;
    await Bun.sleep(LOOK_EVERY_MS);
  }
  return undefined;
}
