/** The failovers of a group, told by the monitor's events: who gave way to whom, when, and how long each phase took. */
import { canTakeWrites, GROUP_RULES, type NodeState } from "../fsm.ts";

/** A row of the `event` table, as far as failovers are told by it. */
export type GroupEvent = {
  /** Milliseconds, on the monitor's clock. */
  readonly atMs: number;
  readonly nodeId: number;
  readonly nodeName: string;
  readonly reported: NodeState;
  readonly goal: NodeState;
  /** Null: no rule's decision, but a report, a request, or a remark. */
  readonly rule: string | null;
  readonly description: string;
};

export type Failover = {
  readonly kind: "failover" | "asked for";
  readonly status: "under way" | "done" | "called off";
  readonly from: string;
  /** The candidate, or who has taken over; null: nobody yet, or not any more. */
  readonly to: string | null;
  /** The old primary said that PostgreSQL was down or fenced, or an operator asked; null: it fell silent. */
  readonly noticedMs: number | null;
  readonly decidedMs: number;
  /** In a switchover the old primary takes writes until it has written everything out; null: its stop wasn't told. */
  readonly closedMs: number | null;
  /** The candidate receives nothing from the old primary any more, and lacks nothing. */
  readonly disconnectedMs: number | null;
  readonly promotedMs: number | null;
  /** Writes are open: on the new primary, or on the old one when it was called off. */
  readonly openMs: number | null;
  /** Commits are protected by a standby again. */
  readonly redundantMs: number | null;
  /** WAL of the old primary that is known to be given up; null: no commit was at stake. */
  readonly lostBytes: number | null;
  readonly notes: readonly string[];
};

type Draft = { -readonly [K in keyof Failover]: Failover[K] };

/** Durations in milliseconds; null: one of the two moments is missing. */
export type Phases = {
  readonly decide: number | null;
  readonly disconnect: number | null;
  readonly promote: number | null;
  readonly open: number | null;
  /** Without writes, as the monitor saw it: a silence before the decision is not known to be one. */
  readonly outage: number | null;
  readonly redundancy: number | null;
};

const between = (from: number | null, to: number | null): number | null =>
  from === null || to === null ? null : to - from;

export function phasesOf(failover: Failover): Phases {
  const { kind, noticedMs, decidedMs, disconnectedMs, promotedMs, openMs, redundantMs } = failover;
  // who hands over on request takes writes until then
  const closedMs =
    failover.closedMs ?? (kind === "asked for" ? decidedMs : (noticedMs ?? decidedMs));
  return {
    decide: between(noticedMs, decidedMs),
    disconnect: between(decidedMs, disconnectedMs),
    promote: between(disconnectedMs, promotedMs),
    open: between(promotedMs, openMs),
    outage: between(closedMs, openMs),
    redundancy: between(openMs, redundantMs),
  };
}

const REQUESTED = new Set(
  GROUP_RULES.filter(({ when }) => when.includes("requested")).map(({ id }) => id),
);

/** How long the monitor remembers a request. */
const REQUEST_MS = 60_000;

/** The goals by which a primary is told to give way, and those of its candidate. */
const LEAVES: readonly NodeState[] = ["draining", "prepare_maintenance"];
const IS_CANDIDATE: readonly NodeState[] = [
  "prepare_promotion",
  "stop_replication",
  "fast_forward",
];

const bytesIn = (text: string): number | null => {
  const [, bytes] = / is (\d+) bytes ahead/.exec(text) ?? [];
  return bytes === undefined ? null : Number(bytes);
};

/** Said of a switchover's candidate: the old primary has stopped, and what that took. */
const stopMsIn = (text: string): number | null => {
  const [, ms] = / took (\d+) ms to stop/.exec(text) ?? [];
  return ms === undefined ? null : Number(ms);
};

/**
 * @param events of one group, oldest first; a failover whose decision is not among them is left out
 * @returns oldest first; all but the last one are over
 */
export function failoversOf(events: readonly GroupEvent[]): Failover[] {
  const found: Draft[] = [];
  let current: Draft | undefined;
  let fromId = 0;
  let toId: number | undefined;
  /** What is known of a failover that nobody has decided yet. */
  const down = new Map<number, number>();
  let askedMs: number | null = null;
  let chosen: GroupEvent | undefined;

  const appoint = (event: GroupEvent): void => {
    if (current === undefined) return;
    current.lostBytes = bytesIn(event.description) ?? current.lostBytes;
    const stopMs = stopMsIn(event.description);
    if (stopMs !== null) current.closedMs ??= event.atMs - stopMs;
    if (toId === event.nodeId) return;
    toId = event.nodeId;
    current.to = event.nodeName;
  };
  const dismiss = (): void => {
    if (current === undefined || toId === undefined) return;
    current.notes = [...current.notes, `${current.to} was given up`];
    Object.assign(current, { to: null, disconnectedMs: null, promotedMs: null, lostBytes: null });
    toId = undefined;
  };

  const onGoal = (event: GroupEvent): void => {
    const { nodeId, goal, rule, atMs } = event;
    if (current?.status !== "under way" && LEAVES.includes(goal)) {
      const isAsked = REQUESTED.has(rule ?? "");
      const recentMs = askedMs !== null && atMs - askedMs <= REQUEST_MS ? askedMs : null;
      fromId = nodeId;
      toId = undefined;
      current = {
        kind: isAsked ? "asked for" : "failover",
        status: "under way",
        from: event.nodeName,
        to: null,
        noticedMs: isAsked ? recentMs : (down.get(nodeId) ?? null),
        decidedMs: atMs,
        closedMs: null,
        ...{ disconnectedMs: null, promotedMs: null, openMs: null, redundantMs: null },
        ...{ lostBytes: null, notes: [] },
      };
      found.push(current);
      askedMs = null;
      down.delete(nodeId);
      // one decision may name the candidate first
      if (chosen?.rule === rule) appoint(chosen);
    } else if (current?.status === "under way") {
      if (nodeId === fromId && canTakeWrites(goal)) current.status = "called off";
      else if (IS_CANDIDATE.includes(goal)) appoint(event);
      else if (nodeId === toId && !canTakeWrites(goal)) dismiss();
    }
    chosen = goal === "prepare_promotion" ? event : undefined;
  };

  const goesDown = (nodeId: number, atMs: number): void => {
    if (!down.has(nodeId)) down.set(nodeId, atMs);
  };

  const onReport = ({ nodeId, reported, atMs }: GroupEvent): void => {
    if (canTakeWrites(reported)) down.delete(nodeId);
    else if (reported === "demote_timeout") goesDown(nodeId, atMs);
    if (current === undefined) return;
    if (nodeId === toId && current.status === "under way") {
      if (reported === "prepare_promotion") current.disconnectedMs ??= atMs;
      if (reported === "stop_replication") current.promotedMs ??= atMs;
      if (canTakeWrites(reported)) Object.assign(current, { status: "done", openMs: atMs });
    }
    const isBack = current.status === "called off" && nodeId === fromId && canTakeWrites(reported);
    if (isBack) current.openMs ??= atMs;
    const holder = current.status === "done" ? toId : fromId;
    const isProtected = nodeId === holder && reported === "primary" && current.openMs !== null;
    if (isProtected) current.redundantMs ??= atMs;
  };

  for (const event of events) {
    const { nodeId, description, atMs } = event;
    if (event.rule !== null) onGoal(event);
    else if (description.startsWith("New state is reported")) onReport(event);
    else if (description.endsWith("reports that PostgreSQL is not running")) goesDown(nodeId, atMs);
    else if (description.endsWith("reports that PostgreSQL is running again")) down.delete(nodeId);
    else if (/^A (?:failover|switchover) of group \d+ was asked for/.test(description))
      askedMs = atMs;
    else if (description.startsWith("Blocked: ") && current?.status === "under way")
      current.notes = [...new Set([...current.notes, description])];
  }
  return found;
}
