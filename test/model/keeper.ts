/** The keeper of the model: the real nextStep and fence, and the effects of each action, phase by phase. */
import { type Action, canTakeWrites, PROMISED, STATE_TRAITS } from "../../lib/fsm.ts";
import type { SyncSet } from "../../lib/group/view.ts";
import type { Step } from "../../lib/keeper/step.ts";
import type { Laws } from "./laws.ts";
import {
  acknowledge,
  append,
  endServer,
  isPart,
  type Keeper,
  linked,
  type Names,
  NO_SET,
  NOBODY,
  type Node,
  nodeOf,
  POLICY,
  promotionOf,
  reaches,
  sameNames,
  startServer,
  TICK_MS,
  timelineOf,
  Violation,
  type World,
} from "./world.ts";

/** What was exercised on the way: rule ids, and transitions. */
export type Coverage = { readonly rules: Set<string>; readonly transitions: Set<string> };

export type Context = { readonly laws: Laws; readonly seen: Coverage };

// ---------------------------------------------------------------- the synchronous set

const isOurs = (n: Node, keeper: Keeper): boolean => keeper.answer?.sync.primaryId === n.id;

function assignedTo(n: Node, keeper: Keeper): SyncSet {
  const sync = keeper.answer?.sync ?? NO_SET;
  return isOurs(n, keeper) ? sync : { version: sync.version, primaryId: n.id, ...NOBODY };
}

const namesOf = ({ members, number }: Names): Names => ({ members, number });

function writeNames(n: Node, keeper: Keeper, names: Names, readOnly: boolean): void {
  n.disk.names = names;
  n.disk.readOnly = readOnly;
  keeper.written = names;
  if (n.pg.run === "up") n.pg.readOnly = readOnly;
}

/** The checkpointer and every walsender have read the names in the file. */
function areTaken(w: World, n: Node, laws: Laws): boolean {
  if (!sameNames(n.pg.names, n.disk.names)) return false;
  if (laws.trustsOldSenders) return true;
  return w.nodes.every(
    ({ pg }) => pg.from !== n.id || pg.feed === undefined || sameNames(pg.feed, n.disk.names),
  );
}

const isInForce = (keeper: Keeper, { version }: SyncSet): boolean =>
  keeper.proven?.version === version;

function prove(n: Node, keeper: Keeper, set: SyncSet): void {
  keeper.proven = set;
  n.pg.proof = set.number > 0 ? set.version : n.pg.proof;
}

/** One step towards the assigned set. @returns whether it's in force */
function advanceSync(w: World, n: Node, keeper: Keeper, laws: Laws): boolean {
  const set = assignedTo(n, keeper);
  if (keeper.sync?.set.version !== set.version) {
    n.disk.syncVersion = Math.max(set.version, n.disk.syncVersion);
    n.disk.names = namesOf(set);
    keeper.written = n.disk.names;
    keeper.sync = { set, from: -1 };
    // names that let commits wait for nobody are in force at once
    if (set.number === 0) prove(n, keeper, set);
  }
  if (isInForce(keeper, set)) return true;
  if (!sameNames(n.disk.names, set) || !areTaken(w, n, laws)) return false;
  const from = keeper.sync.from < 0 ? n.pg.wal.length : keeper.sync.from;
  keeper.sync = { set, from };
  const hasPassed = (id: number): boolean => {
    const { pg } = nodeOf(w, id);
    return (
      pg.from === n.id && pg.feed !== undefined && reaches(w, id, n.id) && pg.wal.length >= from
    );
  };
  if (!laws.trustsNewMembers && !laws.isBinding(set, hasPassed)) return false;
  prove(n, keeper, set);
  return true;
}

// ---------------------------------------------------------------- actions

/** @returns whether it's done, or the phase to go on with; undefined: not yet, it looks again */
type Phase = (w: World, n: Node, keeper: Keeper, laws: Laws) => boolean | number | undefined;

const DONE = 99;

/** @returns undefined while it starts */
const adoptOrStart = (n: Node, role: "primary" | "standby"): boolean | undefined => {
  if (startServer(n, role)) return true;
  return n.pg.run === "starting" ? undefined : false;
};

function follow({ pg, disk }: Node): void {
  pg.from = disk.following;
  pg.feed = undefined;
}

function promoteServer(w: World, n: Node, laws: Laws): void {
  const { pg } = n;
  if (pg.primary) return;
  pg.primary = true;
  pg.from = 0;
  pg.feed = undefined;
  pg.names = NOBODY;
  if (!laws.keepsTimeline) append(w, n, timelineOf(pg.wal) + 1);
}

/** The primary to copy from answers, and takes writes. */
function upstreamOf(w: World, n: Node, keeper: Keeper): Node | undefined {
  const id = keeper.answer?.upstream ?? 0;
  if (id === 0) return undefined;
  const source = nodeOf(w, id);
  const answers = source.pg.run === "up" && source.pg.primary && linked(w, n.id, id);
  return answers ? source : undefined;
}

/** pg_rewind or pg_basebackup has begun: until it's over the data is of no use. */
function overwrite(n: Node, source: Node): void {
  n.disk.dataReady = false;
  n.pg.wal = source.pg.wal;
  n.pg.primary = false;
}

const startAsStandby: Phase = (_, n, keeper) => {
  n.disk.dataReady = true;
  n.disk.promotedFrom = 0;
  writeNames(n, keeper, NOBODY, true);
  keeper.written = undefined;
  n.disk.following = keeper.answer?.upstream ?? 0;
  return adoptOrStart(n, "standby");
};

const copy: readonly Phase[] = [
  (w, n, keeper) => {
    if (upstreamOf(w, n, keeper) === undefined) return false;
    endServer(w, n);
    return true;
  },
  (w, n, keeper) => {
    const source = upstreamOf(w, n, keeper);
    if (source === undefined) return false;
    const { dataReady } = n.disk;
    const isOfOneLine = !n.pg.primary || timelineOf(n.pg.wal) !== timelineOf(source.pg.wal);
    if (dataReady && isOfOneLine && isPart(n.pg.wal, source.pg.wal)) return true;
    overwrite(n, source);
    return true;
  },
  startAsStandby,
];

/** A standby that isn't where it should be: a new word from whom to receive, or new data. */
const rejoin: readonly Phase[] = [
  (_, n, keeper) => {
    if ((keeper.answer?.upstream ?? 0) === 0) return false;
    // were this given up half-way, it would stream from the new primary and pass for one that doesn't
    if (PROMISED.includes(n.disk.state)) n.disk.state = "catchingup";
    return n.disk.dataReady || REJOIN_COPIES;
  },
  (_, n) => n.pg.run !== "hung" && adoptOrStart(n, "standby"),
  (w, n, keeper) => {
    const { disk, pg } = n;
    const upstream = keeper.answer?.upstream ?? 0;
    if (disk.state === "secondary" && disk.following === upstream) return pg.run === "up";
    const source = upstreamOf(w, n, keeper);
    if (source === undefined || pg.run !== "up") return false;
    const fits = !pg.primary && isPart(pg.wal, source.pg.wal);
    if (!fits) return REJOIN_COPIES;
    writeNames(n, keeper, NOBODY, true);
    disk.following = source.id;
    return true;
  },
  (_, n) => {
    if (n.pg.run !== "up") return false;
    if (!n.pg.primary) follow(n);
    return DONE;
  },
  ...copy,
];
const REJOIN_COPIES = 4;

const disconnect: readonly Phase[] = [
  (_, n, keeper, laws) => {
    if (!laws.forgetsPromise) n.disk.following = 0;
    if (!n.pg.primary || n.pg.run !== "up") writeNames(n, keeper, NOBODY, true);
    return true;
  },
  (_, n, __, laws) => {
    if (n.pg.run === "hung") return false;
    if (n.pg.run !== "up") {
      const started = adoptOrStart(n, "standby");
      if (started !== true) return started;
    } else if (laws.promisesEarly) return true;
    n.pg.from = n.pg.primary ? 0 : n.disk.following;
    n.pg.feed = undefined;
    return n.disk.goal !== "report_lsn" || !n.pg.primary;
  },
];

/** A fast stop waits until every standby that is connected has everything; past its bound it is no orderly one. */
function stopInOrder(w: World, n: Node, keeper: Keeper, laws: Laws): void {
  const served = w.nodes.filter(
    ({ pg }) => pg.from === n.id && pg.feed !== undefined && pg.run !== "down",
  );
  if (served.some(({ id, pg }) => pg.run !== "up" || !linked(w, id, n.id))) return;
  if (laws.stopsAtOnce) {
    keeper.shutdown = Math.min(n.pg.wal.length, ...served.map(({ pg }) => pg.wal.length));
    return;
  }
  for (const { pg } of served) pg.wal = n.pg.wal;
  keeper.shutdown = n.pg.wal.length;
  // the replies have reached it before it ends
  acknowledge(w);
}

const advance: Phase = (w, n, keeper, laws) =>
  n.pg.run === "up" && (advanceSync(w, n, keeper, laws) || undefined);

/** Goes on also while it's not in force yet: that may take a standby's return. */
const apply: Phase = (w, n, keeper, laws) => {
  if (n.pg.run !== "up") return false;
  advanceSync(w, n, keeper, laws);
  return true;
};

/** The actions' effects in their order; a phase that yields false has failed, and all is tried again. */
const ACTIONS: Readonly<Record<Action, readonly Phase[]>> = {
  record: [],
  prepareReplication: [],
  initPrimary: [
    (_, n, keeper) => {
      if (!n.disk.dataReady) {
        n.pg.primary = true;
        n.pg.wal = String(n.id);
      }
      n.disk.dataReady = true;
      writeNames(n, keeper, NOBODY, false);
      return adoptOrStart(n, "primary");
    },
  ],
  initStandby: copy,
  rewindOrClone: copy,
  rejoin,
  becomeSingle: [apply],
  disableSync: [apply],
  applySettings: [apply],
  enableSync: [advance],
  disconnect,
  fastForward: [
    (_, n) => n.pg.run !== "hung" && adoptOrStart(n, "standby"),
    (_, n, keeper) => {
      const { source = 0 } = keeper.answer ?? {};
      if (source === 0 || n.pg.run !== "up") return false;
      // the promise to receive nothing from the old primary stays: a start after a crash follows nobody
      n.pg.from = source;
      n.pg.feed = undefined;
      return true;
    },
    (w, n, keeper) => {
      const { source = 0, sourceLsn = 0 } = keeper.answer ?? {};
      const isUp = n.pg.run === "up";
      if (isUp && n.pg.wal.length >= sourceLsn) return true;
      if (isUp && source > 0 && nodeOf(w, source).pg.run === "up" && linked(w, n.id, source)) {
        return undefined;
      }
      keeper.task = keeper.task && { ...keeper.task, failed: true };
      return true;
    },
    ...disconnect,
    (_, __, keeper) => !keeper.task?.failed,
  ],
  promote: [
    (_, n, keeper) => {
      if (n.pg.run === "hung") return false;
      // somebody may have promoted it by hand since it was elected: that is the promotion
      if (n.disk.promotedFrom === 0)
        n.disk.promotedFrom = timelineOf(n.pg.wal) - (n.pg.primary ? 1 : 0);
      writeNames(n, keeper, NOBODY, true);
      return n.pg.run === "up" || adoptOrStart(n, "standby");
    },
    (w, n, _, laws) => {
      if (n.pg.run !== "up") return false;
      promoteServer(w, n, laws);
      return laws.keepsTimeline || timelineOf(n.pg.wal) > n.disk.promotedFrom;
    },
    (_, n) => {
      n.disk.promotion = promotionOf(n.pg.wal);
      return true;
    },
  ],
  openForWrites: [
    (w, n, keeper, laws) => {
      if (n.pg.run !== "up") return false;
      if (n.disk.promotedFrom > 0) promoteServer(w, n, laws);
      n.disk.promotion = promotionOf(n.pg.wal);
      const set = assignedTo(n, keeper);
      if (set.number > 0) writeNames(n, keeper, namesOf(set), true);
      return true;
    },
    (w, n, _, laws) => {
      if (n.pg.run !== "up") return false;
      return areTaken(w, n, laws) || undefined;
    },
    (_, n, keeper) => {
      if (n.pg.run !== "up") return false;
      writeNames(n, keeper, n.disk.names, false);
      return true;
    },
    (_, n) => {
      n.disk.promotedFrom = 0;
      return true;
    },
  ],
  drain: [
    (w, n, keeper, laws) => {
      if (keeper.answer?.planned && n.pg.run === "up") stopInOrder(w, n, keeper, laws);
      endServer(w, n);
      return true;
    },
  ],
  stop: [
    (w, n) => {
      endServer(w, n);
      return true;
    },
  ],
  resume: [
    (_, n, keeper) => {
      writeNames(n, keeper, namesOf(assignedTo(n, keeper)), false);
      return adoptOrStart(n, "primary");
    },
    (w, n, keeper, laws) => {
      if (n.disk.goal === "apply_settings") return apply(w, n, keeper, laws);
      return n.disk.goal !== "primary" || advance(w, n, keeper, laws);
    },
  ],
};

// ---------------------------------------------------------------- one turn

/** This standby follows another node than the primary, or has not got a connection to it for long. */
function isAdrift(n: Node, keeper: Keeper): boolean {
  const upstream = keeper.answer?.upstream ?? 0;
  return upstream > 0 && (n.disk.following !== upstream || keeper.dryAge >= 1);
}

export function isFenceDue({ disk }: Node, keeper: Keeper, laws: Laws): boolean {
  if (keeper.guard === "listens") return false;
  const fence = laws.fenceAtMs({
    lastContactMs: -keeper.contactAge * TICK_MS,
    lastReplyMs: -keeper.replyAge * TICK_MS,
    couldBeReplaced: laws.couldBeReplaced(disk.state, disk.names.members.length),
    networkPartitionTimeoutMs: POLICY.networkPartitionTimeoutMs,
  });
  return fence !== undefined && fence <= 0;
}

export function stepOf(n: Node, keeper: Keeper, laws: Laws): Step {
  const { state, goal, dataReady } = n.disk;
  return laws.nextStep({
    state,
    goal,
    contact: keeper.contact === "fresh" && keeper.contactAge >= 1 ? "lost" : keeper.contact,
    monitorIsStale: false,
    fenced: isFenceDue(n, keeper, laws),
    postgres: n.pg.run === "starting" ? "down" : n.pg.run,
    dataReady,
    underWay: keeper.task?.to,
    crashConsidered: keeper.crash === "none" || keeper.crash === "considered",
    adrift: isAdrift(n, keeper),
    backingOff: false,
  });
}

/** Settings and the set of a node that has nothing else to do. */
function chores(w: World, n: Node, keeper: Keeper, laws: Laws): void {
  const { state, goal } = n.disk;
  if (n.pg.run !== "up" || keeper.answer === undefined) return;
  const ours = canTakeWrites(state) && isOurs(n, keeper);
  const { sync } = keeper.answer;
  if (ours && keeper.written === undefined) {
    if (n.disk.syncVersion === sync.version) {
      keeper.written = namesOf(sync);
      if (n.pg.proof === sync.version) {
        keeper.sync = { set: sync, from: 0 };
        keeper.proven = sync;
      }
    } else advanceSync(w, n, keeper, laws);
  }
  // what an attempt to fetch WAL has left behind when its keeper died
  if (PROMISED.includes(state) && !n.pg.primary && n.pg.from !== 0) {
    n.disk.following = 0;
    follow(n);
  }
  writeNames(n, keeper, keeper.written ?? NOBODY, !canTakeWrites(state));
  if (ours && state === goal && !isInForce(keeper, sync)) advanceSync(w, n, keeper, laws);
}

/** What is put in order also when a task is given up. */
function giveUp(n: Node, keeper: Keeper): void {
  if (keeper.task?.action === "fastForward" && n.pg.run === "up" && !n.pg.primary) follow(n);
  keeper.task = undefined;
}

function goOn(w: World, n: Node, keeper: Keeper, { laws }: Context): void {
  const { task } = keeper;
  if (task === undefined) return;
  const phase = ACTIONS[task.action][task.phase];
  if (phase === undefined) {
    n.disk.state = task.to; // act, then save; a crash in between repeats the action
    keeper.task = undefined;
    return;
  }
  const done = phase(w, n, keeper, laws);
  if (done === undefined) return;
  if (done === false) giveUp(n, keeper);
  else if (keeper.task) {
    keeper.task = { ...keeper.task, phase: done === true ? task.phase + 1 : done };
  }
}

/** One turn of the loop: the step that the product chooses, or the next effect of the one under way. */
export function turn(w: World, n: Node, keeper: Keeper, context: Context): void {
  const { guard } = keeper;
  act(w, n, keeper, context);
  if (guard === "next") keeper.guard = "on";
}

function act(w: World, n: Node, keeper: Keeper, context: Context): void {
  const step = stepOf(n, keeper, context.laws);
  const { state, goal } = n.disk;
  if (n.pg.run === "starting" && keeper.task === undefined && step.do !== "fence") {
    if (STATE_TRAITS[goal].postgres === "down") endServer(w, n);
    return;
  }
  switch (step.do) {
    case "fence":
      giveUp(n, keeper);
      n.disk.state = "demote_timeout";
      keeper.contact = "never"; // what the monitor said before, or says to what was sent before, is void
      keeper.heard = undefined;
      return;
    case "abort":
      giveUp(n, keeper);
      return;
    case "stop":
      endServer(w, n);
      return;
    case "settle":
      chores(w, n, keeper, context.laws);
      return;
    case "start":
      keeper.crash = "none";
      if (PROMISED.includes(state) && !context.laws.forgetsPromise) n.disk.following = 0;
      startServer(n, canTakeWrites(state) || state === "stop_replication" ? "primary" : "standby");
      return;
    case "repair":
      keeper.task = { to: "catchingup", action: "rejoin", phase: 0, failed: false };
      break;
    case "transition":
      context.seen.transitions.add(`${state} ${goal} ${step.row[2]}`);
      keeper.task = { to: goal, action: step.row[2], phase: 0, failed: false };
      break;
    case "wait":
      if (step.why.startsWith("there is no way")) throw new Violation(`S3: ${step.why}`);
      break;
  }
  goOn(w, n, keeper, context);
}
