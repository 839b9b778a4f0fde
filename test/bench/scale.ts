/**
 * scale: what a monitor of many nodes costs, and how fast it is then.
 *
 * One real monitor; 1,000 simulated nodes in 500 groups, in this process, which register, report each second and walk to
 * whatever goal they are given, at once. They speak the real protocol over `--connections` connections that each report
 * and listen for several nodes (a real keeper has one of its own), and answer health checks. Prints processor time of the
 * monitor's process and of its PostgreSQL in a quiet window and in one in which primaries crash, the reports' latency,
 * and the time from the report of a crash until the other node of the group has its new goal. Linux only. Ends with 1
 * when the two take a core or more in the quiet window, the 99th percentile of that time is above 250 ms, or a report fails.
 *
 *   bun test/bench/scale.ts [--groups 500] [--connections 200] [--seconds 30] [--crashes 100]
 */
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { cpus } from "node:os";
import { canTakeWrites, STATE_TRAITS } from "../../lib/fsm.ts";
import type { SyncSet } from "../../lib/group/view.ts";
import { type Telling, tellingTo } from "../../lib/keeper/heartbeat.ts";
import { isNews } from "../../lib/keeper/report.ts";
import { newState } from "../../lib/keeper/state_file.ts";
import { REMEMBER_EVERY_MS } from "../../lib/keeper/testimony.ts";
import { type MonitorClient, openMonitor } from "../../lib/monitor/client.ts";
import type { Answer, KeeperState, Report } from "../../lib/shapes.ts";
import { Cluster } from "../helpers/cluster.ts";
import { childrenOf } from "../helpers/processes.ts";
import { parseFlags, runScript, wholeNumber } from "../helpers/script.ts";
import { nowMs, waitFor } from "../helpers/wait.ts";

const CORE_LIMIT = 1;
const GOAL_LIMIT_MS = 250;
const HEARTBEAT_MS = 1000;
const REPORT_TIMEOUT_MS = 5000;
const SETTLE_MS = 120_000;
/** Groups that are made at a time. */
const STARTING = 4;
const TICKS_A_SECOND = 100;
/** "R", authentication by SCRAM: an answer, as any server's to a health check that has no password. */
const QUESTION = Buffer.from("52000000170000000a534352414d2d5348412d3235360000", "hex");

/** Of reports; there must be none. */
const failures: string[] = [];

type Group = { readonly id: number; timeline: number; readonly nodes: SimulatedNode[] };

class SimulatedNode {
  readonly #monitor: MonitorClient;
  readonly #tell: Telling;
  readonly #latencies: number[];
  readonly group: Group;
  readonly host: string;
  state: KeeperState = newState();
  answer: Answer | undefined;
  reportNo = 0n;
  crashed = false;
  crashReport: bigint | undefined;
  /** When it was given its last goal. */
  goalAtMs = 0;
  timeline = 1;
  promotion: Report["promotion"] = null;
  /** Not before all are there: each new node changes what all keep, and they would ask for it all the time. */
  static remembers = false;
  /** Of what the node keeps for a monitor that loses its memory. */
  #memory = -1;
  #askedMs = Number.NEGATIVE_INFINITY;
  #again = false;
  #busy = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(monitor: MonitorClient, group: Group, latencies: number[]) {
    this.#monitor = monitor;
    this.#tell = tellingTo(monitor, "default");
    this.#latencies = latencies;
    this.group = group;
    this.host = `127.1.${group.id >> 7}.${(group.id & 127) * 2 + group.nodes.length + 1}`;
    group.nodes.push(this);
  }

  async start(port: number): Promise<void> {
    const answer = await this.#monitor.register({
      formation: "default",
      group: this.group.id,
      host: this.host,
      port,
      name: undefined,
      identity: this.state.identity,
      systemIdentifier: undefined,
      dbname: undefined,
      candidatePriority: 50,
      replicationQuorum: true,
    });
    this.#take(answer);
    void this.report();
    // each has a phase of its own
    this.#timer = setTimeout(() => {
      this.#timer = setInterval(() => void this.report(), HEARTBEAT_MS);
    }, Math.random() * HEARTBEAT_MS);
  }

  /** No report is under way after this. */
  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await waitFor(`the last report of ${this.host}`, REPORT_TIMEOUT_MS, () => !this.#busy);
  }

  hear(payload: string): void {
    const { state, answer } = this;
    if (state.nodeId === undefined) return;
    const asked = this.crashed ? this.crashReport : undefined;
    if (isNews(payload, "default", state, answer?.nodes ?? [], asked)) void this.report();
  }

  /** At once, or as soon as the report that is under way has ended. */
  async report(): Promise<void> {
    this.#again = true;
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.#again) {
        this.#again = false;
        const beganMs = nowMs();
        const report = this.#said();
        if (this.crashed) this.crashReport ??= report.reportNo;
        const id = this.state.nodeId ?? 0;
        const answer = await this.#tell(id, report, REPORT_TIMEOUT_MS);
        this.#latencies.push(nowMs() - beganMs);
        const isSame = answer === this.answer;
        this.#take(answer);
        if (!isSame) await this.#remember();
      }
    } catch (error) {
      failures.push(`${this.host}: ${error}`);
    } finally {
      this.#busy = false;
    }
  }

  async #remember(): Promise<void> {
    if (!SimulatedNode.remembers || nowMs() - this.#askedMs < REMEMBER_EVERY_MS) return;
    this.#askedMs = nowMs();
    const text = await this.#monitor.memory("default", this.group.id, this.#memory);
    // a list of all nodes, which a thousand simulated ones in one process needn't read
    if (text !== undefined)
      this.#memory = Number.parseInt(text.split('"version": ').at(-1) ?? "", 10);
  }

  #take(answer: Answer): void {
    this.answer = answer;
    const { goal, goalVersion, nodeId, groupId } = answer;
    if (this.state.goal !== goal) this.goalAtMs = nowMs();
    const isKnown = this.state.goalVersion === goalVersion;
    this.state = { ...this.state, goal, goalVersion, nodeId, groupId };
    if (goal === this.state.state) {
      if (!isKnown) this.#again = true;
      return;
    }
    if (goal === "stop_replication") {
      this.group.timeline += 1;
      this.timeline = this.group.timeline;
      this.promotion = { timeline: this.timeline, forkLsn: "0/3000000" };
    }
    if (goal === "catchingup") {
      this.timeline = this.group.timeline;
      this.promotion = null;
      this.crashed = false;
      this.crashReport = undefined;
    }
    this.state = { ...this.state, state: goal };
    this.#again = true;
    if (!this.#busy) queueMicrotask(() => void this.report());
  }

  get hasAsked(): boolean {
    return this.#memory >= 0;
  }

  get settled(): boolean {
    const { state, goal } = this.state;
    return state === goal && (state === "primary" || state === "secondary");
  }

  #said(): Report {
    const { state } = this.state;
    const traits = STATE_TRAITS[state];
    const pgIsRunning = traits.postgres === "up" && !this.crashed;
    const isStandby = traits.role === "standby";
    this.reportNo += 1n;
    return {
      identity: this.state.identity,
      reportNo: this.reportNo,
      goalVersion: this.state.goalVersion,
      state,
      pgIsRunning,
      timeline: pgIsRunning ? this.timeline : 0,
      lsn: "0/3000000",
      inRecovery: isStandby,
      syncState: pgIsRunning && state === "primary" ? "quorum" : "",
      streaming: pgIsRunning && (state === "secondary" || state === "catchingup"),
      ...(pgIsRunning && canTakeWrites(state) && { sendsTo: this.#peers() }),
      startFailures: 0,
      ...(canTakeWrites(state) && { syncInForce: this.#set() }),
      promotion: this.promotion,
      shutdown: null,
      fenceMs: 3700,
      systemIdentifier: state === "init" ? null : String(7_000_000_000_000 + this.group.id),
    };
  }

  #peers(): number[] {
    return this.answer?.nodes.map(({ nodeId }) => nodeId) ?? [];
  }

  #set(): SyncSet | null {
    const sync = this.answer?.sync;
    return sync?.primaryId === this.state.nodeId ? (sync ?? null) : null;
  }
}

async function main(): Promise<number> {
  const values = parseFlags({
    groups: { type: "string", default: "500" },
    connections: { type: "string", default: "200" },
    seconds: { type: "string", default: "30" },
    crashes: { type: "string", default: "100" },
  });
  const count = (name: keyof typeof values): number => wholeNumber(name, values[name]);
  const [groups, connections] = [count("groups"), count("connections")];
  const [seconds, crashes] = [count("seconds"), count("crashes")];
  const [cpu] = cpus();
  console.log(
    `machine: ${cpus().length} cores, ${cpu?.model.trim()}; ${groups * 2} nodes over ${connections} connections`,
  );

  const servers = createServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", () => socket.end(QUESTION));
  });
  await new Promise<void>((resolve) => servers.listen(0, "0.0.0.0", resolve));
  const { port } = servers.address() as { port: number };
  await using cluster = new Cluster("scale");
  await cluster.startMonitor();

  const latencies: number[] = [];
  const clients = Array.from({ length: connections }, () => openMonitor(cluster.monitorUri));
  const nodesOf = clients.map((): SimulatedNode[] => []);
  for (const [index, client] of clients.entries()) {
    await client.hear((payload) => {
      for (const node of nodesOf[index] ?? []) node.hear(payload);
    });
  }
  const all = Array.from({ length: groups }, (_, id): Group => ({ id, timeline: 1, nodes: [] }));
  let made = 0;
  const nodeFor = (group: Group): SimulatedNode => {
    const index = made % connections;
    made += 1;
    const node = new SimulatedNode(clients[index] as MonitorClient, group, latencies);
    nodesOf[index]?.push(node);
    return node;
  };
  const waiting = all.map((group) => [nodeFor(group), nodeFor(group)]);
  const startedMs = nowMs();
  const start = async (): Promise<void> => {
    for (let pair = waiting.pop(); pair; pair = waiting.pop()) {
      for (const node of pair) await node.start(port);
      const both = pair;
      await waitFor(
        "a primary and a secondary",
        SETTLE_MS,
        () => both.every(({ settled }) => settled),
        { explain: () => JSON.stringify(both.map(({ state }) => state)) },
      );
    }
  };
  await Promise.all(Array.from({ length: STARTING }, start));
  const nodes = all.flatMap((group) => group.nodes);
  console.log(`all settled after ${((nowMs() - startedMs) / 1000).toFixed(1)} s`);
  SimulatedNode.remembers = true;
  await waitFor("each node to have asked what there is to keep", SETTLE_MS, () =>
    nodes.every(({ hasAsked }) => hasAsked),
  );

  const monitorPid = cluster.monitor.process?.pid ?? 0;
  const postmaster = cluster.monitor.requirePostmaster();
  const measure = async (what: string, during: () => Promise<void>): Promise<number> => {
    latencies.length = 0;
    const before = [cpuSeconds([monitorPid]), serverSeconds(postmaster)] as const;
    const beganMs = nowMs();
    await during();
    const tookS = (nowMs() - beganMs) / 1000;
    const monitor = (cpuSeconds([monitorPid]) - before[0]) / tookS;
    const server = (serverSeconds(postmaster) - before[1]) / tookS;
    const rate = latencies.length / tookS;
    console.log(
      `${what}: ${rate.toFixed(0)} reports/s; cores: monitor ${monitor.toFixed(3)}, its PostgreSQL ${server.toFixed(3)}, ` +
        `both ${(monitor + server).toFixed(3)} (${(((monitor + server) / rate) * 1000).toFixed(2)} ms a report)`,
    );
    console.log(`  a report takes: ${spread(latencies)}`);
    return monitor + server;
  };

  const quiet = await measure(`quiet, ${seconds} s`, () => Bun.sleep(seconds * 1000));
  const goals: number[] = [];
  await measure(`${crashes} crashes, one a second`, async () => {
    const under: Promise<void>[] = [];
    for (let round = 0; round < crashes; round += 1) {
      const group = all[Math.floor(Math.random() * groups)] as Group;
      if (group.nodes.every(({ settled, crashed }) => settled && !crashed)) {
        under.push(crash(group).then((tookMs) => void goals.push(tookMs)));
      }
      await Bun.sleep(1000); // The pace is what is measured at.
    }
    await Promise.all(under);
  });
  console.log(`  from the report of a crash to the other node's goal: ${spread(goals)}`);
  const memory = serverMegabytes(postmaster);
  console.log(`  private memory of the monitor's PostgreSQL: ${memory.toFixed(0)} MB`);
  await Promise.all(nodes.map((node) => node.stop()));
  await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  servers.close();
  if (failures.length > 0) console.error(`${failures.length} reports failed: ${failures[0]}`);
  const fits = failures.length === 0 && quiet < CORE_LIMIT && at(goals, 0.99) <= GOAL_LIMIT_MS;
  return fits ? 0 : 1;
}

async function crash(group: Group): Promise<number> {
  const primary = group.nodes.find(({ state }) => state.state === "primary") as SimulatedNode;
  const other = group.nodes.find((node) => node !== primary) as SimulatedNode;
  const beganMs = nowMs();
  primary.crashed = true;
  void primary.report();
  const isTold = () => other.state.goal !== "secondary" && other.goalAtMs >= beganMs;
  await waitFor(`the goal of ${other.host}`, 10_000, isTold, { everyMs: 1 });
  return other.goalAtMs - beganMs;
}

const at = (values: readonly number[], part: number): number =>
  values.toSorted((a, b) => a - b)[Math.round(part * (values.length - 1))] ?? 0;

const spread = (values: readonly number[]): string =>
  [0.5, 0.99, 1].map((part) => `p${part * 100} ${at(values, part).toFixed(1)} ms`).join(", ");

const statOf = (pid: number | string): string[] => {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
};

/** User and system time so far, also of children that have ended. */
function cpuSeconds(pids: readonly number[], endedToo = false): number {
  const fields = endedToo ? [11, 12, 13, 14] : [11, 12];
  const ticks = pids.flatMap((pid) => {
    const stat = statOf(pid);
    return fields.map((field) => Number(stat[field]));
  });
  return ticks.reduce((sum, each) => sum + each, 0) / TICKS_A_SECOND;
}

const serverSeconds = (postmaster: number): number =>
  cpuSeconds([postmaster], true) + cpuSeconds(childrenOf(postmaster));

function serverMegabytes(postmaster: number): number {
  return childrenOf(postmaster).reduce((sum, pid) => {
    const [, anonymous] =
      /^RssAnon:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
    return sum + Number(anonymous ?? 0) / 1024;
  }, 0);
}

await runScript("scale", main);
