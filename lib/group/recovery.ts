/**
 * A monitor made anew from what the keepers know: who is missing, what contradicts itself, and the rows to begin with.
 * A goal that no keeper has heard of has had no effect, so those that were heard of are where the group goes on.
 */
import { canTakeWrites, type NodeState, STATE_TRAITS, transitionFor } from "../fsm.ts";
import { formatLsn, parseLsn } from "./lsn.ts";
import type { SyncSet } from "./view.ts";

/** A row of the monitor's database, by column, as a keeper has kept it. */
export type KeptRow = Readonly<Record<string, unknown>>;

/** What a keeper has kept of the monitor's memory. */
export type Memory = {
  /** Grows with every event of the monitor. */
  readonly version: number;
  readonly formations: readonly KeptRow[];
  /** Every node of the monitor. */
  readonly roster: readonly {
    readonly formation: string;
    readonly groupId: number;
    readonly nodeId: number;
    readonly name: string;
    readonly identity: string;
  }[];
  readonly removed: readonly KeptRow[];
  /** The rows of the keeper's own group. */
  readonly group: KeptRow;
  readonly nodes: readonly KeptRow[];
  readonly timelines: readonly KeptRow[];
};

/** What one keeper says of its node. */
export type Testimony = {
  readonly identity: string;
  readonly formation: string;
  readonly groupId: number;
  readonly nodeId: number;
  readonly name: string;
  readonly host: string;
  readonly port: number;
  readonly dbname: string | undefined;
  readonly candidatePriority: number;
  readonly replicationQuorum: boolean;
  readonly systemIdentifier: string | undefined;
  readonly state: NodeState;
  readonly goal: NodeState;
  readonly goalVersion: number;
  readonly syncVersion: number;
  readonly reportNo: bigint;
  readonly pgIsRunning: boolean;
  readonly inRecovery: boolean | undefined;
  readonly streaming: boolean;
  /** 0: not known. */
  readonly timeline: number;
  readonly lsn: bigint;
  readonly promotion: { readonly timeline: number; readonly forkLsn: string } | undefined;
  /** The network_partition_timeout that it goes by, in milliseconds. */
  readonly fenceMs: number;
  /** The timelines before the current one, oldest first, and where each was left: its server's own history. */
  readonly ancestry: readonly { readonly timeline: number; readonly forkLsn: bigint }[];
  readonly inForce: SyncSet | undefined;
  /** The set whose names were written last, in force or not. */
  readonly written: SyncSet | undefined;
  /** It was taken out of the group by `monitor disable`, and comes back by an operator's word. */
  readonly rejoins: boolean;
  readonly memory: Memory | undefined;
};

/** Rows to write, by table, and what an operator should know about them. */
export type RecoveryPlan = {
  readonly formations: readonly KeptRow[];
  readonly groups: readonly KeptRow[];
  readonly nodes: readonly KeptRow[];
  readonly timelines: readonly KeptRow[];
  readonly removed: readonly KeptRow[];
  /** No event may have a number that was used already. */
  readonly lastEvent: number;
  readonly lastNodeId: number;
  /** What no keeper knew. */
  readonly notes: readonly string[];
};

/** What the keepers know contradicts itself: the message says how, the hint what to do. */
export class RecoveryConflict extends Error {
  override readonly name = "RecoveryConflict";
  readonly hint: string;
  constructor(message: string, hint: string) {
    super(message);
    this.hint = hint;
  }
}

/** A node that doesn't testify may have been given more than anybody who does has heard of, but not by so much. */
const VERSION_STRIDE = 1_000_000;

const freshest = (said: readonly Testimony[]): Memory | undefined =>
  said
    .flatMap(({ memory }) => memory ?? [])
    .reduce<Memory | undefined>(
      (best, each) => (best === undefined || each.version > best.version ? each : best),
      undefined,
    );

const isRemoved = (memory: Memory | undefined, { identity, rejoins }: Testimony): boolean =>
  !rejoins && (memory?.removed.some((row) => row["identity"] === identity) ?? false);

/** The testimonies that count: those of nodes that were removed don't. */
function witnesses(said: readonly Testimony[]): readonly Testimony[] {
  const memory = freshest(said);
  return said.filter((each) => !isRemoved(memory, each));
}

/** @returns names of the nodes that the keepers know of and that have not testified */
export function missingNodes(said: readonly Testimony[]): string[] {
  const heard = new Set(said.map(({ identity }) => identity));
  return (freshest(said)?.roster ?? [])
    .filter(({ identity }) => !heard.has(identity))
    .map(({ name }) => name);
}

const nameOf = ({ nodeId, name }: Testimony): string => `node ${nodeId} "${name}"`;

function refuseDoubles(said: readonly Testimony[]): void {
  const keys: readonly [what: string, key: (each: Testimony) => string][] = [
    ["have the same number", ({ nodeId }) => String(nodeId)],
    ["have the same name", ({ formation, name }) => `${formation}/${name}`],
    ["have the same address", ({ host, port }) => `${host}:${port}`],
  ];
  for (const [what, key] of keys) {
    const seen = new Map<string, Testimony>();
    for (const each of said) {
      const other = seen.get(key(each));
      if (other) {
        throw new RecoveryConflict(
          `${nameOf(other)} at ${other.host}:${other.port} and ${nameOf(each)} at ${each.host}:${each.port} ${what}`,
          "One of the two is a copy, or belongs to another monitor: stop its keeper, and run recover again.",
        );
      }
      seen.set(key(each), each);
    }
  }
}

/** The latest timeline that a node may have been given the group for. */
const claimedTimeline = ({ timeline, promotion }: Testimony): number =>
  Math.max(timeline, promotion?.timeline ?? 0);

const takesWrites = ({ state, pgIsRunning, inRecovery }: Testimony): boolean =>
  canTakeWrites(state) && pgIsRunning && inRecovery !== true;

/**
 * The node that takes writes, or is to take them.
 *
 * @throws {RecoveryConflict} that is more than one, or the one that does is not the one that was given the group last
 */
function primaryAmong(said: readonly Testimony[]): Testimony | undefined {
  const claimants = said.filter(({ state, goal }) => canTakeWrites(state) || canTakeWrites(goal));
  const [open, second] = claimants.filter(takesWrites);
  if (open && second) {
    throw new RecoveryConflict(
      `${nameOf(open)} and ${nameOf(second)} both take writes`,
      "Stop the one whose writes are not to count, with roles/keeper.ts stop, and run recover again with --without and its name.",
    );
  }
  const later = open && claimants.find((each) => claimedTimeline(each) > claimedTimeline(open));
  // a stopped one opens for nothing without the monitor's word; one that runs may, at any moment
  const opening =
    open &&
    claimants.find(({ state }) => !canTakeWrites(state) && STATE_TRAITS[state].postgres === "up");
  const other = later ?? opening;
  if (open && other) {
    throw new RecoveryConflict(
      `${nameOf(open)} takes writes, but ${nameOf(other)} was to take its place${later ? `, on timeline ${claimedTimeline(other)}` : ""}`,
      "Stop the one whose writes are not to count, with roles/keeper.ts stop, and run recover again with --without and its name.",
    );
  }
  if (open) return open;
  const last = Math.max(...claimants.map(claimedTimeline));
  const [first, tied] = claimants.filter((each) => claimedTimeline(each) === last);
  if (first && tied) {
    throw new RecoveryConflict(
      `${nameOf(first)} and ${nameOf(tied)} both hold themselves for the primary, and neither runs`,
      "Leave one of them out with --without and its name: the one that was primary before the other.",
    );
  }
  return first;
}

function refuseOtherCluster(said: readonly Testimony[]): void {
  const [first, ...others] = said.filter(({ systemIdentifier }) => systemIdentifier !== undefined);
  const other = others.find(({ systemIdentifier }) => systemIdentifier !== first?.systemIdentifier);
  if (first === undefined || other === undefined) return;
  throw new RecoveryConflict(
    `${nameOf(other)} has system identifier ${other.systemIdentifier}, ${nameOf(first)} has ${first.systemIdentifier}: they are different clusters`,
    "Stop the keeper that does not belong to this formation, and run recover again with --without and its name.",
  );
}

/** @throws {RecoveryConflict} the primary is not where the group's history ends */
function historyOf(primary: Testimony | undefined, memory: Memory | undefined): KeptRow[] {
  const kept = [...(memory?.timelines ?? [])];
  const last = kept.at(-1);
  if (primary === undefined) return kept;
  const lineage = [...primary.ancestry.map(({ timeline }) => timeline), primary.timeline];
  const forkOf = (at: number): bigint => primary.ancestry[at - 1]?.forkLsn ?? 0n;
  const lastAt = lineage.indexOf(Number(last?.["timeline"]));
  const keptFork = parseLsn(String(last?.["forklsn"] ?? "0/0"));
  // a server that doesn't run may not tell its timeline
  const isUnknown = primary.timeline === 0;
  const isLast =
    last === undefined ||
    (isUnknown
      ? last["nodeid"] === primary.nodeId || claimedTimeline(primary) >= Number(last["timeline"])
      : lastAt >= 0 && (keptFork === 0n || keptFork === forkOf(lastAt)));
  if (!isLast) {
    throw new RecoveryConflict(
      `${nameOf(primary)} is the primary ${isUnknown ? "by its own word" : `on timeline ${primary.timeline}`}, but the group's history went on to timeline ${last?.["timeline"]} with node ${last?.["nodeid"]} "${last?.["nodename"]}"`,
      "The two have forked: stop the one whose writes are not to count, and run recover again with --without and its name.",
    );
  }
  if (isUnknown) return kept;
  const missing = lineage.flatMap((timeline, at) =>
    at <= lastAt
      ? []
      : {
          formationid: primary.formation,
          groupid: primary.groupId,
          timeline,
          parent: lineage[at - 1] ?? 0,
          forklsn: formatLsn(forkOf(at)),
          nodeid: timeline === primary.timeline ? primary.nodeId : 0,
          nodename: timeline === primary.timeline ? primary.name : "-",
        },
  );
  return [...kept, ...missing];
}

/** Goals beside a primary that needn't be taken back. */
const QUIET: readonly NodeState[] = [
  "init",
  "wait_standby",
  "catchingup",
  "secondary",
  "demoted",
  "prepare_maintenance",
  "wait_maintenance",
  "maintenance",
  "dropped",
];

/** @throws {RecoveryConflict} the node is where nothing leads back from */
function goalBeside(each: Testimony): NodeState {
  if (QUIET.includes(each.goal)) return each.goal;
  const goal = (["catchingup", "demoted"] as const).find(
    (to) => each.state === to || transitionFor(each.state, to) !== undefined,
  );
  if (goal) return goal;
  throw new RecoveryConflict(
    `${nameOf(each)} is in state "${each.state}", from which it can't go back to being a standby`,
    "Stop its keeper, and run recover again with --without and its name.",
  );
}

/** @param isAlone the group has no other node, whether or not it testifies */
function goalsOf(
  said: readonly Testimony[],
  primary: Testimony | undefined,
  isAlone: boolean,
): Map<string, NodeState> {
  // where nobody is to take writes, a failover is under way: it goes on
  if (primary === undefined || !canTakeWrites(primary.goal)) {
    return new Map(said.map(({ identity, goal }) => [identity, goal]));
  }
  return new Map(
    said.map((each) => {
      if (each !== primary) return [each.identity, goalBeside(each)];
      return [each.identity, each.goal === "single" && !isAlone ? "wait_primary" : each.goal];
    }),
  );
}

/** The sets that the group's primary may acknowledge commits by, by its own word; nobody else's counts. */
function syncOf(
  said: readonly Testimony[],
  primary: Testimony | undefined,
  memory: Memory | undefined,
  version: number,
): KeptRow {
  const keptId = Number(memory?.group["syncprimary"] ?? 0);
  const own = primary ?? said.find(({ nodeId }) => nodeId === keptId);
  const primaryId = own?.nodeId ?? keptId;
  const mine = (set: SyncSet | undefined) => (set?.primaryId === primaryId ? set : undefined);
  const inForce = mine(own?.inForce);
  const written = mine(own?.written);
  const keptSet =
    keptId === primaryId
      ? { members: memory?.group["syncmembers"], number: memory?.group["syncnumber"] }
      : undefined;
  const set = written ?? inForce ?? keptSet ?? { members: [], number: 0 };
  return {
    syncversion: version,
    syncprimary: primaryId,
    syncmembers: set.members,
    syncnumber: set.number,
    syncinforce: inForce ?? null,
    syncpending: written && inForce && written.version > inForce.version ? [written] : [],
  };
}

const PROMISES: readonly NodeState[] = [
  "report_lsn",
  "join_secondary",
  "fast_forward",
  "prepare_promotion",
  "stop_replication",
];

/** What is judged by its age counts from now on. */
function fresh(now: string): KeptRow {
  return {
    reporttime: now,
    goaltime: now,
    walreporttime: now,
    statechangetime: now,
    healthchecktime: now,
    health: -1,
    notsentto: {},
    // what was true of a stop for a goal that is over must not be believed again
    shutdown: null,
  };
}

function nodeRow(
  each: Testimony,
  kept: KeptRow | undefined,
  goal: NodeState,
  goalVersion: number,
  now: string,
): KeptRow {
  return {
    // what an operator may have changed at the monitor goes before what the node was created with
    nodename: each.name,
    nodehost: each.host,
    nodeport: each.port,
    candidatepriority: each.candidatePriority,
    replicationquorum: each.replicationQuorum,
    ...kept,
    ...fresh(now),
    nodeid: each.nodeId,
    formationid: each.formation,
    groupid: each.groupId,
    identity: each.identity,
    sysidentifier: each.systemIdentifier ?? kept?.["sysidentifier"] ?? null,
    goalstate: goal,
    goalversion: goalVersion,
    reportedstate: each.state,
    reportedpgisrunning: each.pgIsRunning,
    reportedtli: each.timeline,
    reportedlsn: formatLsn(each.lsn),
    reportno: String(each.reportNo),
    decidedreport: 0,
    inrecovery: each.inRecovery ?? kept?.["inrecovery"] ?? false,
    streaming: each.streaming,
    stalledsince: each.streaming ? null : now,
    promisedsince: PROMISES.includes(each.state) ? now : null,
    promotion: each.promotion ?? null,
    fencems: each.fenceMs,
    startfailures: 0,
  };
}

type GroupRows = Pick<RecoveryPlan, "groups" | "nodes" | "timelines" | "notes">;

function planGroup(said: readonly Testimony[], version: number, now: string): GroupRows {
  const [some] = said;
  const memory = freshest(said);
  refuseOtherCluster(said);
  const primary = primaryAmong(said);
  const timelines = historyOf(primary, memory);
  const keptOf = (identity: string) => memory?.nodes.find((row) => row["identity"] === identity);
  const absent = (memory?.nodes ?? []).filter(
    (row) => !said.some(({ identity }) => identity === row["identity"]),
  );
  const goals = goalsOf(said, primary, said.length + absent.length === 1);
  const kept = absent.map((row) => ({
    ...row,
    ...fresh(now),
    // it may have been the primary as far as its peers know
    ...(primary && canTakeWrites(row["goalstate"] as NodeState) ? { goalstate: "demoted" } : {}),
    goalversion: version,
    reportno: 0,
    decidedreport: 0,
  }));
  const notes = said
    .filter(({ identity }) => keptOf(identity) === undefined)
    .map(
      (each) =>
        `Of ${nameOf(each)} only its own settings are known: candidate priority ${each.candidatePriority}, replication quorum ${each.replicationQuorum}`,
    );
  return {
    groups: [
      {
        ...memory?.group,
        formationid: some?.formation,
        groupid: some?.groupId,
        ...syncOf(said, primary, memory, version),
        request: null,
        requesttime: now,
        blocked: null,
      },
    ],
    nodes: [
      ...said.map((each) =>
        nodeRow(each, keptOf(each.identity), goals.get(each.identity) ?? each.goal, version, now),
      ),
      ...kept,
    ],
    timelines,
    notes,
  };
}

const highest = (values: readonly unknown[]): number =>
  Math.max(0, ...values.map(Number).filter(Number.isFinite));

/**
 * @param now a time as the database writes it
 * @throws {RecoveryConflict} what the keepers know contradicts itself
 */
export function planRecovery(all: readonly Testimony[], now: string): RecoveryPlan {
  const said = witnesses(all);
  const memory = freshest(said);
  refuseDoubles(said);
  const groups = new Map<string, Testimony[]>();
  for (const each of said) {
    const key = `${each.formation}/${each.groupId}`;
    groups.set(key, [...(groups.get(key) ?? []), each]);
  }
  const kept = said.flatMap((each) => each.memory?.nodes ?? []);
  const sets = said.flatMap((each) => [each.inForce?.version, each.written?.version]);
  const version =
    VERSION_STRIDE +
    highest([
      ...said.flatMap(({ goalVersion, syncVersion }) => [goalVersion, syncVersion]),
      ...kept.map((row) => row["goalversion"]),
      ...said.map((each) => each.memory?.group["syncversion"]),
      ...sets.filter((each) => each !== undefined),
    ]);
  const planned = [...groups.values()].map((each) => planGroup(each, version, now));
  const formations = new Map(memory?.formations.map((row) => [row["formationid"], row]));
  const notes = planned.flatMap((each) => each.notes);
  for (const { formation, dbname } of said) {
    if (formations.has(formation)) continue;
    formations.set(formation, { formationid: formation, ...(dbname && { dbname }) });
    notes.push(
      `No keeper knows the settings of formation "${formation}": it has the defaults, see roles/formation.ts get`,
    );
  }
  const timelines = planned.flatMap((each) => each.timelines);
  const removed = memory?.removed ?? [];
  const nodes = planned.flatMap((each) => each.nodes);
  return {
    formations: [...formations.values()],
    groups: planned.flatMap((each) => each.groups),
    nodes,
    timelines,
    removed: removed.filter((row) => !nodes.some(({ identity }) => identity === row["identity"])),
    lastEvent: memory?.version ?? 0,
    lastNodeId: highest([
      ...nodes.map(({ nodeid }) => nodeid),
      ...removed.map(({ nodeid }) => nodeid),
      ...timelines.map(({ nodeid }) => nodeid),
      ...(memory?.roster ?? []).map(({ nodeId }) => nodeId),
    ]),
    notes,
  };
}
