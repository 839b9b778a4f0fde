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
  /** When the last report that was answered had been sent; at first, when the keeper started. */
  readonly lastContactMs: number;
  /** When a member of the synchronous set was last heard of. */
  readonly lastReplyMs: number | undefined;
  /** With an empty set nobody can be promoted, and stopping would only cost availability. */
  readonly couldBeReplaced: boolean;
  readonly networkPartitionTimeoutMs: number;
};

/**
 * The moment at which an isolated primary stops itself: neither the monitor nor any standby that
 * could be promoted has been heard of for network_partition_timeout.
 *
 * @returns undefined when it never has to
 */
export function fenceAtMs(input: FenceInput): number | undefined {
  if (!input.couldBeReplaced) return undefined;
  const heard = Math.max(input.lastContactMs, input.lastReplyMs ?? Number.NEGATIVE_INFINITY);
  return heard + input.networkPartitionTimeoutMs;
}
