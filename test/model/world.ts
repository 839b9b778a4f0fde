/**
 * A group of one or two nodes in a few words: what is on the disks, what the servers and keepers
 * hold in memory, what the monitor has recorded, and every event that can happen to them. The
 * decisions are the product's own (decideGroup, nextStep, fenceAtMs); of the code that does I/O
 * (keeper/loop.ts, transitions.ts, node.ts, the SQL of node_active and remove_node) only the effects
 * are modelled, one atomic event each, so that a crash fits between any two of them.
 *
 * Every standby counts as caught up for the monitor, which is the harder case. Left out: one-way
 * cuts, frozen hosts, restores of the monitor, operators' SQL.
 */
import { GROUP_RULES, type NodeState } from "../../lib/fsm.ts";
import { DEFAULT_POLICY, type SyncSet } from "../../lib/group/view.ts";
import { fenceAtMs } from "../../lib/keeper/fence.ts";
import { nextStep } from "../../lib/keeper/step.ts";

/** What may be replaced by something broken on purpose. */
export const LAWS = {
  rules: GROUP_RULES,
  nextStep,
  fenceAtMs,
  /** The monitor records reports that a later one has overtaken. */
  acceptsLateReports: false,
  /** A set counts as in force before its members have flushed what the primary has. */
  trustsNewMembers: false,
  /** A frozen server counts as stopped also where its stop is to be confirmed. */
  frozenIsStopped: false,
};
export type Laws = typeof LAWS;

/** `wal`: one character a commit, the timeline that it was written on; one history, one prefix. */
type Pg = {
  run: "up" | "down" | "hung";
  primary: boolean;
  timeline: number;
  wal: string;
  /** The node that it streams from, as the running server has it. */
  from: number | undefined;
  /** Whose flush a commit waits for, as the server's processes have it. */
  names: readonly number[];
  readOnly: boolean;
};
type Disk = {
  state: NodeState;
  goal: NodeState;
  syncVersion: number;
  following: number | undefined;
  promotedFrom: number | undefined;
  dataReady: boolean;
  /** synchronous_standby_names in the settings file. */
  names: readonly number[];
  readOnly: boolean;
};
/** Ages count ticks, that is thresholds: 1 the fence's, 2 node_timeout, 3 unreachable_primary_timeout. */
export type Keeper = {
  contact: "fresh" | "lost" | "never";
  contactAge: number;
  replyAge: number;
  answer: { sync: SyncSet; upstream: number | undefined } | undefined;
  sync: { set: SyncSet; inForce: boolean } | undefined;
  written: readonly number[] | undefined;
  task: { to: NodeState; phase: number } | undefined;
  crash: "none" | "new" | "asked" | "considered";
};
export type Report = {
  reported: NodeState;
  pgRunning: boolean;
  timeline: number;
  streaming: boolean;
  sync: SyncSet | undefined;
};
export type Row = Report & { goal: NodeState; age: number; stalled: number; considered: boolean };
export type Node = {
  readonly id: number;
  row: Row | undefined;
  /** A report that is still under way, and whether a later one has been recorded meanwhile. */
  late: { report: Report; overtaken: boolean } | undefined;
  /** The host has power; the monitor is reachable from it, and it from the monitor. */
  on: boolean;
  link: boolean;
  disk: Disk;
  pg: Pg;
  keeper: Keeper | undefined;
};
export type World = {
  nodes: Node[];
  /** The nodes reach one another. */
  stream: boolean;
  /** The standby is part of the replication quorum; if not, the group is asynchronous by choice. */
  readonly quorum: boolean;
  sync: SyncSet;
  /** The longest WAL of which an application was told that it's committed. */
  acked: string;
  faultsLeft: number;
  commitsLeft: number;
  dropsLeft: number;
};

/** A property that must hold, and doesn't. */
export class Violation extends Error {
  override readonly name = "Violation";
}
/** What was exercised on the way: rule ids, and pairs of reported state and goal. */
export type Coverage = { readonly rules: Set<string>; readonly pairs: Set<string> };

export const POLICY = DEFAULT_POLICY;
const AGES_MS = [
  0,
  POLICY.networkPartitionTimeoutMs,
  POLICY.nodeTimeoutMs,
  POLICY.unreachablePrimaryTimeoutMs,
];
export const agesMs = (age: number): number => AGES_MS[age] ?? 0;
export const NOBODY: SyncSet = { version: 0, primaryId: 0, members: [], number: 0 };
export const same = (a: readonly number[], b: readonly number[]): boolean => a.join() === b.join();
export const nodeOf = (w: World, id: number): Node => w.nodes[id - 1] as Node;
export const otherOf = (w: World, id: number): Node | undefined => w.nodes.find((n) => n.id !== id);

/** @param nodes how many nodes the group will have; none has registered yet */
export function emptyWorld(nodes: 1 | 2, bounds: Partial<World>): World {
  const disk: Disk = {
    state: "init",
    goal: "init",
    syncVersion: 0,
    following: undefined,
    promotedFrom: undefined,
    dataReady: false,
    names: [],
    readOnly: false,
  };
  const pg: Pg = {
    run: "down",
    primary: false,
    timeline: 0,
    wal: "",
    from: undefined,
    names: [],
    readOnly: false,
  };
  return {
    nodes: [1, 2].slice(0, nodes).map((id) => ({
      id,
      row: undefined,
      late: undefined,
      on: true,
      link: true,
      disk: { ...disk },
      pg: { ...pg },
      keeper: undefined,
    })),
    stream: true,
    quorum: true,
    sync: NOBODY,
    acked: "",
    faultsLeft: 0,
    commitsLeft: 1,
    dropsLeft: 0,
    ...bounds,
  };
}

const copyOf = (n: Node): Node => ({
  ...n,
  row: n.row && { ...n.row },
  disk: { ...n.disk },
  pg: { ...n.pg },
  keeper: n.keeper && { ...n.keeper },
});

/** A world that may be changed, but for the nodes that aren't named: those are shared. */
export const clone = (w: World, ids: readonly number[] = [1, 2]): World => ({
  ...w,
  nodes: w.nodes.map((n) => (ids.includes(n.id) ? copyOf(n) : n)),
});

/** A number for each node that ever was; a world that has a key is never changed again, so it's kept. */
const numbers = new Map<string, number>();
const numbered = new WeakMap<Node, number>();
function numberOf(n: Node): number {
  const known = numbered.get(n);
  if (known !== undefined) return known;
  const { row, late, disk: d, pg, keeper: k } = n;
  const set = (of: SyncSet | undefined): string =>
    of ? `${of.version}/${of.primaryId}(${of.members})` : "-";
  const said = (r: Report): string =>
    `${r.reported} ${r.pgRunning} ${r.timeline} ${r.streaming} ${set(r.sync)}`;
  const part =
    `${n.on} ${n.link} ` +
    (row ? `${row.goal} ${row.age} ${row.stalled} ${row.considered} ${said(row)};` : ";") +
    (late ? `${late.overtaken} ${said(late.report)};` : ";") +
    `${d.state} ${d.goal} ${d.syncVersion} ${d.following} ${d.promotedFrom} ${d.dataReady} ${d.readOnly} ${d.names};` +
    `${pg.run} ${pg.primary} ${pg.timeline} ${pg.wal} ${pg.from} ${pg.readOnly} ${pg.names};` +
    (k
      ? `${k.contact} ${k.contactAge} ${k.replyAge} ${k.crash} ${k.task?.to} ${k.task?.phase} ${k.written} ` +
        `${k.sync?.inForce} ${set(k.sync?.set)} ${k.answer?.upstream} ${set(k.answer?.sync)}`
      : "");
  const number = numbers.get(part) ?? numbers.size;
  numbers.set(part, number);
  numbered.set(n, number);
  return number;
}

export function keyOf(w: World): string {
  const { version, primaryId, members } = w.sync;
  const left = `${w.faultsLeft} ${w.commitsLeft} ${w.dropsLeft}`;
  return `${w.nodes.map(numberOf)}|${+w.stream} ${version} ${primaryId} ${members} ${w.acked} ${left}`;
}

/** Versions count up for ever; only their order matters, so the ones in use are numbered afresh. */
export function renumber(w: World): void {
  const used = [0, w.sync.version];
  const each = (change: (version: number) => number): void => {
    const set = (of: SyncSet): SyncSet => ({ ...of, version: change(of.version) });
    for (const n of w.nodes) {
      n.disk.syncVersion = change(n.disk.syncVersion);
      if (n.row?.sync) n.row.sync = set(n.row.sync);
      if (n.late?.report.sync)
        n.late = { ...n.late, report: { ...n.late.report, sync: set(n.late.report.sync) } };
      const { keeper } = n;
      if (keeper?.sync) keeper.sync = { ...keeper.sync, set: set(keeper.sync.set) };
      if (keeper?.answer) keeper.answer = { ...keeper.answer, sync: set(keeper.answer.sync) };
    }
    w.sync = set(w.sync);
  };
  each((version) => {
    used.push(version);
    return version;
  });
  const ranks = [...new Set(used)].toSorted((a, b) => a - b);
  each((version) => ranks.indexOf(version));
}

/** The primary that this node streams from at this moment. */
export function streamsFrom(w: World, n: Node): Node | undefined {
  if (n.pg.run !== "up" || n.pg.primary || n.pg.from === undefined || !w.stream) return undefined;
  const p = nodeOf(w, n.pg.from);
  const fits = p.pg.wal.startsWith(n.pg.wal) && n.pg.timeline <= p.pg.timeline;
  return p.pg.run === "up" && p.pg.primary && fits ? p : undefined;
}

export const isWritable = ({ pg }: Node): boolean => pg.run === "up" && pg.primary && !pg.readOnly;

/** Whether a commit on this node can be acknowledged as things stand. */
export function canAcknowledge(w: World, n: Node): boolean {
  if (!isWritable(n)) return false;
  return n.pg.names.length === 0 || n.pg.names.some((id) => streamsFrom(w, nodeOf(w, id)) === n);
}

export function acknowledge(w: World, wal: string): void {
  if (w.acked.startsWith(wal)) return;
  if (!wal.startsWith(w.acked)) throw new Violation("S1: acknowledged on top of a lost commit");
  w.acked = wal;
}

export function startServer(n: Node, role: "primary" | "standby"): void {
  const { disk, pg } = n;
  const halfway = disk.promotedFrom !== undefined && pg.timeline <= disk.promotedFrom;
  pg.run = "up";
  if (role === "standby" || halfway) pg.primary = false;
  pg.from = pg.primary ? undefined : disk.following;
  pg.names = disk.names;
  pg.readOnly = disk.readOnly;
  if (n.keeper) n.keeper.sync = undefined;
}

export function endServer(n: Node): void {
  if (n.pg.run !== "down" && n.keeper && !n.keeper.task) n.keeper.crash = "new";
  n.pg.run = "down";
}

/** @throws {Violation} */
export function check(w: World): void {
  const able = w.nodes.filter((n) => canAcknowledge(w, n));
  if (able.length > 1) throw new Violation("S2: two nodes can acknowledge a commit");
  for (const n of able) {
    if (!n.pg.wal.startsWith(w.acked)) throw new Violation(`S1: node ${n.id} lacks a commit`);
  }
  const stuck = w.nodes.find(
    ({ row, keeper: k, disk }) =>
      row?.goal === "wait_primary" &&
      disk.state === "wait_primary" &&
      k?.sync?.inForce &&
      k.sync.set.members.length > 0 &&
      k.sync.set.version === w.sync.version,
  );
  if (stuck) throw new Violation(`S4: node ${stuck.id} is to go on alone, but waits for a standby`);
  // Beside the new primary the old one can't acknowledge anything, but it must not stay open either.
  // A keeper that was just started counts from its start.
  const open = w.nodes.filter(isWritable);
  const isolated = open.find(
    ({ keeper: k }) => k && k.contact !== "never" && k.contactAge > 1 && k.replyAge > 1,
  );
  if (open.length > 1 && isolated) {
    throw new Violation(
      `S2: node ${isolated.id} hears nobody and is still open beside the new primary`,
    );
  }
}

/** One line for people. */
export function describe(w: World): string {
  const names = (ids: readonly number[]): string => (ids.length > 0 ? ` sync ${ids}` : "");
  const nodes = w.nodes.map(({ id, row, disk, pg, keeper, link, on }) => {
    const server = `${pg.run} ${pg.primary ? "primary" : "standby"}${pg.readOnly ? " ro" : ""} tl${pg.timeline} "${pg.wal}"`;
    const task = keeper?.task ? `>${keeper.task.to}:${keeper.task.phase}` : "";
    const marks = `${on ? "" : " off"}${link ? "" : " cut"}${keeper ? "" : " no keeper"}`;
    const known = row
      ? `${row.reported}/${row.goal}${row.sync ? ` v${row.sync.version}` : ""} age ${row.age}`
      : "unknown";
    return `${id}: [${known}] ${disk.state}${task} ${server}${names(pg.names)}${pg.from ? ` from ${pg.from}` : ""}${marks}`;
  });
  return `${nodes.join(" | ")} | set v${w.sync.version}(${w.sync.members}) acked "${w.acked}"`;
}
