/**
 * Everything that crosses a process, checked once: rows, payloads and files → plain values.
 *
 * The parts of a group are upgraded one after the other, and may be taken back. So what one of them says to another, or to
 * a later self, is read by three rules. A key that the reader doesn't know is ignored. A key that is added later is
 * optional, with a default that says what its absence meant. Where ignoring it would break a promise, `version`
 * of the file goes up, and earlier software refuses it. Settings files are an operator's: there a key too many is a typo.
 */
import * as v from "valibot";
import { NODE_STATES } from "./fsm.ts";
import {
  DURABILITIES,
  type NodeView,
  type Policy,
  type Settings,
  type SyncSet,
  type Timeline,
} from "./group/view.ts";

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
/** What is NULL in SQL is undefined here. */
const orUndefined = <T>(
  schema: v.GenericSchema<unknown, T>,
): v.GenericSchema<unknown, T | undefined> =>
  v.pipe(
    v.nullable(schema),
    v.transform((value) => value ?? undefined),
  );

const SyncSetShape: v.GenericSchema<unknown, SyncSet> = v.object({
  version: Id,
  primaryId: Id,
  members: v.array(Id),
  number: Count,
});

const PolicyShape: v.GenericSchema<unknown, Policy> = v.object({
  heartbeatMs: Count,
  networkPartitionTimeoutMs: Count,
  fenceStopTimeoutMs: Count,
  nodeTimeoutMs: Count,
  unreachablePrimaryTimeoutMs: Count,
  postgresTimeoutMs: Count,
  caughtUpBytes: Bytes,
  fastForwardTimeoutMs: Count,
  switchoverTimeoutMs: Count,
});

const SettingsShape: v.GenericSchema<unknown, Settings> = v.object({
  durability: v.picklist(DURABILITIES),
  numberSyncStandbys: Count,
  strictFencing: v.boolean(),
  maximumLagBytes: Bytes,
});

const TimelineShape: v.GenericSchema<unknown, Timeline> = v.object({
  timeline: Count,
  parent: Count,
  forkLsn: Bytes,
});

/** A promotion that a node has carried out by itself, whether or not it was opened for writes. */
const PromotionShape = v.object({ timeline: Count, forkLsn: v.string() });
export type Promotion = v.InferOutput<typeof PromotionShape>;

/** Another node of the keeper's group, as the monitor knows it. */
const PeerShape = v.object({
  nodeId: Id,
  name: v.string(),
  host: v.string(),
  port: Port,
  reported: State,
  goal: State,
  lsn: Bytes,
});
export type Peer = v.InferOutput<typeof PeerShape>;

/** The password of pgautofailover_replicator, the same on all nodes of a group. */
const SecretShape = v.strictObject({
  id: v.pipe(v.string(), v.uuid()),
  password: v.pipe(v.string(), v.minLength(1)),
});
export type Secret = v.InferOutput<typeof SecretShape>;

/** The monitor's answer to `register_node` and `node_active`. */
const AnswerShape = v.object({
  nodeId: Id,
  groupId: Count,
  name: v.string(),
  goal: State,
  goalVersion: Id,
  decidedReport: Bytes,
  dbname: v.string(),
  /** The goal draining is part of a switchover: a checkpoint first, then a clean stop. */
  planned: v.boolean(),
  /** Where to fetch missing WAL from, for the goal fast_forward. */
  fetchFrom: orUndefined(Id),
  sync: SyncSetShape,
  policy: PolicyShape,
  nodes: v.array(PeerShape),
  /** Left out: this node has it. */
  secret: v.optional(SecretShape),
  /** Another one when anything but a position differs; an earlier monitor has none, and wants full reports only. */
  token: v.optional(v.string()),
});
export type Answer = v.InferOutput<typeof AnswerShape>;

/** What a keeper says with each `node_active`. */
export type Report = {
  readonly identity: string;
  readonly reportNo: bigint;
  /** Of the goal that it knew when it was sent: a state that was reached without knowing more is no news of that goal. */
  readonly goalVersion: number;
  readonly state: string;
  readonly pgIsRunning: boolean;
  readonly timeline: number;
  readonly lsn: string;
  /** Left out: not known. */
  readonly inRecovery?: boolean;
  readonly syncState: string;
  readonly streaming: boolean;
  /** Of a primary: the nodes whose standbys stream from it. */
  readonly sendsTo?: readonly number[];
  readonly startFailures: number;
  /** Null: not known. Left out: this node acknowledges nothing, and has nothing to say about it. */
  readonly syncInForce?: SyncSet | null;
  readonly promotion: Promotion | null;
  /** Of a primary that was stopped cleanly for a switchover. */
  readonly shutdown: Shutdown | null;
  /** How long after its last contact it has stopped, were it isolated, by the timers that it goes by, in milliseconds. */
  readonly fenceMs: number;
  readonly systemIdentifier: string | null;
  /** Of the replication password that this node has. */
  readonly secretId?: string | undefined;
};

/** A clean stop: who has WAL up to `lsn` has everything, and how long nobody could write meanwhile. */
export type Shutdown = { readonly lsn: string; readonly tookMs: number };

/** A row of the monitor's view of a group; ages are computed by the database, on its clock. */
const NodeRowShape: v.GenericSchema<
  unknown,
  NodeView & { reportNo: bigint; decidedReport: bigint }
> = v.object({
  nodeId: Id,
  name: v.string(),
  host: v.string(),
  port: Port,
  reported: State,
  goal: State,
  confirmed: v.boolean(),
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
  inRecovery: v.boolean(),
  streaming: v.boolean(),
  stalledMs: Milliseconds,
  notSentToMs: Milliseconds,
  promisedMs: orUndefined(Milliseconds),
  goalAgeMs: Milliseconds,
  passedOver: v.boolean(),
  maintenance: v.boolean(),
  shutdown: orUndefined(v.object({ lsn: Bytes, tookMs: Count })),
  fenceMs: Count,
  fetchFrom: orUndefined(Id),
  promotion: orUndefined(v.object({ timeline: Count, forkLsn: Bytes })),
  candidatePriority: Count,
  replicationQuorum: v.boolean(),
  reportNo: Bytes,
  decidedReport: Bytes,
}) as never;
export type NodeRow = v.InferOutput<typeof NodeRowShape>;

const GroupRowShape = v.object({
  formation: v.string(),
  groupId: Count,
  clockMs: Milliseconds,
  sync: SyncSetShape,
  pending: v.array(SyncSetShape),
  inForce: orUndefined(SyncSetShape),
  policy: PolicyShape,
  settings: SettingsShape,
  request: orUndefined(
    v.object({ target: orUndefined(Id), allowDataLoss: v.boolean(), planned: v.boolean() }),
  ),
  disputed: v.boolean(),
  blocked: orUndefined(v.string()),
  history: v.array(TimelineShape),
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
  /** Seconds since the node's last report. */
  report_age: v.number(),
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
const KeeperStateShape = v.object({
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
  /** Whom the names in the settings list: those that might be promoted in this node's place. */
  syncMembers: v.array(Count),
  /** A promotion that was begun: the timeline that it must leave behind. */
  promotedFrom: v.nullable(Count),
  /** The last one of this node. */
  promotion: v.nullable(PromotionShape),
  systemIdentifier: v.nullable(v.string()),
  /** The set that was shown to be in force, and the very server process that it was shown of. */
  proof: v.nullable(v.object({ pid: Count, startedAtS: v.number(), set: SyncSetShape })),
});
export type KeeperState = v.InferOutput<typeof KeeperStateShape>;

/** A row of the monitor's database; only the database knows its columns. */
const KeptRowShape = v.record(v.string(), v.unknown());

const MemoryShape = v.looseObject({
  version: Count,
  formations: v.array(KeptRowShape),
  roster: v.array(
    v.looseObject({
      formation: v.string(),
      groupId: Count,
      nodeId: Id,
      name: v.string(),
      identity: v.string(),
    }),
  ),
  removed: v.array(KeptRowShape),
  group: KeptRowShape,
  nodes: v.array(KeptRowShape),
  timelines: v.array(KeptRowShape),
});
/** What a keeper keeps of the monitor's memory, for a monitor that has to be made anew. */
export type Memory = v.InferOutput<typeof MemoryShape>;

/** What a keeper tells a monitor that waits to be recovered; from another release, perhaps. */
const TestimonyShape = v.looseObject({
  identity: v.string(),
  formation: v.string(),
  groupId: Count,
  nodeId: Id,
  name: v.string(),
  host: v.string(),
  port: Port,
  dbname: orUndefined(v.string()),
  candidatePriority: Count,
  replicationQuorum: v.boolean(),
  systemIdentifier: orUndefined(v.string()),
  state: State,
  goal: State,
  goalVersion: Id,
  syncVersion: Id,
  reportNo: Bytes,
  pgIsRunning: v.boolean(),
  inRecovery: orUndefined(v.boolean()),
  streaming: v.boolean(),
  timeline: Count,
  lsn: Bytes,
  promotion: orUndefined(PromotionShape),
  fenceMs: Count,
  ancestry: v.array(v.object({ timeline: Count, forkLsn: Bytes })),
  inForce: orUndefined(SyncSetShape),
  written: orUndefined(SyncSetShape),
  rejoins: v.boolean(),
  memory: orUndefined(MemoryShape),
});
export type Testimony = v.InferOutput<typeof TestimonyShape>;
/** When the monitor was last heard of, and what it had said of the timers; written without fsync. */
const ContactShape = v.object({
  /** The boot within which the time below means something; null: none. */
  bootId: v.nullable(v.string()),
  /** When the report had been sent that was answered; milliseconds of that boot. */
  sentAtMs: v.pipe(v.number(), v.minValue(0)),
  policy: PolicyShape,
});
export type Contact = v.InferOutput<typeof ContactShape>;

export const AUTH_METHODS = ["trust", "md5", "scram-sha-256", "cert"] as const;
const AuthShape = v.picklist(AUTH_METHODS);
export type Auth = v.InferOutput<typeof AuthShape>;

/** Paths of PEM files; `selfSigned`: those of our own making. */
const TlsShape = v.strictObject({
  mode: v.picklist(["disable", "prefer", "require", "verify-ca", "verify-full"]),
  selfSigned: v.boolean(),
  cert: v.string(),
  key: v.string(),
  ca: v.optional(v.string()),
  crl: v.optional(v.string()),
});
export type TlsConfig = v.InferOutput<typeof TlsShape>;

const INSTANCE_CONFIG = {
  version: v.literal(1),
  pgdata: v.string(),
  pgport: Port,
  pgctl: v.string(),
  nodename: v.string(),
  auth: AuthShape,
  /** Where HTTP is served, as [HOST:]PORT; left out: nowhere. */
  http: v.optional(v.string()),
  tls: v.optional(TlsShape),
  /** `lan`: the local network is let in too; `skip`: pg_hba.conf is the operator's. Left out: who must be, and no other. */
  hba: v.optional(v.picklist(["lan", "skip"])),
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
  /** Whose programs are called when the node's state changes; left out: none. */
  hooksDir: v.optional(v.string()),
  /** Until a hook is killed. */
  hookTimeoutMs: v.optional(v.pipe(Count, v.minValue(1))),
  /** Left out: part of its group. `disabled`: the keeper calls no monitor; `rejoining`: it does again, by an operator's word. */
  membership: v.optional(v.picklist(["disabled", "rejoining"])),
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
export const parseMemory = parserOf("memory.json", MemoryShape);
export const parseTestimony = parserOf("a keeper's testimony", TestimonyShape);
export const parseKeeperState = parserOf("state.json", KeeperStateShape);
export const parseContact = parserOf("contact.json", ContactShape);
export const parseKeeperConfig = parserOf("keeper.json", KeeperConfigShape);
export const parseMonitorConfig = parserOf("monitor.json", MonitorConfigShape);
