/** The values that a decision about a group reads. No behaviour. */
import type { NodeState } from "../fsm.ts";

/** The monitor's probe: a fresh connection to the node's PostgreSQL. Unknown is not bad. */
export type Health = "good" | "bad" | "unknown";

/**
 * One assignment of `synchronous_standby_names`: `number` of `members` (node ids) must have
 * flushed a commit before it is acknowledged. Number 0: commits wait for nobody, and the members, if
 * there are any, are only the standbys whose replies keep an asynchronous primary from its fence.
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
  /** What is reported was true when the goal was the present one already. */
  readonly confirmed: boolean;
  readonly pgRunning: boolean;
  /** Attempts to start PostgreSQL that failed since it last ran. */
  readonly startFailures: number;
  /** Since the last report, on the monitor's clock; counted at most from the monitor's own start. */
  readonly reportAgeMs: number;
  readonly health: Health;
  /** Since the last probe; undefined when there was none since the monitor started. */
  readonly healthAgeMs: number | undefined;
  /** 0: unknown. */
  readonly timeline: number;
  /**
   * Bytes. Primary: flushed; standby: the greater of received and replayed; once it has promised to
   * receive nothing more: the end of what it can replay.
   */
  readonly lsn: bigint;
  /** The server runs as a standby. */
  readonly inRecovery: boolean;
  /** Streams from the primary, by its own word. */
  readonly streaming: boolean;
  /** How long it has not been streaming; 0 when it does. */
  readonly stalledMs: number;
  /** How long the primary has not been sending to it, by the primary's word; 0: it does, or that isn't known. */
  readonly notSentToMs: number;
  /** Since it first reported that it receives nothing from the old primary; undefined: it may. */
  readonly promisedMs: number | undefined;
  /** Since its goal was assigned. */
  readonly goalAgeMs: number;
  /** It was elected, and could not fetch the WAL that it lacks. */
  readonly passedOver: boolean;
  /** An operator wants it left alone. */
  readonly maintenance: boolean;
  /** Of a primary that has stopped in an orderly way for its present goal: who has WAL up to `lsn` (bytes) has all of it. */
  readonly shutdown: { readonly lsn: bigint; readonly tookMs: number } | undefined;
  /** How long after its last contact it has stopped, were it isolated: by the timers that it last said it goes by. */
  readonly fenceMs: number;
  /** Of a node that is to fetch WAL: the node to fetch it from. */
  readonly fetchFrom: number | undefined;
  /** Its own last promotion, whether or not it was opened for writes. */
  readonly promotion: Pick<Timeline, "timeline" | "forkLsn"> | undefined;
  readonly candidatePriority: number;
  readonly replicationQuorum: boolean;
};

/** Every threshold of a formation; the monitor sends them to the keepers with each answer. */
export type Policy = {
  /** A keeper reports at least this often. */
  readonly heartbeatMs: number;
  /** A primary without contact to the monitor and to its standbys for this long stops itself. */
  readonly networkPartitionTimeoutMs: number;
  /** Longest time that a fenced primary may take to stop: a fast stop, an immediate one and SIGKILL together. */
  readonly fenceStopTimeoutMs: number;
  /** No report for this long, and no connection: dead. */
  readonly nodeTimeoutMs: number;
  /** How long a standby that still receives can hold a failover back. */
  readonly unreachablePrimaryTimeoutMs: number;
  /** A server that answers no fresh connection for this long is down. */
  readonly postgresTimeoutMs: number;
  /** A standby within this distance of its primary has caught up. */
  readonly caughtUpBytes: bigint;
  /** How long an elected standby may take to fetch the WAL that it lacks. */
  readonly fastForwardTimeoutMs: number;
  /** How long a switchover may take until somebody takes over; the primary serves while it writes its checkpoint. */
  readonly switchoverTimeoutMs: number;
};

export const DEFAULT_POLICY: Policy = {
  heartbeatMs: 1000,
  networkPartitionTimeoutMs: 2500,
  fenceStopTimeoutMs: 1200,
  nodeTimeoutMs: 4000,
  unreachablePrimaryTimeoutMs: 30_000,
  postgresTimeoutMs: 2000,
  caughtUpBytes: 16n * 1024n * 1024n,
  fastForwardTimeoutMs: 30_000,
  switchoverTimeoutMs: 30_000,
};

type Timers = Pick<
  Policy,
  | "heartbeatMs"
  | "networkPartitionTimeoutMs"
  | "fenceStopTimeoutMs"
  | "nodeTimeoutMs"
  | "postgresTimeoutMs"
>;

/**
 * Timers that go together. `fast` takes a node for dead after 1.5 s: for hosts and networks that are never silent for
 * a second.
 */
export const PRESETS: Readonly<Record<"default" | "fast", Timers>> = {
  default: {
    heartbeatMs: DEFAULT_POLICY.heartbeatMs,
    networkPartitionTimeoutMs: DEFAULT_POLICY.networkPartitionTimeoutMs,
    fenceStopTimeoutMs: DEFAULT_POLICY.fenceStopTimeoutMs,
    nodeTimeoutMs: DEFAULT_POLICY.nodeTimeoutMs,
    postgresTimeoutMs: DEFAULT_POLICY.postgresTimeoutMs,
  },
  fast: {
    heartbeatMs: 400,
    networkPartitionTimeoutMs: 900,
    fenceStopTimeoutMs: 500,
    nodeTimeoutMs: 1500,
    postgresTimeoutMs: 1000,
  },
};

/**
 * `protection`: commits wait rather than exist on one node only. `availability`: they wait while a
 * standby is healthy. `performance`: they never wait.
 */
export const DURABILITIES = ["protection", "availability", "performance"] as const;
export type Durability = (typeof DURABILITIES)[number];

/** What the operator has chosen for a formation. */
export type Settings = {
  readonly durability: Durability;
  /** How many standbys each commit waits for; 0 is 1. */
  readonly numberSyncStandbys: number;
  /** Writes open on a new primary never before the fence's deadline, unless the old one has confirmed. */
  readonly strictFencing: boolean;
  /** An asynchronous standby further behind than this is not promoted automatically. */
  readonly maximumLagBytes: bigint;
};

export const DEFAULT_SETTINGS: Settings = {
  durability: "availability",
  numberSyncStandbys: 0,
  strictFencing: false,
  maximumLagBytes: 16n * 1024n * 1024n,
};

/** A timeline of the group, and where it left the one before. */
export type Timeline = {
  readonly timeline: number;
  /** 0: the group's first. */
  readonly parent: number;
  /** Bytes; 0n for the first. */
  readonly forkLsn: bigint;
};

/** What an operator has asked for, until it's done. */
export type Request = {
  /** Promote this node, whatever the priorities; undefined: whoever is elected. */
  readonly target: number | undefined;
  /** Also when commits may be lost by it. */
  readonly allowDataLoss: boolean;
  /** A switchover: the primary hands over, and goes on if that fails. */
  readonly planned: boolean;
};

export type GroupView = {
  readonly formation: string;
  readonly groupId: number;
  readonly nodes: readonly NodeView[];
  /** What the monitor last told the primary to apply. */
  readonly sync: SyncSet;
  /** What it had told the primary before, and may have been in force since `inForce` was. */
  readonly pending: readonly SyncSet[];
  /** The set that the primary last reported to be in force. */
  readonly inForce: SyncSet | undefined;
  readonly policy: Policy;
  readonly settings: Settings;
  /** The group's timelines, oldest first; empty before its first server has run. */
  readonly history: readonly Timeline[];
  readonly request: Request | undefined;
  /** A server left the history while the primary could not be asked: an operator must say which holds. */
  readonly disputed: boolean;
};
