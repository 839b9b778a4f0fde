/** What a keeper says of its node, as a value and as the walkthrough's sentence. Pure. */
import { canTakeWrites, type NodeState, PROMISED, STATE_TRAITS } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import { standbyId } from "../group/quorum.ts";
import type { SyncSet } from "../group/view.ts";
import type { Observation } from "../pg/local.ts";
import type { KeeperState, Report, Shutdown } from "../shapes.ts";

export const isStreaming = (seen: Observation | undefined): boolean =>
  seen?.inRecovery === true && seen.receiver?.status === "streaming" && !seen.walWaits;

/** A primary takes writes; a standby serves reads only; none serves nobody, or is left to its operator. */
export type Role = "primary" | "standby" | "none";

export function roleOf(state: NodeState): Role {
  if (canTakeWrites(state)) return "primary";
  return STATE_TRAITS[state].postgres === "up" ? "standby" : "none";
}

/**
 * What "PostgreSQL is running" means to the monitor. In a state that promises a stopped server it
 * runs until no process is left: one that hangs may wake up, and somebody else is waiting to open.
 *
 * @param stopping this keeper is stopping it just now
 */
export function countsAsRunning(
  state: NodeState,
  postgres: "up" | "down" | "hung",
  stopping: boolean,
): boolean {
  return STATE_TRAITS[state].postgres === "down"
    ? postgres !== "down" || stopping
    : postgres === "up";
}

/** Whose set in force is told: also a fenced primary's, the truth about what it has acknowledged. */
export const acknowledges = (state: NodeState): boolean =>
  canTakeWrites(state) || state === "demote_timeout";

const receiversOf = (seen: Observation): number[] =>
  seen.standbys.flatMap(({ applicationName, state }) => {
    const id = standbyId(applicationName);
    return id === undefined || state !== "streaming" ? [] : [id];
  });

/** Best first; the report says the best that any standby has. */
const SYNC_STATES = ["quorum", "sync", "potential", "async"] as const;

export type ReportInput = {
  readonly state: KeeperState;
  readonly seen: Observation | undefined;
  readonly running: boolean;
  /** Counts the reports since the keeper's start. */
  readonly sequence: bigint;
  readonly startFailures: number;
  readonly syncInForce: SyncSet | null;
  readonly shutdown: Shutdown | undefined;
  readonly fenceMs: number;
  readonly secretId?: string | undefined;
};

/** Who takes part in an election tells what it can replay, and no more; anybody else what it may have at most. */
const positionOf = (state: NodeState, seen: Observation | undefined): bigint =>
  (PROMISED.includes(state) && state !== "prepare_promotion"
    ? (seen?.replayLsn ?? seen?.lsn)
    : seen?.lsn) ?? 0n;

export function reportOf(input: ReportInput): Report {
  const { state, seen, running } = input;
  const best = SYNC_STATES.find((word) =>
    seen?.standbys.some(({ syncState }) => syncState === word),
  );
  return {
    identity: state.identity,
    // grows also over restarts of the keeper
    reportNo: (BigInt(state.incarnation) << 32n) + input.sequence,
    goalVersion: state.goalVersion,
    state: state.state,
    pgIsRunning: running,
    timeline: seen?.timeline ?? 0,
    lsn: formatLsn(positionOf(state.state, seen)),
    ...(seen && { inRecovery: seen.inRecovery }),
    syncState: running && seen && !seen.inRecovery ? (best ?? "") : "",
    streaming: running && isStreaming(seen),
    ...(running && canTakeWrites(state.state) && seen && { sendsTo: receiversOf(seen) }),
    startFailures: input.startFailures,
    ...(acknowledges(state.state) && { syncInForce: input.syncInForce }),
    promotion: state.promotion,
    shutdown: (!running && input.shutdown) || null,
    fenceMs: input.fenceMs,
    systemIdentifier: state.systemIdentifier,
    secretId: input.secretId,
  };
}

/** How far the standby that is furthest behind is behind, in bytes; -1 when there is none. */
function walDelta(seen: Observation | undefined): bigint {
  const own = seen?.lsn ?? 0n;
  let most = -1n;
  for (const { flushLsn = 0n } of seen?.standbys ?? []) {
    if (own - flushLsn > most) most = own - flushLsn;
  }
  return most;
}

/** @returns the sentence without, and with, what changes at every report */
export function sentenceOf(
  report: Report,
  formation: string,
  { state, seen }: Pick<ReportInput, "state" | "seen">,
): { readonly steady: string; readonly whole: string } {
  const steady =
    `Calling node_active for node ${formation}/${state.nodeId}/${state.groupId ?? 0} with current state: ` +
    `${report.state}, PostgreSQL ${report.pgIsRunning ? "is running" : "is not running"}, ` +
    `sync_state is "${report.syncState}"`;
  const delta = report.pgIsRunning ? walDelta(seen) : -1n;
  return { steady, whole: `${steady}, WAL delta is ${delta}.` };
}

type Notification = Partial<
  Record<
    "formation" | "groupId" | "nodeId" | "goalVersion" | "goalState" | "decidedReport",
    unknown
  >
>;

/**
 * Whether a notification says more than this node knows.
 *
 * @param payload "" after a (re)subscription: anything may have been missed
 * @param knows goals of the group's other nodes
 * @param asked the number of the report that the node waits to hear to have been considered
 */
export function isNews(
  payload: string,
  formation: string,
  state: KeeperState,
  knows: readonly { readonly nodeId: number; readonly goal: string }[],
  asked?: bigint,
): boolean {
  if (payload === "") return true;
  let event: Notification;
  try {
    event = JSON.parse(payload);
  } catch {
    return false;
  }
  if (event.formation !== formation || event.groupId !== state.groupId) return false;
  if (event.nodeId === state.nodeId) {
    const isConsidered = asked !== undefined && asked <= Number(event.decidedReport);
    return isConsidered || event.goalVersion !== state.goalVersion;
  }
  return knows.find(({ nodeId }) => nodeId === event.nodeId)?.goal !== event.goalState;
}
