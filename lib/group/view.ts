/** The values that a decision about a group reads. No behaviour. */
import type { NodeState } from "../fsm.ts";

/** The monitor's probe: a fresh connection to the node's PostgreSQL. Unknown is not bad. */
export type Health = "good" | "bad" | "unknown";

/**
 * One assignment of `synchronous_standby_names`: `number` of `members` (node ids) must have
 * flushed a commit before it is acknowledged. No members: commits are asynchronous.
 * `version` only grows within a group; `primaryId` is the node that it's meant for.
 */
export type SyncSet = {
  readonly version: number;
  readonly primaryId: number;
  readonly members: readonly number[];
  readonly number: number;
};

export type NodeView = {
  readonly nodeId: number;
  readonly name: string;
  readonly host: string;
  readonly port: number;
  readonly reported: NodeState;
  readonly goal: NodeState;
  readonly pgRunning: boolean;
  /** Attempts to start PostgreSQL that failed since it last ran. */
  readonly startFailures: number;
  /** Since the last report, on the monitor's clock; counted at most from the monitor's own start. */
  readonly reportAgeMs: number;
  readonly health: Health;
  /** Since the last probe; undefined when there was none since the monitor started. */
  readonly healthAgeMs: number | undefined;
  readonly timeline: number;
  /** Bytes; primary: flushed, standby: the greater of received and replayed. */
  readonly lsn: bigint;
  /** Streams from the primary, by its own word. */
  readonly streaming: boolean;
  /** How long it has not been streaming; 0 when it does. */
  readonly stalledMs: number;
  readonly candidatePriority: number;
  readonly replicationQuorum: boolean;
  /** The set that this node, as a primary, last reported to be in force. */
  readonly syncInForce: SyncSet | undefined;
};

/** Every threshold of a formation; the monitor sends them to the keepers with each answer. */
export type Policy = {
  /** A keeper reports at least this often. */
  readonly heartbeatMs: number;
  /** A primary without contact to the monitor and to its standbys for this long stops itself. */
  readonly networkPartitionTimeoutMs: number;
  /** No report for this long, and no connection: dead. */
  readonly nodeTimeoutMs: number;
  /** How long a standby that still receives can hold a failover back. */
  readonly unreachablePrimaryTimeoutMs: number;
  /** A server that answers no fresh connection for this long is down. */
  readonly postgresTimeoutMs: number;
  /** A standby within this distance of its primary has caught up. */
  readonly caughtUpBytes: bigint;
};

export const DEFAULT_POLICY: Policy = {
  heartbeatMs: 1000,
  networkPartitionTimeoutMs: 2500,
  nodeTimeoutMs: 4000,
  unreachablePrimaryTimeoutMs: 30_000,
  postgresTimeoutMs: 2000,
  caughtUpBytes: 16n * 1024n * 1024n,
};

/** Longest time that a fenced primary may take to stop: fast, immediate and SIGKILL together. */
export const FENCE_STOP_MS = 1200;

export type GroupView = {
  readonly formation: string;
  readonly groupId: number;
  readonly nodes: readonly NodeView[];
  /** What the monitor last told the primary to apply. */
  readonly sync: SyncSet;
  readonly policy: Policy;
};
