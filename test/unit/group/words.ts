/** Groups in a few words: `1 primary` is a converged, healthy primary; what differs is said after it. */
import { NODE_STATES, type NodeState, PROMISED } from "../../../lib/fsm.ts";
import { decideGroup, type GroupDecision } from "../../../lib/group/facts.ts";
import {
  DEFAULT_POLICY,
  DEFAULT_SETTINGS,
  type GroupView,
  type NodeView,
  type Request,
  type Settings,
  type SyncSet,
  type Timeline,
} from "../../../lib/group/view.ts";

export const setOf = (
  members: readonly number[],
  number: number,
  version = 1,
  primaryId = 1,
): SyncSet => ({ version, primaryId, members, number });

export const NOBODY = setOf([], 0);
export const SYNC = setOf([2], 1);
/** Any one of two. */
export const BOTH = setOf([2, 3], 1);

/** Where every node is that isn't said to be elsewhere. */
export const LSN = 1n << 30n;
export const FIRST: Timeline = { timeline: 1, parent: 0, forkLsn: 0n };
/** Where the second timeline begins. */
export const SECOND: Timeline = { timeline: 2, parent: 1, forkLsn: LSN };

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
  stalled: { streaming: false, stalledMs: DEFAULT_POLICY.nodeTimeoutMs },
  "not-streaming": { streaming: false },
  /** A server that takes writes, whatever its keeper says. */
  writable: { inRecovery: false, streaming: false },
  /** Its keeper is heard of, and a connection fails. */
  hung: { health: "bad" },
  "without-wal": { lsn: 0n },
  "no-quorum": { replicationQuorum: false },
  "start-failed": { startFailures: 1 },
  /** What it reported was from before it was told. */
  unconfirmed: { confirmed: false },
  "passed-over": { passedOver: true },
  maintained: { maintenance: true },
};

/** Words with a number, as in `behind-100`. */
const MEASURES: Readonly<Record<string, (count: number) => Partial<NodeView>>> = {
  behind: (bytes) => ({ lsn: LSN - BigInt(bytes) }),
  ahead: (bytes) => ({ lsn: LSN + BigInt(bytes) }),
  timeline: (timeline) => ({ timeline }),
  priority: (candidatePriority) => ({ candidatePriority }),
  /** Milliseconds since it reported that it receives nothing. */
  promised: (promisedMs) => ({ promisedMs }),
  /** Milliseconds since its goal was assigned. */
  told: (goalAgeMs) => ({ goalAgeMs }),
  /** It has stopped in an orderly way, so many bytes before, or after, where everybody is. */
  ended: (bytes) => ({ pgRunning: false, shutdown: { lsn: LSN + BigInt(bytes), tookMs: 40 } }),
  /** How long after its last contact it has stopped, by the timers that it goes by. */
  fence: (fenceMs) => ({ fenceMs }),
  /** The node that it was told to fetch WAL from. */
  from: (fetchFrom) => ({ fetchFrom }),
};

function changeOf(word: string, text: string): Partial<NodeView> {
  const [, name = "", count] = /^(\w+)-(\d+)$/.exec(word) ?? [];
  const change = WORDS[word] ?? MEASURES[name]?.(Number(count));
  if (change === undefined) throw new Error(`no word "${word}" in "${text}"`);
  return change;
}

const RECEIVING: readonly NodeState[] = ["catchingup", "secondary"];

/** @param text e.g. `2 secondary>prepare_promotion gone`: id, reported>goal (or both at once), words */
function node(text: string): NodeView {
  const [id = "", states = "", ...words] = text.split(" ");
  const [reported, goal = reported] = states.split(">") as [NodeState, NodeState?];
  for (const state of [reported, goal]) {
    if (!NODE_STATES.includes(state)) throw new Error(`no state "${state}" in "${text}"`);
  }
  const view: NodeView = {
    nodeId: Number(id),
    name: `node_${id}`,
    host: "localhost",
    port: 5000 + Number(id),
    reported,
    goal,
    confirmed: true,
    pgRunning: true,
    startFailures: 0,
    reportAgeMs: 100,
    health: "good",
    healthAgeMs: undefined,
    timeline: 1,
    lsn: LSN,
    inRecovery: RECEIVING.includes(reported) || PROMISED.includes(reported),
    streaming: RECEIVING.includes(reported),
    stalledMs: 0,
    notSentToMs: 0,
    promisedMs: PROMISED.includes(reported) || reported === "stop_replication" ? 100 : undefined,
    goalAgeMs: 100,
    passedOver: false,
    maintenance: false,
    shutdown: undefined,
    fenceMs: 0,
    fetchFrom: undefined,
    promotion: undefined,
    candidatePriority: 50,
    replicationQuorum: true,
  };
  return Object.assign(view, ...words.map((word) => changeOf(word, text)));
}

/** What differs in a group from one in which `sync` has long been in force, under the defaults. */
export type Extra = Partial<Omit<GroupView, "nodes" | "settings" | "request">> & {
  readonly settings?: Partial<Settings>;
  readonly request?: Partial<Request> | undefined;
};

/** What an operator has asked for: without more, a failover to whoever is elected. */
export const asked = (request: Partial<Request> = {}): Request => ({
  target: undefined,
  allowDataLoss: false,
  planned: false,
  ...request,
});

export function group(texts: readonly string[], extra: Extra = {}): GroupView {
  const sync = extra.sync ?? SYNC;
  return {
    formation: "default",
    groupId: 0,
    nodes: texts.map(node),
    pending: [],
    inForce: sync,
    policy: DEFAULT_POLICY,
    history: [FIRST],
    disputed: false,
    ...extra,
    request: extra.request && asked(extra.request),
    sync,
    settings: { ...DEFAULT_SETTINGS, ...extra.settings },
  };
}

/** `R301: 1 draining, 2 prepare_promotion; sync 1 of 2 for 1`, or `nothing`. */
export const decided = (texts: readonly string[], extra: Extra = {}): string =>
  textOf(decideGroup(group(texts, extra)));

function textOf(decision: GroupDecision | undefined): string {
  if (decision === undefined) return "nothing";
  const { rule, selfId, goals, sync, fetchFrom } = decision;
  const assigned = [...goals].toSorted(([a], [b]) => a - b).map(([id, goal]) => `${id} ${goal}`);
  const waited = sync?.members.length ? `${sync.number} of ${sync.members.join()}` : "nobody";
  const parts = [
    ...(assigned.length > 0 ? [assigned.join(", ")] : []),
    ...(fetchFrom === undefined ? [] : [`from ${fetchFrom}`]),
    ...(sync ? [`sync ${waited} for ${sync.primaryId}`] : []),
    ...(rule.forget ? [`${selfId} forgotten`] : []),
    ...(rule.passOver ? [`${selfId} passed over`] : []),
  ];
  return `${rule.id}: ${parts.join("; ")}`;
}
