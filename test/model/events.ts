/** Everything that can happen to a group, by name: the ordinary, faults, what recovers from them, and operators. */
import { canTakeWrites } from "../../lib/fsm.ts";
import { DURABILITIES } from "../../lib/group/view.ts";
import { check } from "./invariants.ts";
import { type Context, isFenceDue, stepOf, turn } from "./keeper.ts";
import type { Laws } from "./laws.ts";
import {
  answerOf,
  canDrop,
  canMaintain,
  canRequest,
  canSwitchOver,
  decideAll,
  delayReport,
  loseContact,
  record,
  register,
  sendReport,
  setSettings,
  takeAnswer,
} from "./monitor.ts";
import {
  AGE_MAX,
  acknowledge,
  append,
  endServer,
  isWritable,
  type Keeper,
  linked,
  type Node,
  nodeOf,
  type Row,
  reaches,
  sameNames,
  sourceOf,
  timelineOf,
  type World,
} from "./world.ts";

/** Its name, and what it's about: nodes by id (0: the monitor), a value. */
export type Event = readonly [name: EventName, a?: number, b?: number];

type Kind = {
  readonly of: "ordinary" | "fault" | "recovery" | "client" | "operator";
  /** What its arguments can be; `node`: a node of the group; `host`: also the monitor. */
  readonly args: readonly ("node" | "host" | readonly number[])[];
  readonly can: (w: World, n: Node, b: number, laws: Laws) => boolean;
  readonly happen: (w: World, n: Node, b: number, context: Context) => void;
};

const newKeeper = (n: Node): Keeper => ({
  frozen: false,
  thawed: false,
  guard: n.pg.run === "down" ? "on" : "listens",
  contact: "never",
  contactAge: Math.max(0, n.contactAge),
  trueContactAge: Math.max(0, n.contactAge),
  replyAge: 2,
  dryAge: 0,
  answer: undefined,
  heard: undefined,
  sync: undefined,
  proven: undefined,
  written: undefined,
  task: undefined,
  crash: n.pg.run === "down" && n.disk.dataReady ? "new" : "none",
  startFailures: 0,
  shutdown: -1,
});

/** Its keeper can act. */
const isAwake = (n: Node): n is Node & { keeper: Keeper } =>
  n.keeper !== undefined && !n.keeper.frozen;

/** Whoever wakes up looks at the clock first. */
const canReport = (n: Node, laws: Laws): boolean =>
  isAwake(n) && n.keeper.heard === undefined && !(n.keeper.thawed && isFenceDue(n, n.keeper, laws));

function crash(w: World, n: Node): void {
  endServer(w, n);
  if (n.keeper) n.keeper.crash = "new";
}

/** What must happen before a threshold's time has passed: fences and stops are quick. */
function mustGoFirst(n: Node, laws: Laws): boolean {
  if (!isAwake(n)) return false;
  if (n.keeper.task?.action === "stop") return true;
  const step = stepOf(n, n.keeper, laws);
  if (step.do === "transition") return step.row[2] === "stop";
  return step.do === "fence" || step.do === "abort" || step.do === "stop";
}

/** Beyond what any threshold asks for ages are not told apart. */
const older = (age: number, max = AGE_MAX): number => (age < 0 ? age : Math.min(age + 1, max));

/** A connection over which nothing comes back is given up, by both of its ends. */
function dropConnections(w: World): void {
  for (const n of w.nodes) {
    const { pg } = n;
    if (pg.feed === undefined) continue;
    const source = nodeOf(w, pg.from);
    if (pg.run !== "up" || source.pg.run !== "up" || !linked(w, n.id, source.id))
      pg.feed = undefined;
  }
}

/** Whether the age of its goal is looked at. */
const isAgeing = ({ goal }: Row, { request, planned }: World["group"]): boolean =>
  goal === "fast_forward" || (goal === "draining" && planned && request !== undefined);

/** Time up to the next threshold; whoever can report has done so in between. */
function tick(w: World, laws: Laws): void {
  if (w.monitorUp) w.watched = older(w.watched);
  if (w.group.request !== undefined) {
    const isDraining = w.nodes.some(({ row }) => row?.goal === "draining");
    // one that is being carried out grows no older
    if (!(w.group.planned && isDraining)) w.group.requestAge += 1;
    if (w.group.requestAge > (w.coarse ? 1 : 6)) w.group.request = undefined;
  }
  for (const n of w.nodes) {
    const { row, keeper } = n;
    if (row) {
      row.age = older(row.age);
      row.stalled = older(row.stalled, 2);
      row.promised = older(row.promised, 2);
      row.goalAge = isAgeing(row, w.group) ? older(row.goalAge, 2) : 0;
      row.notSentTo = row.notSentTo.map((age) => older(age, 2));
    }
    n.contactAge = older(n.contactAge, 2);
    if (!keeper) continue;
    keeper.contactAge = older(keeper.contactAge, canTakeWrites(n.disk.state) ? 2 : 1);
    keeper.trueContactAge = older(keeper.trueContactAge, canTakeWrites(n.disk.state) ? 2 : 1);
    keeper.replyAge = older(keeper.replyAge, 2);
    if (keeper.crash !== "none" && !keeper.frozen) keeper.crash = "considered";
    keeper.thawed = false;
    if (keeper.guard === "listens") keeper.guard = "next";
    if (keeper.heard) {
      const { answer, age } = keeper.heard;
      keeper.heard = age < 1 ? { answer, age: age + 1 } : undefined;
      if (keeper.heard === undefined) loseContact(keeper);
    }
  }
  for (const { id, pg } of w.nodes) {
    if (pg.feed === undefined || pg.run !== "up") continue;
    const source = nodeOf(w, pg.from);
    if (!source.keeper || !source.disk.names.members.includes(id)) continue;
    if (source.pg.run === "up" && reaches(w, id, source.id)) {
      source.keeper.replyAge = 0;
    }
  }
  dropConnections(w);
  for (const n of w.nodes) {
    if (n.keeper) n.keeper.dryAge = n.pg.feed || n.disk.state !== "catchingup" ? 0 : 1;
    if (n.row && canReport(n, laws)) sendReport(w, n, laws, "now");
  }
}

function ask(w: World, target: number, planned: boolean, leaveAlone = 0): void {
  Object.assign(w.group, { request: target, planned, leaveAlone, requestAge: 0 });
}

const NODE = ["node"] as const;
const isGroup = (n: Node): boolean => n.row !== undefined;

export const EVENTS = {
  // what the product and PostgreSQL do of themselves
  report: {
    of: "ordinary",
    args: NODE,
    can: (_, n, __, laws) => isGroup(n) && canReport(n, laws),
    happen: (w, n, _, { laws }) => sendReport(w, n, laws, "now"),
  },
  turn: {
    of: "ordinary",
    args: NODE,
    can: (_, n) => isAwake(n),
    happen: (w, n, _, context) => n.keeper && turn(w, n, n.keeper, context),
  },
  decide: {
    of: "ordinary",
    args: [],
    can: (w) => w.monitorUp,
    happen: (w, _, __, context) => decideAll(w, context),
  },
  tick: {
    of: "ordinary",
    args: [],
    can: () => true,
    happen: (w, _, __, { laws }) => tick(w, laws),
  },
  stream: {
    of: "ordinary",
    args: NODE,
    can: (w, n) => {
      const source = sourceOf(w, n);
      if (source === undefined) return false;
      return n.pg.feed === undefined || (n.pg.wal !== source.pg.wal && reaches(w, source.id, n.id));
    },
    happen: (w, n) => {
      const source = nodeOf(w, n.pg.from);
      const isConnected = n.pg.feed !== undefined;
      n.pg.feed ??= source.disk.names;
      if (isConnected || w.coarse) n.pg.wal = source.pg.wal;
    },
  },
  takeNames: {
    of: "ordinary",
    args: NODE,
    can: (_, { pg, disk }) => pg.run === "up" && pg.primary && !sameNames(pg.names, disk.names),
    happen: (_, n) => {
      n.pg.names = n.disk.names;
    },
  },
  reread: {
    of: "ordinary",
    args: NODE,
    can: (w, { pg }) => {
      if (pg.feed === undefined) return false;
      const source = nodeOf(w, pg.from);
      return source.pg.run === "up" && !sameNames(pg.feed, source.disk.names);
    },
    happen: (w, { pg }) => {
      pg.feed = nodeOf(w, pg.from).disk.names;
    },
  },
  started: {
    of: "ordinary",
    args: NODE,
    can: (_, n) => n.pg.run === "starting",
    happen: (_, n) => {
      n.pg.run = "up";
    },
  },
  hear: {
    of: "ordinary",
    args: NODE,
    can: (w, n) => isAwake(n) && n.keeper.heard !== undefined && reaches(w, 0, n.id),
    happen: (w, n, __, { laws }) => {
      const { keeper } = n;
      if (!keeper?.heard) return;
      const { answer, age } = keeper.heard;
      keeper.heard = undefined;
      takeAnswer(w, n, keeper, answer, age, laws);
    },
  },

  // faults
  killKeeper: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.keeper !== undefined,
    happen: (_, n) => {
      n.keeper = undefined;
    },
  },
  freeze: {
    of: "fault",
    args: NODE,
    can: (_, n) => isAwake(n),
    happen: (_, n) => {
      if (n.keeper) n.keeper.frozen = true;
      if (n.pg.run === "up") n.pg.run = "hung";
    },
  },
  freezeKeeper: {
    of: "fault",
    args: NODE,
    can: (_, n) => isAwake(n),
    happen: (_, n) => {
      if (n.keeper) n.keeper.frozen = true;
    },
  },
  powerOff: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.on && n.known,
    happen: (w, n) => {
      n.on = false;
      n.contactAge = -1;
      n.keeper = undefined;
      endServer(w, n);
    },
  },
  killServer: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.pg.run === "up" || n.pg.run === "starting",
    happen: (w, n) => crash(w, n),
  },
  hangServer: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.pg.run === "up",
    happen: (_, n) => {
      n.pg.run = "hung";
    },
  },
  slowStart: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.pg.run === "down" && n.known && n.pg.nextStart === "usual",
    happen: (_, n) => {
      n.pg.nextStart = "slow";
    },
  },
  failStart: {
    of: "fault",
    args: NODE,
    can: (_, n) => n.pg.run === "down" && n.known && n.pg.nextStart === "usual",
    happen: (_, n) => {
      n.pg.nextStart = "failing";
    },
  },
  loseAnswer: {
    of: "fault",
    args: NODE,
    can: (w, n, _, laws) => isGroup(n) && canReport(n, laws) && reaches(w, n.id, 0),
    happen: (w, n, _, { laws }) => sendReport(w, n, laws, "lost"),
  },
  delayAnswer: {
    of: "fault",
    args: NODE,
    can: (w, n, _, laws) => isGroup(n) && canReport(n, laws) && linked(w, n.id, 0),
    happen: (w, n, _, { laws }) => sendReport(w, n, laws, "later"),
  },
  delayReport: {
    of: "fault",
    args: NODE,
    can: (_, n, __, laws) => isGroup(n) && canReport(n, laws) && n.late === undefined,
    happen: (w, n, _, { laws }) => delayReport(w, n, laws, false),
  },
  doubleReport: {
    of: "fault",
    args: NODE,
    can: (w, n, _, laws) =>
      isGroup(n) && canReport(n, laws) && n.late === undefined && reaches(w, n.id, 0),
    happen: (w, n, _, { laws }) => delayReport(w, n, laws, true),
  },
  cut: {
    of: "fault",
    args: ["host", "host"],
    can: (w, n, b) => n.id !== b && reaches(w, n.id, b),
    happen: (w, n, b) => {
      w.cuts[n.id] = (w.cuts[n.id] ?? 0) | (1 << b);
    },
  },
  sever: {
    of: "fault",
    args: ["host", "host"],
    can: (w, n, b) => n.id < b && (reaches(w, n.id, b) || reaches(w, b, n.id)),
    happen: (w, n, b) => {
      w.cuts[n.id] = (w.cuts[n.id] ?? 0) | (1 << b);
      w.cuts[b] = (w.cuts[b] ?? 0) | (1 << n.id);
    },
  },
  isolate: {
    of: "fault",
    args: NODE,
    can: (w, n) => n.known && w.cuts.some((_, b) => b !== n.id && linked(w, n.id, b)),
    happen: (w, n) => {
      for (let b = 0; b < w.cuts.length; b += 1) {
        if (b === n.id) continue;
        w.cuts[n.id] = (w.cuts[n.id] ?? 0) | (1 << b);
        w.cuts[b] = (w.cuts[b] ?? 0) | (1 << n.id);
      }
    },
  },
  stopMonitor: {
    of: "fault",
    args: [],
    can: (w) => w.monitorUp,
    happen: (w) => {
      w.monitorUp = false;
    },
  },

  // what recovers from them
  lateReport: {
    of: "recovery",
    args: NODE,
    can: (w, n) => n.late !== undefined && reaches(w, n.id, 0),
    happen: (w, n, _, { laws }) => {
      const { late } = n;
      n.late = undefined;
      if (late && (!late.overtaken || laws.acceptsLateReports))
        record(w, n, late.report, late.overtaken);
    },
  },
  startKeeper: {
    of: "recovery",
    args: NODE,
    can: (_, n) => isGroup(n) && n.keeper === undefined,
    happen: (_, n) => {
      n.on = true;
      n.keeper = newKeeper(n);
    },
  },
  thaw: {
    of: "recovery",
    args: NODE,
    can: (_, n) => n.keeper?.frozen === true,
    happen: (_, n) => {
      if (n.pg.run === "hung") n.pg.run = "up";
      if (!n.keeper) return;
      n.keeper.frozen = false;
      n.keeper.thawed = true;
    },
  },
  thawServer: {
    of: "recovery",
    args: NODE,
    can: (_, n) => n.pg.run === "hung" && !n.keeper?.frozen,
    happen: (_, n) => {
      n.pg.run = "up";
    },
  },
  giveUp: {
    of: "recovery",
    args: NODE,
    can: (_, n) => isAwake(n) && n.keeper.task?.action === "resume",
    happen: (_, n) => {
      if (n.keeper) n.keeper.task = undefined;
    },
  },
  mend: {
    of: "recovery",
    args: ["host", "host"],
    can: (w, n, b) => n.id !== b && !reaches(w, n.id, b),
    happen: (w, n, b) => {
      w.cuts[n.id] = (w.cuts[n.id] ?? 0) & ~(1 << b);
    },
  },
  mendAll: {
    of: "recovery",
    args: [],
    can: (w) => w.cuts.some((bits) => bits !== 0),
    happen: (w) => {
      w.cuts.fill(0);
    },
  },
  startMonitor: {
    of: "recovery",
    args: [],
    can: (w) => !w.monitorUp,
    happen: (w) => {
      w.monitorUp = true;
      w.watched = 0;
    },
  },

  // applications
  commit: {
    of: "client",
    args: NODE,
    can: (_, n) => isWritable(n),
    happen: (w, n) => append(w, n),
  },

  // operators
  register: {
    of: "operator",
    args: NODE,
    can: (w, n) => !n.known && n.on && (n.id === 1 || w.nodes.some((m) => m.id < n.id && m.row)),
    happen: (w, n) => {
      register(w, n);
      n.keeper = newKeeper(n);
      takeAnswer(w, n, n.keeper, answerOf(w, n), 0);
    },
  },
  drop: {
    of: "operator",
    args: NODE,
    can: (w, n) => canDrop(w, n, false),
    happen: (_, n) => {
      if (!n.row) return;
      n.row.goal = "dropped";
      n.row.goalAge = 0;
    },
  },
  forceDrop: {
    of: "operator",
    args: NODE,
    can: (w, n) => canDrop(w, n, true),
    happen: (_, n) => {
      n.row = undefined;
    },
  },
  failover: {
    of: "operator",
    args: ["host"],
    can: (w, n) => canRequest(w, n.id),
    happen: (w, n) => ask(w, n.id, false),
  },
  switchover: {
    of: "operator",
    args: ["host"],
    can: (w, n) => canSwitchOver(w, n.id),
    happen: (w, n) => ask(w, n.id, true),
  },
  startMaintenance: {
    of: "operator",
    args: NODE,
    can: (w, n) => canMaintain(w, n),
    happen: (w, n) => {
      if (!n.row) return;
      if (canTakeWrites(n.row.goal)) ask(w, 0, true, n.id);
      else n.row.maintenance = true;
    },
  },
  stopMaintenance: {
    of: "operator",
    args: NODE,
    can: (_, n) => n.row?.maintenance === true,
    happen: (_, n) => {
      if (n.row) n.row.maintenance = false;
    },
  },
  /** In maintenance nobody starts it again. */
  stopByHand: {
    of: "operator",
    args: NODE,
    can: (_, n) => n.disk.state === "maintenance" && n.pg.run === "up",
    happen: (w, n) => endServer(w, n),
  },
  promoteByHand: {
    of: "operator",
    args: NODE,
    can: (_, n) => n.pg.run === "up" && !n.pg.primary && n.row !== undefined,
    happen: (w, n) => {
      n.pg.primary = true;
      n.pg.from = 0;
      n.pg.feed = undefined;
      n.pg.names = n.disk.names;
      append(w, n, timelineOf(n.pg.wal) + 1);
    },
  },
  writeByHand: {
    of: "operator",
    args: NODE,
    can: (_, n) =>
      n.pg.run === "up" && n.pg.primary && !canTakeWrites(n.disk.state) && n.row !== undefined,
    happen: (w, n) => append(w, n),
  },
  priority: {
    of: "operator",
    args: ["node", [0, 50, 100]],
    can: (_, n, b) => n.row !== undefined && n.row.priority !== b,
    happen: (_, n, b) => {
      if (n.row) n.row.priority = b;
    },
  },
  quorum: {
    of: "operator",
    args: ["node", [0, 1]],
    can: (_, n, b) => n.row !== undefined && n.row.quorum !== (b === 1),
    happen: (_, n, b) => {
      if (n.row) n.row.quorum = b === 1;
    },
  },
  numberSync: {
    of: "operator",
    args: [[0, 1, 2]],
    can: () => true,
    happen: (w, _, b) => setSettings(w, { numberSyncStandbys: b }),
  },
  durability: {
    of: "operator",
    args: [[0, 1, 2]],
    can: () => true,
    happen: (w, _, b) => setSettings(w, { durability: DURABILITIES[b] ?? "availability" }),
  },
  strictFencing: {
    of: "operator",
    args: [[0, 1]],
    can: () => true,
    happen: (w, _, b) => setSettings(w, { strictFencing: b === 1 }),
  },
} as const satisfies Record<string, Kind>;
export type EventName = keyof typeof EVENTS;
export const EVENT_NAMES = Object.keys(EVENTS) as EventName[];
export const kindOf = (name: EventName): Kind => EVENTS[name];

const MONITOR = { id: 0 } as Node;

/** Whether it can happen in this world; a tick only when nothing has to go first. */
export function canHappen(w: World, [name, a = 0, b = 0]: Event, laws: Laws): boolean {
  const { args, can } = kindOf(name);
  if (name === "tick" && w.nodes.some((n) => mustGoFirst(n, laws))) return false;
  if (typeof args[0] === "object") return can(w, MONITOR, a, laws);
  return can(w, a === 0 ? MONITOR : nodeOf(w, a), b, laws);
}

function takeAllNames(w: World): void {
  for (const { pg, disk } of w.nodes) {
    if (pg.run === "up" && pg.primary) pg.names = disk.names;
    if (pg.feed === undefined) continue;
    const source = nodeOf(w, pg.from);
    if (source.pg.run === "up") pg.feed = source.disk.names;
  }
}

/** @throws {Violation} the world that comes of it must not be */
export function happen(w: World, [name, a = 0, b = 0]: Event, context: Context): void {
  const kind = kindOf(name);
  if (kind.of === "fault") w.faultsLeft -= 1;
  else if (kind.of === "client") w.commitsLeft -= 1;
  else if (kind.of === "operator") w.operationsLeft -= 1;
  if (typeof kind.args[0] === "object") kind.happen(w, MONITOR, a, context);
  else kind.happen(w, a === 0 ? MONITOR : nodeOf(w, a), b, context);
  if (w.coarse) takeAllNames(w);
  acknowledge(w);
  check(w);
}
