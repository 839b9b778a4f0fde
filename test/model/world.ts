/**
 * A group of one to five nodes in a few words: what is on the disks, what the servers and keepers
 * hold in memory, what the monitor has recorded. Of the code that does I/O only the effects are
 * modelled, one atomic event each, so that a crash fits between any two of them.
 *
 * WAL is a string, one character an entry. No two entries are ever the same, so one server's WAL
 * is part of another's exactly when it's a prefix of it. An entry that a promotion writes carries the number of
 * the timeline that it begins, and the node's; two servers promoted from the same point count on with the same number.
 */
import type { Action, NodeState } from "../../lib/fsm.ts";
import {
  DEFAULT_POLICY,
  type Settings,
  type SyncSet,
  type Timeline,
} from "../../lib/group/view.ts";

/** One tick is long enough for a fence to close, or for an election's patience to end. */
export const TICK_MS = 1300;
export const POLICY = {
  ...DEFAULT_POLICY,
  heartbeatMs: TICK_MS / 2,
  networkPartitionTimeoutMs: TICK_MS,
  nodeTimeoutMs: 2 * TICK_MS,
  unreachablePrimaryTimeoutMs: 3 * TICK_MS,
  fastForwardTimeoutMs: 2 * TICK_MS,
  switchoverTimeoutMs: 2 * TICK_MS,
};
/** Ages count ticks; beyond this no threshold is left to cross. */
export const AGE_MAX = 3;

export type Names = Pick<SyncSet, "members" | "number">;
export const NOBODY: Names = { members: [], number: 0 };
export const NO_SET: SyncSet = { version: 0, primaryId: 0, ...NOBODY };
export const sameNames = (a: Names, b: Names): boolean =>
  a === b || (a.number === b.number && a.members.join() === b.members.join());

export type Pg = {
  run: "up" | "down" | "starting" | "hung";
  /** The next start takes its time, or fails. */
  nextStart: "usual" | "slow" | "failing";
  primary: boolean;
  wal: string;
  /** The node that it streams from, as the running server has it. */
  from: number;
  /** The names as the walsender that serves this standby has read them; undefined: not connected. */
  feed: Names | undefined;
  /** Whom commits wait for, as the checkpointer has it. */
  names: Names;
  readOnly: boolean;
  /** The version of the set that was shown to be in force in this very server; 0: none. */
  proof: number;
};

export type Promotion = Pick<Timeline, "timeline" | "forkLsn">;

/** What survives a crash of everything. Node ids count from 1; 0 is nobody. */
export type Disk = {
  state: NodeState;
  goal: NodeState;
  goalVersion: number;
  syncVersion: number;
  following: number;
  promotedFrom: number;
  promotion: Promotion | undefined;
  dataReady: boolean;
  /** The settings file. */
  names: Names;
  readOnly: boolean;
};

export type Answer = {
  readonly goal: NodeState;
  readonly goalVersion: number;
  readonly sync: SyncSet;
  /** The node whose goal takes writes. */
  readonly upstream: number;
  /** The node to fetch WAL from, and its position as the monitor has it; 0: none. */
  readonly source: number;
  readonly sourceLsn: number;
  readonly considered: boolean;
  readonly planned: boolean;
};

export type Task = {
  readonly to: NodeState;
  readonly action: Action;
  readonly phase: number;
  /** It fails as soon as it has put things in order. */
  readonly failed: boolean;
};

export type Keeper = {
  /** The whole host stands still, its server too. */
  frozen: boolean;
  /** It has just woken up. */
  thawed: boolean;
  /** A keeper that has just been started listens before it fences anybody, and guards its primary from its next turn on. */
  guard: "listens" | "next" | "on";
  contact: "fresh" | "lost" | "never";
  /** Of the report that was answered last, since it was sent. */
  contactAge: number;
  /** The same, whatever the keeper makes of it. */
  trueContactAge: number;
  replyAge: number;
  /** How long this standby has not been streaming. */
  dryAge: number;
  answer: Answer | undefined;
  /** An answer that is under way to it, and how long ago the report was sent. */
  heard: { readonly answer: Answer | undefined; readonly age: number } | undefined;
  /** The set written last; -1, or the position that its members must pass. */
  sync: { readonly set: SyncSet; readonly from: number } | undefined;
  /** The set that was last shown to be in force in this server. */
  proven: SyncSet | undefined;
  written: Names | undefined;
  task: Task | undefined;
  crash: "none" | "new" | "asked" | "considered";
  startFailures: number;
  /** Where the WAL ended when the server was stopped in an orderly way for a switchover; -1: it wasn't. */
  shutdown: number;
};

export type Report = {
  /** Of the goal that the keeper knew. */
  readonly goalVersion: number;
  readonly reported: NodeState;
  readonly pgRunning: boolean;
  readonly startFailures: number;
  /** 0: not known. */
  readonly timeline: number;
  readonly lsn: number;
  readonly inRecovery: boolean | undefined;
  readonly streaming: boolean;
  /** Whom it sends WAL to; undefined: nothing to say about it. */
  readonly sendsTo: readonly number[] | undefined;
  readonly promotion: Promotion | undefined;
  /** -1: it was not stopped in an orderly way. */
  readonly shutdown: number;
  /** Its first word of a crash: it waits until that has been considered. */
  readonly asks: boolean;
  /** null: not known; undefined: nothing to say about it. */
  readonly inForce: SyncSet | null | undefined;
};

export type Row = {
  reported: NodeState;
  /** The state was reported when the goal was the present one already. */
  confirmed: boolean;
  goal: NodeState;
  goalVersion: number;
  pgRunning: boolean;
  startFailures: number;
  timeline: number;
  lsn: number;
  inRecovery: boolean;
  streaming: boolean;
  promotion: Promotion | undefined;
  age: number;
  stalled: number;
  /** By the nodes' ids: for how long it has not been sending to them; -1: it does, or that isn't known. */
  notSentTo: readonly number[];
  /** -1: it has promised nothing. */
  promised: number;
  goalAge: number;
  passedOver: boolean;
  maintenance: boolean;
  shutdown: number;
  fetchFrom: number;
  considered: boolean;
  priority: number;
  quorum: boolean;
};

export type Node = {
  readonly id: number;
  row: Row | undefined;
  /** A report that is still under way, and whether a later one has been recorded meanwhile. */
  late: { readonly report: Report; readonly overtaken: boolean } | undefined;
  /** The host has power. */
  on: boolean;
  /** Registered once; gone for good after that. */
  known: boolean;
  /** Of the last report that was answered, as its keepers hand it down to one another; -1: the power was off since. */
  contactAge: number;
  disk: Disk;
  pg: Pg;
  keeper: Keeper | undefined;
};

export type Group = {
  sync: SyncSet;
  pending: readonly SyncSet[];
  inForce: SyncSet | undefined;
  history: readonly Timeline[];
  /** undefined: none; else the node to promote, 0 whoever is elected. */
  request: number | undefined;
  planned: boolean;
  /** The primary that is to be left alone afterwards; 0: none. */
  leaveAlone: number;
  requestAge: number;
  disputed: boolean;
  settings: Settings;
};

export type World = {
  readonly nodes: Node[];
  /** Names are taken over, and WAL received, at once: not every order of these is told apart. */
  readonly coarse: boolean;
  readonly group: Group;
  /** The monitor's process runs; how long it has watched. Its database outlives it. */
  monitorUp: boolean;
  watched: number;
  /** For each sender (0: the monitor) the bits of those that it can't reach. */
  readonly cuts: number[];
  /** The longest WAL of which an application was told that it's committed. */
  acked: string;
  /** A promotion by which the operator accepts a loss is under way. */
  lossy: boolean;
  /** Entries written so far. */
  serial: number;
  faultsLeft: number;
  commitsLeft: number;
  operationsLeft: number;
};

/** A property that must hold, and doesn't. */
export class Violation extends Error {
  override readonly name = "Violation";
}

// ---------------------------------------------------------------- WAL

const PROMOTIONS = 0x4000;

/** The timeline that an entry begins; 0: it begins none. */
const begins = (wal: string, at: number): number => {
  const code = wal.charCodeAt(at);
  return code < PROMOTIONS ? 0 : (code - PROMOTIONS) >> 8;
};

export function timelineOf(wal: string): number {
  for (let at = wal.length - 1; at >= 0; at -= 1) {
    const timeline = begins(wal, at);
    if (timeline > 0) return timeline;
  }
  return wal === "" ? 0 : 1;
}

/** The node that began the timeline on which this WAL ends; its first entry names the one that began the first. */
export function authorOf(wal: string): number {
  for (let at = wal.length - 1; at >= 0; at -= 1) {
    if (begins(wal, at) > 0) return wal.charCodeAt(at) & 7;
  }
  return Number(wal[0]);
}

/** Where the last promotion in this WAL left the timeline before. */
export function promotionOf(wal: string): Promotion | undefined {
  for (let at = wal.length - 1; at >= 0; at -= 1) {
    const timeline = begins(wal, at);
    if (timeline > 0) return { timeline, forkLsn: BigInt(at) };
  }
  return undefined;
}

/** Whether a walsender lets this standby stream: it compares timelines by number, and positions. */
export function seemsPart(wal: string, source: string): boolean {
  const timeline = timelineOf(wal);
  if (timeline === timelineOf(source)) return wal.length <= source.length;
  let current = 1;
  for (let at = 0; at < source.length; at += 1) {
    const next = begins(source, at);
    if (next === 0) continue;
    if (current === timeline) return wal.length <= at;
    current = next;
  }
  return false;
}

export const isPart = (wal: string, source: string): boolean => source.startsWith(wal);

export function append(w: World, n: Node, timeline = 0): void {
  w.serial += 1;
  const code =
    timeline === 0 ? 0x100 + w.serial : PROMOTIONS + timeline * 256 + (w.serial & 31) * 8 + n.id;
  n.pg.wal += String.fromCharCode(code);
}

/** WAL for people: commits as dots, promotions as numbers, with enough to tell forks apart. */
const shown = (wal: string): string => {
  let text = "";
  for (let at = 0; at < wal.length; at += 1) {
    const timeline = begins(wal, at);
    text += timeline > 0 ? `[${timeline} by ${wal.charCodeAt(at) & 7}]` : ".";
  }
  const last = wal.charCodeAt(wal.length - 1);
  return wal === "" ? "-" : `${text}#${last < PROMOTIONS ? last - 0x100 : "p"}`;
};

// ---------------------------------------------------------------- making and copying

export const DISK: Disk = {
  state: "init",
  goal: "init",
  goalVersion: 0,
  syncVersion: 0,
  following: 0,
  promotedFrom: 0,
  promotion: undefined,
  dataReady: false,
  names: NOBODY,
  readOnly: false,
};
const PG: Pg = {
  run: "down",
  nextStart: "usual",
  primary: false,
  wal: "",
  from: 0,
  feed: undefined,
  names: NOBODY,
  readOnly: false,
  proof: 0,
};

export type Bounds = Pick<World, "coarse" | "faultsLeft" | "commitsLeft" | "operationsLeft">;

/** @param nodes how many nodes the group can have; none has registered yet */
export function emptyWorld(
  nodes: number,
  settings: Partial<Settings> = {},
  bounds: Partial<Bounds> = {},
): World {
  const ids = Array.from({ length: nodes }, (_, at) => at + 1);
  return {
    nodes: ids.map((id) => ({
      id,
      row: undefined,
      late: undefined,
      on: true,
      known: false,
      contactAge: 0,
      disk: { ...DISK },
      pg: { ...PG },
      keeper: undefined,
    })),
    group: {
      sync: NO_SET,
      pending: [],
      inForce: undefined,
      history: [],
      request: undefined,
      planned: false,
      leaveAlone: 0,
      requestAge: 0,
      disputed: false,
      settings: {
        durability: "availability",
        numberSyncStandbys: 0,
        strictFencing: false,
        maximumLagBytes: 1_000_000n,
        ...settings,
      },
    },
    coarse: false,
    monitorUp: true,
    watched: AGE_MAX,
    cuts: [0, ...ids.map(() => 0)],
    acked: "",
    lossy: false,
    serial: 0,
    faultsLeft: 0,
    commitsLeft: 0,
    operationsLeft: 0,
    ...bounds,
  };
}

/** A world that may be changed; values that are never changed in place are shared. */
export const clone = (w: World): World => ({
  ...w,
  nodes: w.nodes.map((n) => ({
    ...n,
    row: n.row && { ...n.row },
    disk: { ...n.disk },
    pg: { ...n.pg },
    keeper: n.keeper && { ...n.keeper },
  })),
  group: { ...w.group },
  cuts: w.cuts.slice(),
});

export const nodeOf = (w: World, id: number): Node => w.nodes[id - 1] as Node;

// ---------------------------------------------------------------- links and servers

/** Messages get from one to the other; 0 is the monitor. */
export const reaches = (w: World, from: number, to: number): boolean =>
  ((w.cuts[from] ?? 0) & (1 << to)) === 0;

/** A connection can be made, and kept. */
export const linked = (w: World, a: number, b: number): boolean =>
  reaches(w, a, b) && reaches(w, b, a);

/** The server that this standby could stream from, or does, at this moment. */
export function sourceOf(w: World, n: Node): Node | undefined {
  const { pg } = n;
  if (pg.run !== "up" || pg.primary || pg.from === 0 || pg.from === n.id) return undefined;
  const source = nodeOf(w, pg.from);
  if (source.pg.run !== "up") return undefined;
  if (n.pg.feed === undefined && !linked(w, n.id, source.id)) return undefined;
  if (isPart(pg.wal, source.pg.wal)) return source;
  if (seemsPart(pg.wal, source.pg.wal)) {
    throw new Violation(`S1: node ${n.id} streams from node ${source.id}, whose WAL is another`);
  }
  return undefined;
}

export const isWritable = ({ pg }: Node): boolean => pg.run === "up" && pg.primary && !pg.readOnly;

/** Connections to a server that has ended, or been restarted, end too. */
export function hangUp(w: World, id: number): void {
  for (const { pg } of w.nodes) if (pg.from === id) pg.feed = undefined;
}

/** @returns whether it runs now; a start may take its time, or fail */
export function startServer(n: Node, role: "primary" | "standby"): boolean {
  const { disk, pg, keeper } = n;
  if (pg.run === "up") return true;
  if (pg.run !== "down") return false;
  const { nextStart } = pg;
  pg.nextStart = "usual";
  if (nextStart === "failing") {
    if (keeper) keeper.startFailures = 1;
    return false;
  }
  const halfway = disk.promotedFrom > 0 && timelineOf(pg.wal) <= disk.promotedFrom;
  if (role === "standby" || halfway) pg.primary = false;
  pg.run = nextStart === "slow" ? "starting" : "up";
  pg.from = pg.primary ? 0 : disk.following;
  pg.names = disk.names;
  pg.readOnly = disk.readOnly;
  pg.proof = 0;
  if (keeper) {
    keeper.shutdown = -1;
    // nobody has written to it while no keeper ran
    keeper.guard = "on";
    keeper.sync = undefined;
    keeper.proven = undefined;
    keeper.startFailures = 0;
  }
  return pg.run === "up";
}

export function endServer(w: World, n: Node): void {
  n.pg.run = "down";
  n.pg.feed = undefined;
  hangUp(w, n.id);
}

// ---------------------------------------------------------------- acknowledgements

/** Nobody but the keeper stops a primary that waits for nobody: without one, S2 is not promised. */
export const isUnguarded = ({ keeper, pg }: Node): boolean =>
  pg.names.number === 0 &&
  pg.names.members.length > 0 &&
  (keeper === undefined || keeper.frozen || keeper.thawed || keeper.guard !== "on");

/** How many entries `number` of these have, once they could be heard; -1: too few are there. */
function flushedBy(w: World, p: Node, { members, number }: Names, able: boolean): number {
  const positions: number[] = [];
  for (const id of members) {
    const s = nodeOf(w, id);
    const { pg } = s;
    if (pg.from !== p.id || pg.run !== "up" || pg.primary) continue;
    const isThere = pg.feed !== undefined ? reaches(w, id, p.id) : able && sourceOf(w, s) === p;
    if (isThere) positions.push(pg.wal.length);
  }
  if (positions.length < number) return -1;
  return positions.sort((a, b) => b - a)[number - 1] ?? -1;
}

/** Whether a commit on this node can be acknowledged as things stand. */
export function canAcknowledge(w: World, p: Node): boolean {
  if (!isWritable(p)) return false;
  if (p.pg.names.number === 0) return !isUnguarded(p);
  if (flushedBy(w, p, p.pg.names, true) >= 0) return true;
  return w.nodes.some(
    ({ id, pg }) =>
      pg.from === p.id &&
      pg.feed?.members.includes(id) &&
      pg.feed.number > 0 &&
      flushedBy(w, p, pg.feed, true) >= 0,
  );
}

/** Tells the applications what is committed by now. @throws {Violation} */
export function acknowledge(w: World): void {
  for (const p of w.nodes) {
    if (!isWritable(p)) continue;
    const { names, wal } = p.pg;
    let end = -1;
    if (names.number === 0) end = isUnguarded(p) ? -1 : wal.length;
    else {
      for (const { id, pg } of w.nodes) {
        if (pg.from !== p.id || !pg.feed?.members.includes(id) || pg.feed.number === 0) continue;
        const flushed = flushedBy(w, p, pg.feed, false);
        if (flushed > end) end = flushed;
      }
    }
    if (end < 0) continue;
    if (end <= w.acked.length && w.acked.startsWith(wal.slice(0, end))) continue;
    if (!wal.startsWith(w.acked)) {
      throw new Violation(`S1: node ${p.id} acknowledges on top of a lost commit`);
    }
    w.acked = wal.slice(0, end);
  }
}

// ---------------------------------------------------------------- for people

/** One line a node. */
export function describe(w: World): string {
  const names = ({ members, number }: Names): string =>
    members.length > 0 ? `${number}(${members})` : "";
  const lines = w.nodes.map((n) => {
    const { id, row, disk, pg, keeper, on } = n;
    const server = `${pg.run} ${pg.primary ? "primary" : "standby"}${pg.readOnly ? " ro" : ""} ${shown(pg.wal)}`;
    const sync = pg.primary ? ` sync ${names(pg.names)}/${names(disk.names)}` : "";
    const from = pg.from
      ? ` ${pg.feed ? `<-${pg.from}` : `(${pg.from})`}${pg.feed ? names(pg.feed) : ""}`
      : "";
    const task = keeper?.task ? `>${keeper.task.to}:${keeper.task.phase}` : "";
    const marks = `${on ? "" : " off"}${keeper ? "" : " no keeper"}${keeper?.frozen ? " frozen" : ""}${disk.dataReady ? "" : " no data"}${w.cuts[id] ? ` cut ${w.cuts[id]}` : ""}`;
    const seen = row
      ? `${row.reported}/${row.goal} tl${row.timeline} @${row.lsn}${row.inRecovery ? "" : " primary"}${row.pgRunning ? "" : " down"} age ${row.age}`
      : n.known
        ? "gone"
        : "unknown";
    const inForce =
      keeper?.sync || keeper?.proven
        ? ` v${keeper.sync?.set.version} proven v${keeper.proven?.version}`
        : "";
    const contact = keeper ? ` ${keeper.contact}${keeper.contactAge}/${keeper.replyAge}` : "";
    return `  ${id}: [${seen}] ${disk.state}>${disk.goal}${task}${contact}${inForce} ${server}${sync}${from}${marks}`;
  });
  const { sync, pending, inForce, request, disputed } = w.group;
  const set = (s: SyncSet | undefined): string =>
    s ? `v${s.version} of ${s.primaryId} ${s.number}(${s.members})` : "?";
  lines.push(
    `  set ${set(sync)} pending ${pending.map(set)} in force ${set(inForce)} history ${w.group.history.map((h) => `${h.timeline}@${h.forkLsn}`)} acked ${shown(w.acked)}` +
      `${request === undefined ? "" : ` request ${request}`}${disputed ? " disputed" : ""}${w.monitorUp ? "" : " monitor down"}${w.cuts[0] ? ` monitor cut ${w.cuts[0]}` : ""}`,
  );
  return lines.join("\n");
}
