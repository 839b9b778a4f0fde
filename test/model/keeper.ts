/** The keeper of the model: the real nextStep and fence, and the effects of each action, phase by phase. */

import { canTakeWrites, transitionFor } from "../../lib/fsm.ts";
import { couldBeReplaced } from "../../lib/keeper/fence.ts";
import type { nextStep } from "../../lib/keeper/step.ts";
import {
  agesMs,
  type Coverage,
  type Keeper,
  type Laws,
  NOBODY,
  type Node,
  nodeOf,
  POLICY,
  same,
  startServer,
  streamsFrom,
  Violation,
  type World,
} from "./world.ts";

const isAssigned = (n: Node, keeper: Keeper): boolean => keeper.answer?.sync.primaryId === n.id;

/** One step towards the assigned set. @returns whether it's in force */
function advanceSync(w: World, n: Node, keeper: Keeper, laws: Laws): boolean {
  const offered = keeper.answer?.sync ?? NOBODY;
  const set = isAssigned(n, keeper)
    ? offered
    : { ...NOBODY, version: offered.version, primaryId: n.id };
  if (keeper.sync?.set.version !== set.version) {
    n.disk.syncVersion = Math.max(set.version, n.disk.syncVersion);
    n.disk.names = set.members;
    keeper.written = set.members;
    keeper.sync = { set, inForce: set.members.length === 0 };
    return keeper.sync.inForce;
  }
  const hasAll = (id: number): boolean => {
    const standby = nodeOf(w, id);
    return streamsFrom(w, standby) === n && standby.pg.wal === n.pg.wal;
  };
  const flushed = laws.trustsNewMembers || set.members.every(hasAll);
  const inForce = keeper.sync.inForce || (same(n.pg.names, set.members) && flushed);
  keeper.sync = { set, inForce };
  return inForce;
}

/** @returns whether it's done; undefined: not yet, and it will look again until its time is up */
type Phase = (w: World, n: Node, keeper: Keeper, laws: Laws) => boolean | undefined;

function writeNames(n: Node, keeper: Keeper, names: readonly number[], readOnly: boolean): void {
  n.disk.names = names;
  n.disk.readOnly = readOnly;
  keeper.written = names;
  if (n.pg.run === "up") n.pg.readOnly = readOnly;
}

const adoptOrStart = (n: Node, role: "primary" | "standby"): void => {
  if (n.pg.run === "down") startServer(n, role);
};

function promoteServer({ pg }: Node): void {
  if (!pg.primary) Object.assign(pg, { primary: true, timeline: pg.timeline + 1, names: [] });
  pg.from = undefined;
}

/** The source answers and takes writes' positions: not in recovery, and reachable. */
const sourceOf = (w: World, keeper: Keeper): Node | undefined => {
  const source = keeper.answer?.upstream && nodeOf(w, keeper.answer.upstream);
  return source && w.stream && source.pg.run === "up" && source.pg.primary ? source : undefined;
};

const rewindOrClone: Phase[] = [
  (w, n, keeper) => {
    if (sourceOf(w, keeper) === undefined) return false;
    n.pg.run = "down";
    return true;
  },
  (w, n, keeper) => {
    const source = sourceOf(w, keeper);
    if (source === undefined) return false;
    if (n.disk.dataReady && n.pg.timeline === source.pg.timeline) return true; // "no rewind is needed"
    n.disk.dataReady = false;
    n.pg = { ...n.pg, wal: source.pg.wal, timeline: source.pg.timeline, primary: false };
    return true;
  },
  (_, n, keeper) => {
    n.disk.dataReady = true;
    n.disk.promotedFrom = undefined;
    writeNames(n, keeper, [], false);
    n.disk.following = keeper.answer?.upstream;
    startServer(n, "standby");
    return true;
  },
];

const advance: Phase = (w, n, keeper, laws) =>
  n.pg.run === "up" && (advanceSync(w, n, keeper, laws) || undefined);

/** The effects of transitions.ts, in their order; a phase that yields false has failed, and all is tried again. */
const ACTIONS: Readonly<Record<string, readonly Phase[]>> = {
  record: [],
  prepareReplication: [],
  initPrimary: [
    (_, n, keeper) => {
      if (!n.disk.dataReady) Object.assign(n.pg, { primary: true, timeline: 1, wal: "1" });
      n.disk.dataReady = true;
      writeNames(n, keeper, [], false);
      adoptOrStart(n, "primary");
      return true;
    },
  ],
  initStandby: rewindOrClone,
  rewindOrClone,
  becomeSingle: [advance],
  disableSync: [advance],
  enableSync: [advance],
  disconnect: [
    (_, n) => {
      n.disk.following = undefined;
      return true;
    },
    (_, n) => {
      if (n.pg.run === "hung") return false;
      if (n.pg.run === "down") startServer(n, "standby");
      n.pg.from = n.disk.following;
      return true;
    },
  ],
  promote: [
    (_, n, keeper) => {
      n.disk.promotedFrom ??= n.pg.timeline;
      writeNames(n, keeper, [], true);
      adoptOrStart(n, "standby");
      return n.pg.run === "up";
    },
    (_, n) => {
      if (n.pg.run !== "up") return false;
      promoteServer(n);
      return true;
    },
    (_, n) => {
      n.disk.following = undefined;
      return true;
    },
  ],
  openForWrites: [
    (_, n, keeper) => {
      if (n.pg.run !== "up") return false;
      if (n.disk.promotedFrom !== undefined) promoteServer(n);
      writeNames(n, keeper, keeper.written ?? [], false);
      return true;
    },
    (_, n) => {
      n.disk.promotedFrom = undefined;
      return true;
    },
  ],
  stop: [
    (_, n) => {
      n.pg.run = "down";
      return true;
    },
  ],
  resume: [
    (_, n, keeper) => {
      writeNames(
        n,
        keeper,
        isAssigned(n, keeper) ? (keeper.answer?.sync.members ?? []) : [],
        false,
      );
      adoptOrStart(n, "primary");
      return n.pg.run === "up";
    },
    (w, n, keeper, laws) => n.disk.goal !== "primary" || advance(w, n, keeper, laws),
  ],
  follow: [
    (_, n, keeper) => {
      if (keeper.answer?.upstream === undefined || n.pg.run === "hung") return false;
      n.disk.following = keeper.answer.upstream;
      adoptOrStart(n, "standby");
      return true;
    },
    (_, n) => {
      if (n.pg.run !== "up") return false;
      n.pg.from = n.disk.following;
      return true;
    },
  ],
};

export function stepOf(n: Node, keeper: Keeper, laws: Laws): ReturnType<typeof nextStep> {
  const { state, goal, dataReady } = n.disk;
  const fence = laws.fenceAtMs({
    lastContactMs: -agesMs(keeper.contactAge),
    lastReplyMs: -agesMs(keeper.replyAge),
    couldBeReplaced: couldBeReplaced(state, keeper.written?.length ?? 0),
    networkPartitionTimeoutMs: POLICY.networkPartitionTimeoutMs,
  });
  return laws.nextStep({
    state,
    goal,
    contact: keeper.contact,
    monitorIsStale: false,
    fenced: fence !== undefined && fence <= 0,
    postgres: n.pg.run,
    dataReady,
    underWay: keeper.task?.to,
    crashConsidered: keeper.crash === "none" || keeper.crash === "considered",
    backingOff: false,
  });
}

/** Settings, slots and the set of a node that has nothing else to do. */
function chores(w: World, n: Node, keeper: Keeper, laws: Laws): void {
  const { state, goal } = n.disk;
  if (n.pg.run !== "up" || keeper.answer === undefined) return;
  const ours = canTakeWrites(state) && isAssigned(n, keeper);
  const { sync } = keeper.answer;
  if (ours && keeper.written === undefined) {
    if (n.disk.syncVersion === sync.version) keeper.written = sync.members;
    else advanceSync(w, n, keeper, laws);
  }
  const readOnly = state === "prepare_promotion" || state === "stop_replication";
  writeNames(n, keeper, keeper.written ?? [], readOnly);
  if (ours && state === goal && !keeper.sync?.inForce) advanceSync(w, n, keeper, laws);
}

/** Whether a turn could change anything. */
export function hasWork(n: Node, keeper: Keeper, laws: Laws): boolean {
  const step = stepOf(n, keeper, laws);
  if (step.do === "wait")
    return keeper.task !== undefined || step.why.startsWith("there is no way");
  return step.do !== "settle" || keeper.written === undefined || !keeper.sync?.inForce;
}

/** One turn of the keeper's loop: the step that the product chooses, or the next effect of the one under way. */
export function turn(w: World, n: Node, keeper: Keeper, laws: Laws, seen: Coverage): void {
  const step = stepOf(n, keeper, laws);
  const { state, goal } = n.disk;
  if (step.do === "fence") {
    n.disk.state = "demote_timeout";
    keeper.task = undefined;
    keeper.contact = "never"; // what the monitor said before is void
  } else if (step.do === "abort") keeper.task = undefined;
  else if (step.do === "stop") n.pg.run = "down";
  else if (step.do === "settle") chores(w, n, keeper, laws);
  else if (step.do === "start") {
    keeper.crash = "none";
    startServer(n, canTakeWrites(state) || state === "stop_replication" ? "primary" : "standby");
  } else if (step.do === "transition") {
    seen.pairs.add(`${state} ${goal} ${step.row[2]}`);
    keeper.task = { to: goal, phase: 0 };
  } else if (step.do === "wait" && step.why.startsWith("there is no way")) {
    throw new Violation(`S3: ${step.why}`);
  }
  const { task } = keeper;
  if (task && (step.do === "transition" || step.do === "wait")) {
    const phase = ACTIONS[transitionFor(state, task.to)?.[2] ?? ""]?.[task.phase];
    if (phase === undefined) {
      n.disk.state = task.to; // act, then save; a crash in between repeats the action
      keeper.task = undefined;
    } else {
      const done = phase(w, n, keeper, laws);
      if (done !== undefined) keeper.task = done ? { ...task, phase: task.phase + 1 } : undefined;
    }
  }
}
