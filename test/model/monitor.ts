/** The monitor of the model: reports as node_active records them, decisions as decideAndWrite takes them. */
import { canTakeWrites, type NodeState } from "../../lib/fsm.ts";
import { decideGroup } from "../../lib/group/facts.ts";
import type { GroupView } from "../../lib/group/view.ts";
import { acknowledges, countsAsRunning } from "../../lib/keeper/report.ts";
import {
  agesMs,
  type Coverage,
  isWritable,
  type Keeper,
  type Laws,
  type Node,
  nodeOf,
  otherOf,
  POLICY,
  type Report,
  type Row,
  renumber,
  streamsFrom,
  Violation,
  type World,
} from "./world.ts";

const runs = ({ disk, pg }: Node, laws: Laws): boolean =>
  laws.frozenIsStopped ? pg.run === "up" : countsAsRunning(disk.state, pg.run, false);

export const reportOf = (w: World, n: Node, keeper: Keeper, laws: Laws): Report => ({
  reported: n.disk.state,
  pgRunning: runs(n, laws),
  timeline: n.pg.timeline,
  streaming: streamsFrom(w, n) !== undefined,
  sync: acknowledges(n.disk.state) && keeper.sync?.inForce ? keeper.sync.set : undefined,
});

export function record(n: Node, report: Report): void {
  if (!n.row) return;
  const considered = !report.pgRunning && !n.row.pgRunning && n.row.considered;
  const stalled = report.streaming ? 0 : n.row.stalled;
  n.row = { ...n.row, ...report, age: 0, stalled, considered };
  if (n.late) n.late = { ...n.late, overtaken: true };
}

export function takeAnswer(w: World, n: Node, keeper: Keeper): void {
  if (!n.row) {
    n.keeper = undefined; // the monitor knows it no more: the keeper ends
    return;
  }
  const other = otherOf(w, n.id);
  const upstream = other?.row && canTakeWrites(other.row.goal) ? other.id : undefined;
  keeper.contact = "fresh";
  keeper.contactAge = 0;
  keeper.answer = { sync: w.sync, upstream };
  n.disk.goal = n.row.goal;
  if (keeper.crash === "asked" && n.row.considered) keeper.crash = "considered";
}

export function report(w: World, n: Node, answered: boolean, laws: Laws): void {
  const keeper = n.keeper as Keeper;
  if (keeper.crash === "new" && n.pg.run !== "up") keeper.crash = "asked";
  record(n, reportOf(w, n, keeper, laws));
  if (answered) takeAnswer(w, n, keeper);
  else loseContact(keeper);
}

/** Whether a report, or its answer, would change anything. */
export function hasNews(w: World, n: Node, keeper: Keeper, laws: Laws): boolean {
  const { row } = n;
  if (!row || !keeper.answer || keeper.contactAge > 0 || row.age > 0) return true;
  if (keeper.contact !== "fresh" || keeper.crash !== "none" || n.late) return true;
  if (row.goal !== n.disk.goal || keeper.answer.sync.version !== w.sync.version) return true;
  const said = reportOf(w, n, keeper, laws);
  const upstream = otherOf(w, n.id)?.row?.goal;
  return (
    said.reported !== row.reported ||
    said.pgRunning !== row.pgRunning ||
    said.timeline !== row.timeline ||
    said.streaming !== row.streaming ||
    said.sync?.version !== row.sync?.version ||
    (keeper.answer.upstream !== undefined) !== (upstream !== undefined && canTakeWrites(upstream))
  );
}

export function loseContact(keeper: Keeper): void {
  if (keeper.contact === "fresh") keeper.contact = "lost";
  if (keeper.crash === "asked" || keeper.crash === "new") keeper.crash = "considered";
}

/** The same rows get the same decision; most worlds differ in what the monitor doesn't see. */
const decided = new WeakMap<Laws["rules"], Map<string, ReturnType<typeof decideGroup>>>();
function decisionFor(w: World, rules: Laws["rules"]): ReturnType<typeof decideGroup> {
  const known = decided.get(rules) ?? new Map();
  decided.set(rules, known);
  const reachable = (n: Node): boolean => n.on && n.link && n.pg.run === "up";
  const key = JSON.stringify([w.nodes.map((n) => [n.row, reachable(n)]), w.sync, w.quorum]);
  if (!known.has(key)) known.set(key, decideGroup(viewOf(w), rules));
  return known.get(key);
}

function viewOf(w: World): GroupView {
  const registered = w.nodes.filter((n) => n.row !== undefined);
  return {
    formation: "default",
    groupId: 0,
    sync: w.sync,
    policy: POLICY,
    nodes: registered.map((n) => {
      const row = n.row as Row;
      const reachable = n.on && n.link && n.pg.run === "up";
      return {
        nodeId: n.id,
        name: `node_${n.id}`,
        host: "localhost",
        port: 5000 + n.id,
        reported: row.reported,
        goal: row.goal,
        pgRunning: row.pgRunning,
        startFailures: 0,
        reportAgeMs: agesMs(row.age),
        health: reachable ? "good" : "bad",
        healthAgeMs: row.age > 0 ? 0 : undefined,
        timeline: row.timeline,
        lsn: 1n,
        streaming: row.streaming,
        stalledMs: agesMs(row.stalled),
        candidatePriority: 50,
        replicationQuorum: w.quorum,
        syncInForce: row.sync,
      };
    }),
  };
}

const DECISIONS_MAX = 8;

/** What `decideAndWrite` does in one transaction. */
export function decideAll(w: World, laws: Laws, seen: Coverage): void {
  for (let count = 0; ; count += 1) {
    const decision = decisionFor(w, laws.rules);
    if (decision === undefined) break;
    if (count === DECISIONS_MAX) throw new Violation("the rules don't settle");
    seen.rules.add(decision.rule.id);
    if (decision.sync) w.sync = decision.sync;
    for (const [id, goal] of decision.goals) {
      const n = nodeOf(w, id);
      const other = otherOf(w, id);
      const isOpening = canTakeWrites(goal) && n.row?.goal === "stop_replication";
      if (isOpening && other?.row && other.row.age < 2 && isWritable(other)) {
        throw new Violation("S2: writes open beside a primary that is still open");
      }
      n.row = { ...(n.row as Row), goal };
    }
    if (decision.rule.forget) nodeOf(w, decision.selfId).row = undefined;
  }
  for (const n of w.nodes) if (n.row && !n.row.pgRunning) n.row.considered = true;
  renumber(w);
}

const NOT_REMOVED: readonly NodeState[] = [
  "single",
  "wait_primary",
  "primary",
  "draining",
  "demote_timeout",
  "stop_replication",
  "prepare_promotion",
];

/** Whether `remove_node` takes this node; it refuses a primary that has company. */
export function canDrop(w: World, n: Node): boolean {
  if (!n.row || n.row.goal === "dropped") return false;
  const other = otherOf(w, n.id)?.row;
  if (other === undefined) return w.nodes.length === 1; // else its data would be gone, as was asked for
  return !NOT_REMOVED.includes(n.row.goal) || other.goal === "dropped";
}
