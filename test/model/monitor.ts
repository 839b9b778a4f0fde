/** The monitor of the model: reports as node_active records them, decisions as decideAndWrite takes them. */
import { canTakeWrites, type NodeState } from "../../lib/fsm.ts";
import type { GroupDecision } from "../../lib/group/facts.ts";
import type { GroupView, NodeView, SyncSet } from "../../lib/group/view.ts";
import type { Context } from "./keeper.ts";
import type { Laws } from "./laws.ts";
import {
  type Answer,
  endServer,
  isWritable,
  type Keeper,
  linked,
  type Node,
  nodeOf,
  POLICY,
  type Report,
  type Row,
  reaches,
  TICK_MS,
  timelineOf,
  Violation,
  type World,
} from "./world.ts";

// ---------------------------------------------------------------- reports

export function reportOf(w: World, n: Node, keeper: Keeper, laws: Laws): Report {
  const { disk, pg } = n;
  const isUp = pg.run === "up";
  const run = pg.run === "starting" ? "down" : pg.run;
  const pgRunning = laws.frozenIsStopped ? isUp : laws.countsAsRunning(disk.state, run, false);
  return {
    goalVersion: disk.goalVersion,
    reported: disk.state,
    pgRunning,
    startFailures: keeper.startFailures,
    timeline: isUp ? timelineOf(pg.wal) : 0,
    lsn: isUp ? pg.wal.length : 0,
    inRecovery: isUp ? !pg.primary : undefined,
    streaming: isUp && pg.feed !== undefined,
    sendsTo:
      pgRunning && isUp && canTakeWrites(disk.state)
        ? w.nodes.flatMap((m) => (m.pg.feed && m.pg.from === n.id ? [m.id] : []))
        : undefined,
    promotion: disk.promotion,
    shutdown: pgRunning ? -1 : keeper.shutdown,
    asks: keeper.crash === "new" && !pgRunning,
    inForce: laws.acknowledges(disk.state) ? (keeper.proven ?? null) : undefined,
  };
}

const HAS_PROMISED: readonly NodeState[] = [
  "report_lsn",
  "join_secondary",
  "fast_forward",
  "prepare_promotion",
  "stop_replication",
];

const STOPS: readonly NodeState[] = ["draining", "demote_timeout", "demoted"];

const VOTING: readonly NodeState[] = ["report_lsn", "join_secondary", "fast_forward"];

/** @param credulous: the state counts also when the keeper didn't know the present goal */
export function record(w: World, n: Node, report: Report, credulous = false): void {
  const { row } = n;
  if (!row) return;
  const { asks, inForce, sendsTo, goalVersion, ...said } = report;
  // a goal that has come back meanwhile must not seem reached
  const isFenced =
    said.reported === "demote_timeout" && !said.pgRunning && STOPS.includes(row.goal);
  const counts = credulous || goalVersion >= row.goalVersion || isFenced;
  const reported = counts ? said.reported : row.reported;
  const keeps = VOTING.includes(row.reported) && VOTING.includes(reported);
  n.row = {
    ...row,
    ...said,
    reported,
    // nothing else is made of it than of a stop
    confirmed: (counts || row.confirmed) && STOPS.includes(reported),
    timeline: said.timeline || row.timeline,
    lsn: Math.max(said.lsn || row.lsn, keeps ? row.lsn : 0),
    inRecovery: said.inRecovery ?? row.inRecovery,
    notSentTo: w.nodes.map(({ id }, at) =>
      sendsTo === undefined || id === n.id || sendsTo.includes(id)
        ? -1
        : Math.max(0, row.notSentTo[at] ?? 0),
    ),
    shutdown: credulous || goalVersion >= row.goalVersion ? said.shutdown : -1,
    age: 0,
    stalled: said.streaming ? -1 : Math.max(0, row.stalled),
    promised: HAS_PROMISED.includes(reported) ? Math.max(0, row.promised) : -1,
    considered: row.considered && !asks && !said.pgRunning,
  };
  if (inForce !== undefined && w.group.sync.primaryId === n.id) {
    w.group.inForce = inForce ?? undefined;
  }
  if (n.late && !n.late.overtaken) n.late = { ...n.late, overtaken: true };
}

export function answerOf(w: World, n: Node): Answer | undefined {
  if (!n.row) return undefined;
  let upstream = 0;
  for (const { id, row } of w.nodes) {
    if (!row || id === n.id) continue;
    if (canTakeWrites(row.goal) && upstream === 0) upstream = id;
  }
  const { goal, goalVersion, considered, fetchFrom: source } = n.row;
  const sourceLsn = w.nodes[source - 1]?.row?.lsn ?? -1;
  const planned = goal === "draining" && w.group.request !== undefined && w.group.planned;
  return {
    goal,
    goalVersion,
    considered,
    planned,
    sync: w.group.sync,
    upstream,
    source,
    sourceLsn,
  };
}

/** @param age of the contact: since the report was sent */
export function takeAnswer(
  w: World,
  n: Node,
  keeper: Keeper,
  answer: Answer | undefined,
  age: number,
  laws?: Laws,
): void {
  if (answer === undefined) {
    // it was removed: it stops its server, and ends
    n.keeper = undefined;
    endServer(w, n);
    return;
  }
  keeper.contact = "fresh";
  keeper.contactAge = laws?.countsFromReceipt ? 0 : age;
  keeper.trueContactAge = age;
  n.contactAge = keeper.contactAge;
  keeper.answer = answer;
  n.disk.goal = answer.goal;
  n.disk.goalVersion = answer.goalVersion;
  if (keeper.crash === "asked" && answer.considered) keeper.crash = "considered";
}

export function loseContact(keeper: Keeper): void {
  if (keeper.contact === "fresh") keeper.contact = "lost";
  if (keeper.crash === "asked" || keeper.crash === "new") keeper.crash = "considered";
}

function sent(w: World, n: Node, keeper: Keeper, laws: Laws): Report {
  const report = reportOf(w, n, keeper, laws);
  if (report.asks) keeper.crash = "asked";
  return report;
}

/** A report as far as the links let it come; an answer comes back at once, or later, or never. */
export function sendReport(w: World, n: Node, laws: Laws, answer: "now" | "later" | "lost"): void {
  const { keeper } = n;
  if (!keeper) return;
  const report = sent(w, n, keeper, laws);
  const arrives = reaches(w, n.id, 0);
  if (arrives) record(w, n, report);
  if (!arrives || answer === "lost" || !reaches(w, 0, n.id)) loseContact(keeper);
  else if (answer === "later") keeper.heard = { answer: answerOf(w, n), age: 0 };
  else takeAnswer(w, n, keeper, answerOf(w, n), 0);
}

/** A report that stays under way, whether or not it has also arrived. */
export function delayReport(w: World, n: Node, laws: Laws, arrives: boolean): void {
  const { keeper } = n;
  if (!keeper) return;
  const report = sent(w, n, keeper, laws);
  if (arrives) record(w, n, report);
  n.late = { report, overtaken: arrives };
  loseContact(keeper);
}

// ---------------------------------------------------------------- decisions

function healthOf(w: World, n: Node): NodeView["health"] {
  if (!n.on || !linked(w, 0, n.id)) return "bad";
  if (n.pg.run === "starting") return "unknown";
  return n.pg.run === "up" ? "good" : "bad";
}

export function viewOf(w: World): GroupView {
  const { group } = w;
  const { watched } = w;
  const ms = (age: number): number => Math.min(age, watched) * TICK_MS;
  const primary = w.nodes[group.sync.primaryId - 1]?.row;
  const nodes: NodeView[] = [];
  for (const n of w.nodes) {
    const { id, row } = n;
    if (!row) continue;
    nodes.push({
      nodeId: id,
      name: `node_${id}`,
      host: "localhost",
      port: 5000 + id,
      reported: row.reported,
      goal: row.goal,
      confirmed: row.confirmed,
      pgRunning: row.pgRunning,
      startFailures: row.startFailures,
      reportAgeMs: ms(row.age),
      health: healthOf(w, n),
      healthAgeMs: row.age > 0 && watched > 0 ? 0 : undefined,
      timeline: row.timeline,
      lsn: BigInt(row.lsn),
      inRecovery: row.inRecovery,
      streaming: row.streaming,
      stalledMs: ms(Math.max(0, row.stalled)),
      notSentToMs: ms(Math.max(0, primary?.notSentTo[id - 1] ?? 0)),
      promisedMs: row.promised < 0 ? undefined : ms(row.promised),
      goalAgeMs: ms(row.goalAge),
      passedOver: row.passedOver,
      maintenance: row.maintenance,
      shutdown: row.shutdown < 0 ? undefined : { lsn: BigInt(row.shutdown), tookMs: 0 },
      fenceMs: POLICY.networkPartitionTimeoutMs + POLICY.fenceStopTimeoutMs,
      fetchFrom: row.fetchFrom || undefined,
      promotion: row.promotion,
      candidatePriority: row.priority,
      replicationQuorum: row.quorum,
    });
  }
  const target = group.request === 0 ? undefined : group.request;
  return {
    formation: "default",
    groupId: 0,
    nodes,
    sync: group.sync,
    pending: group.pending,
    inForce: group.inForce,
    policy: POLICY,
    settings: group.settings,
    history: group.history,
    request:
      group.request === undefined
        ? undefined
        : { target, allowDataLoss: false, planned: group.planned },
    disputed: group.disputed,
  };
}

const setText = (set: SyncSet | undefined): string =>
  set ? `${set.version}/${set.primaryId}/${set.number}(${set.members})` : "";

/** The same rows get the same decision; most worlds differ in what the monitor doesn't see. */
const decided = new WeakMap<Laws, Map<string, GroupDecision | undefined>>();
const CACHE_MAX = 200_000;

function keyOfView(w: World): string {
  const { group } = w;
  const s = group.settings;
  let key = `${w.watched} ${group.request} ${+group.planned} ${group.disputed} ${s.durability} ${s.numberSyncStandbys} ${s.strictFencing}`;
  key += [group.sync, group.inForce, ...group.pending].map(setText).join("|");
  for (const { timeline, forkLsn } of group.history) key += ` ${timeline}@${forkLsn}`;
  for (const n of w.nodes) {
    const { row } = n;
    if (!row) continue;
    key += `${n.id} ${row.age > 0 ? healthOf(w, n) : ""} ${row.reported} ${row.goal} ${+row.confirmed}${+row.pgRunning}${row.startFailures}${row.age}${row.stalled}${row.promised}${row.goalAge}${row.notSentTo.join("")}${+row.passedOver}${+row.maintenance}${row.shutdown}${+row.inRecovery}${+row.streaming}${+row.quorum} ${row.timeline} ${row.lsn} ${row.priority} ${row.promotion?.timeline} ${row.promotion?.forkLsn};`;
  }
  return key;
}

function decisionFor(w: World, laws: Laws): GroupDecision | undefined {
  let known = decided.get(laws);
  if (known === undefined || known.size > CACHE_MAX) {
    known = new Map();
    decided.set(laws, known);
  }
  const key = keyOfView(w);
  const decision = known.get(key);
  if (decision !== undefined || known.has(key)) return decision;
  const fresh = laws.decideGroup(viewOf(w));
  known.set(key, fresh);
  return fresh;
}

/** The group's history goes on with the timeline of the node that opens for writes. */
function writeTimeline(w: World, n: Node, laws: Laws): void {
  const { row } = n;
  const next = row && laws.nextTimeline(row, w.group);
  if (next) w.group.history = [...w.group.history, next];
}

const UNDECIDED: readonly NodeState[] = ["stop_replication", "draining", "demote_timeout"];

function assign(w: World, n: Node, goal: NodeState, fetchFrom: number, laws: Laws): void {
  const { row } = n;
  if (!row) return;
  const from = row.goal;
  row.goal = goal;
  row.goalVersion += 1;
  row.confirmed = false;
  row.goalAge = 0;
  row.fetchFrom = fetchFrom;
  row.shutdown = -1;
  if (goal === "draining") row.maintenance ||= w.group.leaveAlone === n.id;
  else if (goal === "prepare_promotion" || canTakeWrites(goal)) row.maintenance = false;
  if (goal === "catchingup" || goal === "wait_primary") row.passedOver = false;
  if (goal === "prepare_promotion" && laws.isAsynchronous(viewOf(w))) w.lossy = true;
  if (from === "stop_replication" && canTakeWrites(goal)) {
    open(w, n);
    writeTimeline(w, n, laws);
  }
  if (UNDECIDED.includes(from) && canTakeWrites(goal)) w.group.request = undefined;
}

/** Writes open on a promoted node: nobody else may be open who was heard of just now. */
function open(w: World, n: Node): void {
  for (const other of w.nodes) {
    if (other === n || !other.row || other.row.age >= 2 || !isWritable(other)) continue;
    throw new Violation(
      `S2: node ${n.id} opens for writes beside node ${other.id}, which still is`,
    );
  }
  if (w.lossy) {
    let same = 0;
    while (same < w.acked.length && w.acked[same] === n.pg.wal[same]) same += 1;
    w.acked = w.acked.slice(0, same);
  }
  w.lossy = false;
}

/** What `decideAndWrite` does in one transaction. */
export function decideAll(w: World, { laws, seen }: Context): void {
  const { group } = w;
  const most = 8 + 4 * w.nodes.length;
  const ahead = laws.primaryAhead(viewOf(w));
  if (ahead) writeTimeline(w, nodeOf(w, ahead.nodeId), laws);
  for (let count = 0; ; count += 1) {
    const decision = decisionFor(w, laws);
    if (decision === undefined) break;
    const { rule, selfId, goals, sync, fetchFrom = 0 } = decision;
    if (count === most) throw new Violation(`S4: the rules don't settle: ${rule.id}`);
    seen.rules.add(rule.id);
    if (sync) {
      group.pending = laws.pendingAfter(group, sync);
      group.sync = sync;
    }
    for (const [id, goal] of goals) assign(w, nodeOf(w, id), goal, fetchFrom, laws);
    const self = nodeOf(w, selfId);
    if (rule.passOver && self.row) self.row.passedOver = true;
    if (rule.forget) self.row = undefined;
  }
  const view = viewOf(w);
  if (!group.disputed) group.disputed = laws.isDisputed(view);
  for (const { row } of w.nodes) if (row && !row.pgRunning) row.considered = true;
}

// ---------------------------------------------------------------- operators

export function register(w: World, n: Node): void {
  n.known = true;
  n.row = {
    reported: "init",
    confirmed: false,
    goal: "init",
    goalVersion: 1,
    pgRunning: false,
    startFailures: 0,
    timeline: 0,
    lsn: 0,
    inRecovery: false,
    streaming: false,
    notSentTo: [],
    promotion: undefined,
    age: 0,
    stalled: 0,
    promised: -1,
    goalAge: 0,
    passedOver: false,
    maintenance: false,
    shutdown: -1,
    fetchFrom: 0,
    considered: false,
    priority: 50,
    quorum: true,
  };
  const { group } = w;
  const quorum = w.nodes.filter(({ row }) => row?.quorum).length;
  if (quorum === 3 && group.settings.numberSyncStandbys === 0) {
    group.settings = { ...group.settings, numberSyncStandbys: 1 };
  }
}

const goalsOf = (w: World): { id: number; goal: NodeState }[] =>
  w.nodes.flatMap(({ id, row }) => (row ? [{ id, goal: row.goal }] : []));

const IN_CHARGE: readonly NodeState[] = [
  "single",
  "wait_primary",
  "primary",
  "apply_settings",
  "draining",
  "demote_timeout",
  "stop_replication",
  "prepare_promotion",
  "fast_forward",
];

/** Whether `remove_node` takes this node. */
export function canDrop(w: World, n: Node, force: boolean): boolean {
  if (!n.row || n.row.goal === "dropped") return false;
  const company = goalsOf(w).some(({ id, goal }) => id !== n.id && goal !== "dropped");
  if (IN_CHARGE.includes(n.row.goal)) return !company && !force && w.nodes.length === 1;
  return force || !["report_lsn", "join_secondary"].includes(n.row.goal);
}

/** Whether `request_failover` takes this request; 0: to whoever is elected. */
export function canRequest(w: World, target: number): boolean {
  const goals = goalsOf(w);
  if (target > 0) {
    const goal = nodeOf(w, target).row?.goal;
    if (goal === undefined || canTakeWrites(goal)) return false;
  }
  const promoted: NodeState[] = ["prepare_promotion", "stop_replication", "fast_forward"];
  const standbys: NodeState[] = ["secondary", "catchingup", "report_lsn", "join_secondary"];
  return (
    goals.some(({ goal }) => standbys.includes(goal)) &&
    !goals.some(({ goal }) => promoted.includes(goal))
  );
}

/** Whether `perform_switchover` takes this request; 0: to whom the monitor prefers. */
export const canSwitchOver = (w: World, target: number): boolean =>
  !(w.group.request !== undefined && w.group.planned) &&
  goalsOf(w).some(({ goal }) => goal === "primary" || goal === "apply_settings") &&
  w.nodes.some(
    ({ id, row }) => row?.goal === "secondary" && (target === 0 ? row.priority > 0 : id === target),
  );

/** Whether `start_maintenance` takes this node, of which the primary hands over first. */
export function canMaintain(w: World, { id, row }: Node): boolean {
  if (row === undefined || row.maintenance) return false;
  if (row.goal === "primary" || row.goal === "apply_settings") return canSwitchOver(w, 0);
  if (!["secondary", "catchingup", "demoted"].includes(row.goal)) return false;
  if (!goalsOf(w).some(({ goal }) => canTakeWrites(goal))) return false;
  const isProtected = w.group.settings.durability === "protection" && row.quorum;
  return (
    !isProtected ||
    w.nodes.some(
      (n) => n.id !== id && n.row?.goal === "secondary" && n.row.quorum && !n.row.maintenance,
    )
  );
}

/** What is lost by `set_formation`: nothing but the old value. */
export function setSettings(w: World, change: Partial<World["group"]["settings"]>): void {
  w.group.settings = { ...w.group.settings, ...change };
}

export const rowOf = (n: Node): Row | undefined => n.row;
