/** Groups in a few words: `1 primary` is a converged, healthy primary; what differs is said after it. */
import { NODE_STATES, type NodeState } from "../../../lib/fsm.ts";
import { decideGroup, type GroupDecision } from "../../../lib/group/facts.ts";
import {
  DEFAULT_POLICY,
  type GroupView,
  type NodeView,
  type SyncSet,
} from "../../../lib/group/view.ts";

export const NOBODY: SyncSet = { version: 1, primaryId: 1, members: [], number: 0 };
export const SYNC: SyncSet = { version: 1, primaryId: 1, members: [2], number: 1 };

const SILENT: Partial<NodeView> = {
  reportAgeMs: DEFAULT_POLICY.nodeTimeoutMs,
  health: "bad",
  healthAgeMs: 100,
};

/** Each word and what it changes. */
const WORDS: Readonly<Record<string, Partial<NodeView>>> = {
  down: { pgRunning: false },
  /** No report for node_timeout, and no connection since. */
  gone: SILENT,
  /** No report, and no probe has been tried. */
  silent: { reportAgeMs: DEFAULT_POLICY.nodeTimeoutMs, health: "unknown", healthAgeMs: undefined },
  /** No report, but PostgreSQL answers the probe. */
  mute: { ...SILENT, health: "good" },
  /** The probe that failed is older than the last report. */
  stale: { ...SILENT, healthAgeMs: DEFAULT_POLICY.nodeTimeoutMs },
  unreachable: { ...SILENT, reportAgeMs: DEFAULT_POLICY.unreachablePrimaryTimeoutMs },
  receiving: { streaming: true },
  stalled: { streaming: false, stalledMs: DEFAULT_POLICY.nodeTimeoutMs },
  "not-streaming": { streaming: false },
  "other-timeline": { timeline: 2 },
  "far-behind": { lsn: 1n },
  "without-wal": { lsn: 0n },
  "priority-0": { candidatePriority: 0 },
  "no-quorum": { replicationQuorum: false },
  "start-failed": { startFailures: 1 },
};

const STANDBYS: readonly NodeState[] = ["catchingup", "secondary"];

/** @param text e.g. `2 secondary>prepare_promotion gone`: id, reported>goal (or both at once), words */
function node(text: string, sync: SyncSet): NodeView {
  const [id = "", states = "", ...words] = text.split(" ");
  const [reported, goal = reported] = states.split(">");
  for (const state of [reported, goal]) {
    if (!NODE_STATES.includes(state as NodeState))
      throw new Error(`no state "${state}" in "${text}"`);
  }
  const view: NodeView = {
    nodeId: Number(id),
    name: `node_${id}`,
    host: "localhost",
    port: 5000 + Number(id),
    reported: reported as NodeState,
    goal: goal as NodeState,
    pgRunning: true,
    startFailures: 0,
    reportAgeMs: 100,
    health: "good",
    healthAgeMs: undefined,
    timeline: 1,
    lsn: 1n << 30n,
    streaming: STANDBYS.includes(reported as NodeState),
    stalledMs: 0,
    candidatePriority: 50,
    replicationQuorum: true,
    syncInForce: sync.primaryId === Number(id) ? sync : undefined,
  };
  for (const word of words) {
    if (WORDS[word] === undefined) throw new Error(`no word "${word}" in "${text}"`);
  }
  return Object.assign(view, ...words.map((word) => WORDS[word]));
}

export type Extra = { readonly sync?: SyncSet; readonly inForce?: SyncSet | undefined };

export function group(texts: readonly string[], extra: Extra = {}): GroupView {
  const sync = extra.sync ?? SYNC;
  const nodes = texts.map((text) => node(text, sync));
  const inForce = "inForce" in extra ? extra.inForce : sync;
  return {
    formation: "default",
    groupId: 0,
    sync,
    policy: DEFAULT_POLICY,
    nodes: nodes.map((each) => ({
      ...each,
      syncInForce: each.nodeId === sync.primaryId ? inForce : undefined,
    })),
  };
}

/** `R301: 1 draining, 2 prepare_promotion; sync 2`, or `nothing`. */
export function decided(texts: readonly string[], extra: Extra = {}): string {
  return textOf(decideGroup(group(texts, extra)));
}

function textOf(decision: GroupDecision | undefined): string {
  if (decision === undefined) return "nothing";
  const goals = [...decision.goals]
    .toSorted(([a], [b]) => a - b)
    .map(([id, goal]) => `${id} ${goal}`);
  const members = decision.sync?.members.join(",") || "nobody";
  const sync = decision.sync ? `; sync ${members} for ${decision.sync.primaryId}` : "";
  const forget = decision.rule.forget ? `${decision.selfId} forgotten` : "";
  return `${decision.rule.id}: ${goals.join(", ") || forget}${sync}`;
}
