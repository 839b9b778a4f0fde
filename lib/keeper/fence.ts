/** May this primary go on taking writes? Pure: times are passed in, on one monotonic clock. */
import { canTakeWrites, type NodeState } from "../fsm.ts";

/**
 * Whether the monitor may give this node's place to somebody else: a standby is in its synchronous
 * set, or may be (a keeper that has just started doesn't know what is in force).
 *
 * @param writtenMembers how many standbys the names in its settings list
 */
export const couldBeReplaced = (state: NodeState, writtenMembers: number): boolean =>
  canTakeWrites(state) && (state === "primary" || state === "apply_settings" || writtenMembers > 0);

export type FenceInput = {
  /** When the last report that was answered had been sent, by whichever keeper of this node; unknown: when this one started. */
  readonly lastContactMs: number;
  /** When a member of the synchronous set was last heard of. */
  readonly lastReplyMs: number | undefined;
  /** With an empty set nobody can be promoted, and stopping would only cost availability. */
  readonly couldBeReplaced: boolean;
  readonly networkPartitionTimeoutMs: number;
  /** Until then a keeper that has just started listens to whom its predecessor may have missed; undefined: it has. */
  readonly listeningUntilMs?: number | undefined;
};

/**
 * Until when a keeper that has just started fences nobody, although its predecessor's last contact is long ago.
 *
 * While no keeper ran, nobody looked for replies: a primary whose standbys reply must go on, also when the monitor
 * has been away for hours (S5), and a keeper that was away for a minute must be able to reach its monitor first. A
 * reply is seen by the change between two looks, and an idle standby sends one at least each second, sooner when asked to. So
 * it listens until a look that was begun a heartbeat after its first one. A server that can't be looked at is
 * of no use to anyone: after postgres_timeout nothing is waited for any more.
 *
 * What this may add to an isolated primary's time is only what a late restart leaves of it: a keeper that is
 * back at once has listened long before the deadline that it has inherited.
 *
 * @param looks when its first and its latest look at the server were begun; undefined before the first
 * @returns undefined when it has listened
 */
export function listeningUntilMs(input: {
  readonly startedMs: number;
  readonly looks: { readonly firstMs: number; readonly latestMs: number } | undefined;
  readonly heartbeatMs: number;
  readonly postgresTimeoutMs: number;
}): number | undefined {
  const { startedMs, looks, heartbeatMs, postgresTimeoutMs } = input;
  if (looks && looks.latestMs - looks.firstMs >= heartbeatMs) return undefined;
  return startedMs + postgresTimeoutMs;
}

/**
 * The moment at which an isolated primary stops itself: neither the monitor nor any standby that
 * could be promoted has been heard of for network_partition_timeout.
 *
 * @returns undefined when it never has to
 */
export function fenceAtMs(input: FenceInput): number | undefined {
  if (!input.couldBeReplaced) return undefined;
  const heard = Math.max(input.lastContactMs, input.lastReplyMs ?? Number.NEGATIVE_INFINITY);
  const listening = input.listeningUntilMs ?? heard;
  if (listening > heard + input.networkPartitionTimeoutMs) return listening;
  return heard + input.networkPartitionTimeoutMs;
}
