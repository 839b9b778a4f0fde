/** Everything that crosses a process, checked once: rows, payloads and files → plain values. */
import * as v from "valibot";
import { NODE_STATES } from "./fsm.ts";
import type { NodeView, Policy, SyncSet } from "./group/view.ts";

const Count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
/** int8 and numeric arrive from PostgreSQL as text, from JSON as a number. */
const Id = v.pipe(v.union([v.string(), v.number()]), v.transform(Number), v.safeInteger());
const Bytes = v.pipe(
  v.union([v.string(), v.number()]),
  v.transform((value) => BigInt(value)),
);
const Milliseconds = v.pipe(v.union([v.string(), v.number()]), v.transform(Number), v.number());
export const Port = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65_535));
const State = v.picklist(NODE_STATES);

const SyncSetShape: v.GenericSchema<unknown, SyncSet> = v.strictObject({
  version: Id,
  primaryId: Id,
  members: v.array(Id),
  number: Count,
});

const PolicyShape: v.GenericSchema<unknown, Policy> = v.strictObject({
  heartbeatMs: Count,
  networkPartitionTimeoutMs: Count,
  nodeTimeoutMs: Count,
  unreachablePrimaryTimeoutMs: Count,
  postgresTimeoutMs: Count,
  caughtUpBytes: Bytes,
});

/** Another node of the keeper's group, as the monitor knows it. */
const PeerShape = v.strictObject({
  nodeId: Id,
  name: v.string(),
  host: v.string(),
  port: Port,
  reported: State,
  goal: State,
  lsn: Bytes,
});
export type Peer = v.InferOutput<typeof PeerShape>;

/** The monitor's answer to `register_node` and `node_active`. */
const AnswerShape = v.strictObject({
  nodeId: Id,
  groupId: Count,
  name: v.string(),
  goal: State,
  goalVersion: Id,
  decidedReport: Bytes,
  dbname: v.string(),
  sync: SyncSetShape,
  policy: PolicyShape,
  nodes: v.array(PeerShape),
});
export type Answer = v.InferOutput<typeof AnswerShape>;

/** What a keeper says with each `node_active`. */
export type Report = {
  readonly identity: string;
  readonly reportNo: bigint;
  readonly state: string;
  readonly pgIsRunning: boolean;
  readonly timeline: number;
  readonly lsn: string;
  readonly syncState: string;
  readonly streaming: boolean;
  readonly startFailures: number;
  readonly syncInForce: SyncSet | null;
  readonly systemIdentifier: string | null;
};

/** A row of the monitor's view of a group; ages are computed by the database, on its clock. */
const NodeRowShape: v.GenericSchema<
  unknown,
  NodeView & { reportNo: bigint; decidedReport: bigint }
> = v.strictObject({
  nodeId: Id,
  name: v.string(),
  host: v.string(),
  port: Port,
  reported: State,
  goal: State,
  pgRunning: v.boolean(),
  startFailures: Count,
  reportAgeMs: Milliseconds,
  health: v.pipe(
    v.number(),
    v.transform((health) => (health > 0 ? "good" : health === 0 ? "bad" : "unknown")),
  ),
  healthAgeMs: v.optional(Milliseconds),
  timeline: Count,
  lsn: Bytes,
  streaming: v.boolean(),
  stalledMs: Milliseconds,
  candidatePriority: Count,
  replicationQuorum: v.boolean(),
  syncInForce: v.pipe(
    v.nullable(SyncSetShape),
    v.transform((set) => set ?? undefined),
  ),
  reportNo: Bytes,
  decidedReport: Bytes,
}) as never;
export type NodeRow = v.InferOutput<typeof NodeRowShape>;

const GroupRowShape = v.strictObject({
  formation: v.string(),
  groupId: Count,
  clockMs: Milliseconds,
  sync: SyncSetShape,
  policy: PolicyShape,
  nodes: v.array(NodeRowShape),
});
export type GroupRow = v.InferOutput<typeof GroupRowShape>;

const StateRowShape = v.looseObject({
  nodename: v.string(),
  nodehost: v.string(),
  nodeport: Port,
  group_id: Count,
  node_id: Id,
  current_group_state: State,
  assigned_group_state: State,
  reported_tli: Count,
  reported_lsn: v.string(),
  reported_repstate: v.string(),
  health: v.number(),
  pg_is_running: v.boolean(),
  candidate_priority: Count,
  replication_quorum: v.boolean(),
});
export type StateRow = v.InferOutput<typeof StateRowShape>;

const EventRowShape = v.looseObject({
  eventid: v.string(),
  eventtime: v.date(),
  formationid: v.string(),
  groupid: Count,
  nodeid: Id,
  nodename: v.string(),
  nodehost: v.string(),
  nodeport: Port,
  reportedstate: State,
  goalstate: State,
  reportedlsn: v.string(),
  rule: v.nullable(v.string()),
  description: v.string(),
});
export type EventRow = v.InferOutput<typeof EventRowShape>;

/** A keeper's durable memory; written before anything it says is reported. */
const KeeperStateShape = v.strictObject({
  version: v.literal(1),
  /** Made once at create: a copy of this machine is not this node. */
  identity: v.pipe(v.string(), v.uuid()),
  /** Counts the starts of the keeper: the upper half of its report numbers. */
  incarnation: Count,
  nodeId: v.optional(Count),
  groupId: v.optional(Count),
  name: v.optional(v.string()),
  state: State,
  goal: State,
  /** The greatest versions ever seen: a monitor that offers less was restored from the past. */
  goalVersion: Count,
  syncVersion: Count,
  /**
   * What PGDATA holds. `copying`: a base backup is under way beside it; `copied`: complete, to be
   * put in its place; `rewinding`: pg_rewind has begun, the data must not be started.
   */
  data: v.picklist(["none", "ready", "copying", "copied", "rewinding"]),
  /** The node that this standby streams from; null: nobody, and it must stay so (a promise). */
  following: v.nullable(Count),
  /** A promotion that was begun: the timeline that it must leave behind. */
  promotedFrom: v.nullable(Count),
  systemIdentifier: v.nullable(v.string()),
  /** The set that was shown to be in force, and the very server process that it was shown of. */
  proof: v.nullable(v.strictObject({ pid: Count, startedAtS: v.number(), version: Count })),
});
export type KeeperState = v.InferOutput<typeof KeeperStateShape>;

const AuthShape = v.picklist(["trust", "scram-sha-256"]);
export type Auth = v.InferOutput<typeof AuthShape>;

const INSTANCE_CONFIG = {
  version: v.literal(1),
  pgdata: v.string(),
  pgport: Port,
  pgctl: v.string(),
  nodename: v.string(),
  auth: AuthShape,
};

const KeeperConfigShape = v.strictObject({
  ...INSTANCE_CONFIG,
  name: v.optional(v.string()),
  formation: v.string(),
  group: Count,
  dbname: v.optional(v.string()),
  monitor: v.string(),
  candidatePriority: Count,
  replicationQuorum: v.boolean(),
});
export type KeeperConfig = v.InferOutput<typeof KeeperConfigShape>;

const MonitorConfigShape = v.strictObject(INSTANCE_CONFIG);
export type MonitorConfig = v.InferOutput<typeof MonitorConfigShape>;

/** A value from outside that doesn't have the shape it must have. */
export class ShapeError extends Error {
  override readonly name = "ShapeError";
}

function parserOf<T>(what: string, schema: v.GenericSchema<unknown, T>): (value: unknown) => T {
  return (value) => {
    const result = v.safeParse(schema, value);
    if (result.success) return result.output;
    const [issue] = result.issues;
    throw new ShapeError(`${what}: ${v.getDotPath(issue) ?? "value"}: ${issue.message}`);
  };
}

export const parseAnswer = parserOf("the monitor's answer", AnswerShape);
export const parseGroupRow = parserOf("a group's row", GroupRowShape);
export const parseStateRow = parserOf("a row of current_state", StateRowShape);
export const parseEventRow = parserOf("a row of last_events", EventRowShape);
export const parseKeeperState = parserOf("state.json", KeeperStateShape);
export const parseKeeperConfig = parserOf("keeper.json", KeeperConfigShape);
export const parseMonitorConfig = parserOf("monitor.json", MonitorConfigShape);
