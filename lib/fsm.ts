/**
 * The two tables that decide everything: the monitor's rules (facts about a group → goals) and the
 * keeper's transitions (reported state, goal → action). Monitor and keeper share this file; it
 * imports nothing. States and sentences are pg_auto_failover's.
 */

export const NODE_STATES = [
  "init", "single", "wait_primary", "primary", "apply_settings", "draining", "demote_timeout", "demoted",
  "wait_standby", "catchingup", "secondary", "prepare_promotion", "stop_replication", "report_lsn",
  "fast_forward", "join_secondary", "prepare_maintenance", "wait_maintenance", "maintenance", "dropped",
] as const;
export type NodeState = (typeof NODE_STATES)[number];

/** What a converged state promises of the node's PostgreSQL. */
export type StateTraits = {
  /** `as_found`: nothing is started or stopped. */
  readonly postgres: "up" | "down" | "as_found";
  /** How it must be started: with `standby.signal`, or without. */
  readonly role: "primary" | "standby" | "none";
  /** Ordinary clients may write. */
  readonly writes: boolean;
};

const PRIMARY: StateTraits = { postgres: "up", role: "primary", writes: true };
const STANDBY: StateTraits = { postgres: "up", role: "standby", writes: false };
const STOPPED: StateTraits = { postgres: "down", role: "none", writes: false };
const UNTOUCHED: StateTraits = { postgres: "as_found", role: "none", writes: false };

export const STATE_TRAITS: Readonly<Record<NodeState, StateTraits>> = {
  init: UNTOUCHED,
  single: PRIMARY,
  wait_primary: PRIMARY,
  primary: PRIMARY,
  apply_settings: PRIMARY,
  draining: STOPPED,
  demote_timeout: STOPPED,
  demoted: STOPPED,
  wait_standby: UNTOUCHED,
  catchingup: STANDBY,
  secondary: STANDBY,
  prepare_promotion: STANDBY,
  stop_replication: { postgres: "up", role: "primary", writes: false },
  report_lsn: STANDBY,
  fast_forward: STANDBY,
  join_secondary: STANDBY,
  prepare_maintenance: STOPPED,
  wait_maintenance: UNTOUCHED,
  maintenance: UNTOUCHED,
  dropped: STOPPED,
};

/** @returns whether PostgreSQL of a node in this state may accept writes from ordinary clients */
export const canTakeWrites = (state: NodeState): boolean => STATE_TRAITS[state].writes;

// ---------------------------------------------------------------- the monitor's rules

/** A boolean that a rule reads; `group/facts.ts` computes each in one named function. */
export const FACTS = [
  "alone", "pair", "protected", "quorumStandby", "withoutStandby", "setDiffers", "setInForce",
  "requested", "planned", "lossAllowed", "disputed", "electable", "chosen",
  "readyToHandOver", "handingOver", "handOverFailed", "handedOver",
  "selfHealthy", "selfUnhealthy", "selfGone", "selfReporting", "selfStartable", "selfDown", "selfStreaming",
  "selfStalled", "selfForked", "selfQuorum", "selfSafe", "selfElected", "selfMustFetch", "selfFetched", "fetchFailed",
  "selfHeir", "selfInMaintenance", "selfExpendable",
  "sameTimeline", "caughtUp",
  "primaryHealthy", "primaryPresent", "primaryDown", "primaryStopped", "primarySilent", "primaryReporting", "primaryStartable",
  "writesFenced",
] as const;
export type Fact = (typeof FACTS)[number];

/** A condition on one node: `at` names which of its two states must be among `states`. */
export type Match = { readonly at: "both" | "reported" | "goal"; readonly states: readonly NodeState[] };
const is = (...states: NodeState[]): Match => ({ at: "both", states });
const goal = (...states: NodeState[]): Match => ({ at: "goal", states });
const reported = (...states: NodeState[]): Match => ({ at: "reported", states });

export type GroupRule = {
  readonly id: string;
  /** The node that the row is about; every condition in the list must hold. */
  readonly self: readonly Match[];
  /** The group's primary (or the one being demoted), when it's another node. */
  readonly primary?: readonly Match[];
  readonly when: readonly (Fact | `!${Fact}`)[];
  readonly goals: { readonly self?: NodeState; readonly primary?: NodeState };
  /** The synchronous set is computed anew, for the goals that this row leads to. */
  readonly sync?: true;
  /** Delete the node's row: it has confirmed that it's gone. */
  readonly forget?: true;
  /** The node has failed to fetch what it lacks: others go before it. */
  readonly passOver?: true;
  readonly why: string;
};

/** The states of a primary that takes writes beside standbys, or may. */
const OPEN: readonly NodeState[] = ["wait_primary", "primary", "apply_settings"];
/** What a primary may report, or have as its goal, when it's to be replaced. */
const SERVING: readonly NodeState[] = ["wait_primary", "primary", "apply_settings", "demote_timeout", "draining"];
const LEAVING: readonly NodeState[] = ["draining", "demote_timeout"];
/** A standby that receives, or may. */
export const RECEIVING: readonly NodeState[] = ["secondary", "catchingup"];
/** A standby that has promised to receive nothing from the old primary any more, and is not promoted yet. */
export const PROMISED: readonly NodeState[] = ["report_lsn", "join_secondary", "fast_forward", "prepare_promotion"];
/** Those of them that are not being promoted, or not yet: what a failover that was called off leaves behind. */
const WAITING: readonly NodeState[] = ["report_lsn", "join_secondary", "prepare_promotion"];

// biome-ignore format: one row a rule
export const GROUP_RULES: readonly GroupRule[] = [
  // arriving and leaving
  { id: "R101", self: [is("init")], when: ["alone"],
    goals: { self: "single" }, sync: true,
    why: "it is the first node of its group" },
  { id: "R102", self: [is("init")], primary: [goal("single", ...OPEN)], when: [],
    goals: { self: "wait_standby" },
    why: "the group has a primary, which must let it in first" },
  { id: "R103", self: [is("dropped")], when: [],
    goals: {}, forget: true,
    why: "the node has stopped and is removed" },
  { id: "R104", self: [is(...OPEN)], when: ["alone"],
    goals: { self: "single" }, sync: true,
    why: "no other node is left in the group" },

  // a standby joins and catches up
  { id: "R111", self: [is("wait_standby")], primary: [is("single")], when: [],
    goals: { primary: "wait_primary" }, sync: true,
    why: "a new standby wants to join" },
  { id: "R112", self: [is("wait_standby")], primary: [reported(...OPEN), goal(...OPEN)], when: [],
    goals: { self: "catchingup" },
    why: "the primary is ready for the new standby" },
  { id: "R113", self: [is("catchingup")], primary: [reported(...OPEN), goal(...OPEN)],
    when: ["selfHealthy", "selfStreaming", "sameTimeline", "caughtUp", "primaryHealthy", "!selfInMaintenance"],
    goals: { self: "secondary" },
    why: "the standby streams from the primary and has caught up" },
  { id: "R114", self: [is("secondary")], primary: [is("wait_primary")],
    when: ["selfHealthy", "selfStreaming", "primaryHealthy", "selfQuorum", "quorumStandby"],
    goals: { primary: "primary" }, sync: true,
    why: "a healthy secondary appeared" },
  { id: "R115", self: [is("secondary")], primary: [is("wait_primary")],
    when: ["selfHealthy", "selfStreaming", "primaryHealthy", "!quorumStandby"],
    goals: { primary: "primary" }, sync: true,
    why: "a healthy secondary appeared, and no commit waits for standbys in this group" },

  // whom commits wait for; `self` is the primary
  { id: "R121", self: [goal("primary", "apply_settings")], when: ["withoutStandby"],
    goals: { self: "wait_primary" }, sync: true,
    why: "no healthy standby is left to wait for: commits go on without" },
  { id: "R122", self: [goal("primary", "apply_settings")], when: ["setDiffers"],
    goals: { self: "apply_settings" }, sync: true,
    why: "the standbys that commits wait for have changed" },
  { id: "R123", self: [goal("wait_primary")], when: ["setDiffers", "protected"],
    goals: { self: "wait_primary" }, sync: true,
    why: "commits wait until one of these standbys is back, as protection demands" },
  { id: "R124", self: [is("apply_settings")], when: ["setInForce"],
    goals: { self: "primary" },
    why: "the new set of synchronous standbys is in force" },

  // maintenance: the node is left alone, and nobody waits for it
  { id: "R131", self: [goal("secondary")], primary: [goal(...OPEN)], when: ["selfInMaintenance", "primaryHealthy"],
    goals: { self: "catchingup" },
    why: "maintenance was asked for: the primary leaves it out of the synchronous set first" },
  { id: "R132", self: [is("catchingup", "demoted")], primary: [reported(...OPEN), goal(...OPEN)],
    when: ["selfInMaintenance", "selfExpendable"],
    goals: { self: "maintenance" },
    why: "no commit waits for it: it is left alone until maintenance is over" },
  { id: "R133", self: [goal("maintenance")], primary: [goal(...OPEN)], when: ["!selfInMaintenance"],
    goals: { self: "catchingup" },
    why: "maintenance is over" },
  { id: "R134", self: [is("maintenance")], primary: [goal(...LEAVING)], when: ["!selfInMaintenance"],
    goals: { self: "report_lsn" },
    why: "maintenance is over, and the primary is to be replaced" },

  // a standby is in trouble, the primary goes on without it
  { id: "R201", self: [goal("secondary")], primary: [goal(...OPEN)], when: ["selfUnhealthy", "primaryPresent"],
    goals: { self: "catchingup" },
    why: "the secondary became unhealthy" },
  { id: "R202", self: [goal("secondary")], primary: [goal(...OPEN)], when: ["selfStalled", "primaryPresent"],
    goals: { self: "catchingup" },
    why: "the secondary no longer receives from the primary, though both are alive" },
  { id: "R203", self: [reported(...RECEIVING), goal(...RECEIVING)], primary: [reported(...OPEN), goal(...OPEN)],
    when: ["selfForked", "primaryHealthy", "!disputed"],
    goals: { self: "demoted" },
    why: "it has left the group's history, which goes on at the primary: it is stopped, and taken back" },

  // the primary is in trouble, its only standby takes over
  { id: "R300", self: [is(...RECEIVING, ...WAITING)], primary: [reported(...SERVING), goal(...OPEN)],
    when: ["pair", "requested", "!planned", "selfHealthy", "selfSafe"],
    goals: { self: "prepare_promotion", primary: "draining" },
    why: "a failover was asked for" },
  { id: "R301", self: [is(...RECEIVING, ...WAITING)], primary: [reported(...SERVING), goal(...OPEN)],
    when: ["pair", "primaryDown", "selfHealthy", "selfSafe"],
    goals: { self: "prepare_promotion", primary: "draining" },
    why: "the primary is down and its synchronous standby has every acknowledged commit" },
  { id: "R302", self: [reported(...SERVING), goal("draining")],
    when: ["!electable", "selfReporting", "selfStartable"],
    goals: { self: "wait_primary" }, sync: true,
    why: "no standby can take over any more, and none was promoted: the old primary goes on" },
  { id: "R303", self: [is("prepare_promotion")], primary: [goal(...LEAVING)], when: ["selfHealthy", "handedOver"],
    goals: { self: "stop_replication", primary: "demote_timeout" },
    why: "the candidate no longer receives from the old primary, which can't acknowledge a commit any more" },
  { id: "R304", self: [is("stop_replication")],
    primary: [reported("demote_timeout", "demoted"), goal("demote_timeout", "demoted")],
    when: ["primaryStopped", "selfHealthy"],
    goals: { self: "wait_primary", primary: "demoted" }, sync: true,
    why: "the old primary has confirmed that it is stopped" },
  { id: "R305", self: [is("stop_replication")], primary: [goal("demote_timeout", "demoted")],
    when: ["primarySilent", "writesFenced", "selfHealthy"],
    goals: { self: "wait_primary", primary: "demoted" }, sync: true,
    why: "the old primary can't acknowledge commits and has been silent for node_timeout" },
  { id: "R306", self: [goal("stop_replication")], primary: [reported(...SERVING), goal("demote_timeout")],
    when: ["selfGone", "!electable", "primaryReporting", "primaryStartable"],
    goals: { self: "demoted", primary: "wait_primary" }, sync: true,
    why: "the candidate is gone and never opened for writes: the old primary goes on" },
  { id: "R307", self: [goal("stop_replication")], primary: [goal("demote_timeout")], when: ["selfGone", "electable"],
    goals: { self: "demoted" },
    why: "the candidate is gone and never opened for writes: another one takes its place" },

  // the old primary comes back
  { id: "R311", self: [is("demoted")], primary: [reported("single", ...OPEN), goal("single", ...OPEN)],
    when: ["primaryHealthy"],
    goals: { self: "catchingup" },
    why: "a new primary is available" },

  { id: "R312", self: [reported("demoted"), goal("demoted", "catchingup")], primary: [goal(...OPEN)],
    when: ["lossAllowed", "primaryDown", "!electable"],
    goals: { self: "report_lsn" },
    why: "the new primary is lost, and an operator goes on with what this node has" },

  // the primary is in trouble, and its standbys elect one of them
  { id: "R320", self: [reported(...SERVING), goal(...OPEN)],
    when: ["!pair", "requested", "!planned", "electable"],
    goals: { self: "draining" },
    why: "a failover was asked for" },
  { id: "R321", self: [reported(...SERVING), goal(...OPEN)],
    when: ["!pair", "selfDown", "electable"],
    goals: { self: "draining" },
    why: "the primary is down, and enough standbys are there to have every acknowledged commit among them" },
  { id: "R322", self: [reported(...RECEIVING), goal(...RECEIVING)], primary: [goal(...LEAVING)], when: ["!handingOver"],
    goals: { self: "report_lsn" },
    why: "the primary is to be replaced: each standby stops receiving and reports the end of its WAL" },
  { id: "R323", self: [is("report_lsn", "join_secondary")], primary: [goal(...LEAVING)], when: ["selfElected"],
    goals: { self: "prepare_promotion" },
    why: "it is elected, and has every commit that any of the standbys has" },
  { id: "R324", self: [is("report_lsn", "join_secondary")], primary: [goal(...LEAVING)], when: ["selfMustFetch"],
    goals: { self: "fast_forward" },
    why: "it is elected, and first fetches what it lacks from the most advanced standby" },
  { id: "R325", self: [is("fast_forward")], primary: [goal(...LEAVING)], when: ["selfFetched", "selfHealthy"],
    goals: { self: "prepare_promotion" },
    why: "it has fetched every commit that any of the standbys has" },
  { id: "R326", self: [goal("fast_forward")], primary: [goal(...LEAVING)], when: ["fetchFailed"],
    goals: { self: "report_lsn" }, passOver: true,
    why: "it could not fetch what it lacks: the election is repeated" },
  { id: "R327", self: [goal("prepare_promotion", "fast_forward")], primary: [goal(...LEAVING)],
    when: ["!pair", "selfUnhealthy", "electable"],
    goals: { self: "report_lsn" },
    why: "the candidate became unhealthy before it was promoted: the election is repeated" },
  { id: "R328", self: [is("report_lsn")], primary: [goal(...LEAVING)], when: ["chosen"],
    goals: { self: "join_secondary" },
    why: "another standby is elected" },
  { id: "R329", self: [reported(...RECEIVING, ...PROMISED), goal(...PROMISED)], primary: [reported(...OPEN), goal(...OPEN)],
    when: ["primaryHealthy"],
    goals: { self: "catchingup" },
    why: "the group has a primary to follow" },

  // a switchover: the primary hands over to a standby that has everything
  { id: "R330", self: [is("primary")], when: ["requested", "planned", "readyToHandOver"],
    goals: { self: "draining" },
    why: "a switchover was asked for: it writes everything out, stops, and a standby that has it all takes over" },
  { id: "R331", self: [is("secondary")], primary: [is("draining")], when: ["handingOver", "selfHeir"],
    goals: { self: "prepare_promotion" },
    why: "the primary has stopped for a switchover, and this standby takes over" },
  { id: "R332", self: [reported(...SERVING), goal("draining")],
    when: ["handOverFailed"],
    goals: { self: "wait_primary" }, sync: true,
    why: "the switchover is called off, as no standby was there with everything in time: the old primary goes on" },
  { id: "R333", self: [is("prepare_promotion")], primary: [goal("draining")],
    when: ["planned", "!handedOver", "!primaryReporting"],
    goals: { self: "report_lsn" },
    why: "the primary is gone in the middle of a switchover: its standbys elect one of them" },
];

/** One node as the rules see it. */
export type RuleNode = { readonly nodeId: number; readonly reported: NodeState; readonly goal: NodeState };

/** A node with its primary (another node, or none) and what is true of the two. */
export type Subject = {
  readonly self: RuleNode;
  readonly primary: RuleNode | undefined;
  readonly facts: ReadonlySet<Fact>;
};

export type Decision = {
  readonly rule: GroupRule;
  readonly selfId: number;
  readonly goals: ReadonlyMap<number, NodeState>;
};

function matches(conditions: readonly Match[], node: RuleNode): boolean {
  return conditions.every(({ at, states }) =>
    at === "both"
      ? node.reported === node.goal && states.includes(node.goal)
      : states.includes(at === "goal" ? node.goal : node.reported),
  );
}

/**
 * The first row that holds for some subject and would change something; no row: nothing to do.
 * Rows go before subjects: a row further up wins, whoever it's about.
 *
 * @param subjects every node of the group, by node id
 * @param rules the table; another one only where the table itself is put to the test
 */
export function decide(
  subjects: readonly Subject[],
  rules: readonly GroupRule[] = GROUP_RULES,
): Decision | undefined {
  for (const rule of rules) {
    for (const subject of subjects) {
      const { self, primary, facts } = subject;
      if (!matches(rule.self, self)) continue;
      if (rule.primary && (primary === undefined || !matches(rule.primary, primary))) continue;
      const holds = rule.when.every((fact) =>
        fact.startsWith("!") ? !facts.has(fact.slice(1) as Fact) : facts.has(fact as Fact),
      );
      if (!holds) continue;
      const goals = new Map<number, NodeState>();
      if (rule.goals.self && rule.goals.self !== self.goal) goals.set(self.nodeId, rule.goals.self);
      if (primary && rule.goals.primary && rule.goals.primary !== primary.goal) {
        goals.set(primary.nodeId, rule.goals.primary);
      }
      const changes = goals.size > 0 || rule.forget || rule.when.includes("setDiffers");
      if (changes) return { rule, selfId: self.nodeId, goals };
    }
  }
  return undefined;
}

// ---------------------------------------------------------------- the keeper's transitions

export const ACTIONS = [
  "initPrimary", "initStandby", "record", "prepareReplication", "becomeSingle", "enableSync", "applySettings", "disableSync",
  "disconnect", "fastForward", "promote", "openForWrites", "drain", "stop", "resume", "rejoin", "rewindOrClone",
] as const;
export type Action = (typeof ACTIONS)[number];
export type Transition = readonly [reported: NodeState, goal: NodeState, action: Action, why: string];

// biome-ignore format: one row a transition
export const KEEPER_TRANSITIONS: readonly Transition[] = [
  ["init", "single", "initPrimary", "Start as a single node"],
  ["init", "wait_standby", "record", "Start following a primary"],
  ["wait_standby", "catchingup", "initStandby", "The primary is now ready to accept a standby"],

  ["single", "wait_primary", "prepareReplication", "A new secondary was added"],
  ["wait_primary", "primary", "enableSync", "A healthy secondary appeared"],
  ["primary", "wait_primary", "disableSync", "Secondary became unhealthy"],
  ["wait_primary", "single", "becomeSingle", "The other node was removed, now single"],
  ["primary", "single", "becomeSingle", "The other node was removed, now single"],
  ["wait_primary", "apply_settings", "applySettings", "The set of synchronous standbys has changed"],
  ["primary", "apply_settings", "applySettings", "The set of synchronous standbys has changed"],
  ["apply_settings", "primary", "record", "The set of synchronous standbys is in force"],
  ["apply_settings", "wait_primary", "disableSync", "Secondary became unhealthy"],
  ["apply_settings", "single", "becomeSingle", "The other node was removed, now single"],

  ["catchingup", "secondary", "record", "Convinced the monitor that I'm up and running, and eligible for promotion again"],
  ["secondary", "catchingup", "rejoin", "Failed to report back to the monitor, not eligible for promotion"],
  ["secondary", "demoted", "stop", "This server has left the group's history"],
  ["catchingup", "demoted", "stop", "This server has left the group's history"],

  ["secondary", "prepare_promotion", "disconnect", "Stop traffic to primary, wait for it to finish draining"],
  ["catchingup", "prepare_promotion", "disconnect", "Stop traffic to primary, wait for it to finish draining"],
  ["prepare_promotion", "stop_replication", "promote", "Prevent against split-brain situations"],
  ["stop_replication", "wait_primary", "openForWrites", "Confirmed promotion with the monitor"],
  ["prepare_promotion", "catchingup", "rejoin", "The failover was called off, follow the primary again"],
  ["prepare_promotion", "secondary", "rejoin", "The failover was called off, follow the primary again"],
  ["prepare_promotion", "demoted", "stop", "Another standby takes over"],
  ["stop_replication", "demoted", "stop", "Another standby takes over"],

  ["secondary", "report_lsn", "disconnect", "Reporting the last position that was replayed"],
  ["catchingup", "report_lsn", "disconnect", "Reporting the last position that was replayed"],
  ["report_lsn", "fast_forward", "fastForward", "Fetching missing WAL from the most advanced standby"],
  ["join_secondary", "fast_forward", "fastForward", "Fetching missing WAL from the most advanced standby"],
  ["fast_forward", "prepare_promotion", "record", "Got the missing WAL, promotion is next"],
  ["report_lsn", "prepare_promotion", "record", "Elected, promotion is next"],
  ["join_secondary", "prepare_promotion", "record", "Elected, promotion is next"],
  ["prepare_promotion", "fast_forward", "fastForward", "Fetching missing WAL from the most advanced standby"],
  ["fast_forward", "report_lsn", "disconnect", "The election is repeated"],
  ["prepare_promotion", "report_lsn", "disconnect", "The election is repeated"],
  ["join_secondary", "report_lsn", "record", "The election is repeated"],
  ["report_lsn", "join_secondary", "record", "Another standby was elected"],
  ["prepare_promotion", "join_secondary", "record", "Another standby was elected"],
  ["fast_forward", "join_secondary", "disconnect", "Another standby was elected"],
  ["report_lsn", "catchingup", "rejoin", "A primary is available, follow it"],
  ["report_lsn", "secondary", "rejoin", "The failover was called off, follow the primary again"],
  ["report_lsn", "demoted", "stop", "This server has left the group's history"],
  ["join_secondary", "catchingup", "rejoin", "A primary is available, follow it"],
  ["fast_forward", "catchingup", "rejoin", "A primary is available, follow it"],

  ["catchingup", "maintenance", "record", "Nobody waits for this node: it is left alone for maintenance"],
  ["secondary", "maintenance", "record", "Nobody waits for this node: it is left alone for maintenance"],
  ["prepare_promotion", "maintenance", "record", "The failover was called off: this node is left alone for maintenance"],
  ["report_lsn", "maintenance", "record", "Another standby was elected: this node is left alone for maintenance"],
  ["demoted", "maintenance", "record", "Another node is the primary: this one is left alone for maintenance"],
  ["maintenance", "catchingup", "rejoin", "Maintenance is over, follow the primary again"],
  ["maintenance", "secondary", "rejoin", "Maintenance is over, follow the primary again"],
  ["maintenance", "prepare_promotion", "disconnect", "Maintenance is over, stop traffic to primary"],
  ["maintenance", "demoted", "stop", "This server has left the group's history"],
  ["maintenance", "report_lsn", "disconnect", "Maintenance is over, reporting the last position that was replayed"],

  ["wait_primary", "draining", "stop", "A failover occurred, stopping writes"],
  ["primary", "draining", "drain", "A failover occurred, stopping writes"],
  ["apply_settings", "draining", "stop", "A failover occurred, stopping writes"],
  ["wait_primary", "demote_timeout", "stop", "A failover occurred, no longer primary"],
  ["primary", "demote_timeout", "stop", "A failover occurred, no longer primary"],
  ["apply_settings", "demote_timeout", "stop", "A failover occurred, no longer primary"],
  ["wait_primary", "demoted", "stop", "A failover occurred, no longer primary"],
  ["primary", "demoted", "stop", "A failover occurred, no longer primary"],
  ["apply_settings", "demoted", "stop", "A failover occurred, no longer primary"],
  ["draining", "demote_timeout", "stop", "Secondary confirms it's receiving no more writes"],
  ["draining", "demoted", "stop", "A failover occurred, no longer primary"],
  ["demote_timeout", "draining", "stop", "A failover occurred while this node was fenced"],
  ["demote_timeout", "demoted", "stop", "Demote timeout expired"],
  ["demoted", "report_lsn", "disconnect", "The new primary is lost, reporting the last position that was replayed"],
  ["demoted", "catchingup", "rewindOrClone", "A new primary is available. First, try to rewind. If that fails, do a pg_basebackup."],

  ["draining", "wait_primary", "resume", "The failover was called off, accept writes again"],
  ["draining", "primary", "resume", "The failover was called off, accept writes again"],
  ["draining", "apply_settings", "resume", "The failover was called off, accept writes again"],
  ["draining", "single", "resume", "The failover was called off and no other node is left, accept writes again"],
  ["demote_timeout", "wait_primary", "resume", "The monitor is back and nobody took over, accept writes again"],
  ["demote_timeout", "primary", "resume", "The monitor is back and nobody took over, accept writes again"],
  ["demote_timeout", "apply_settings", "resume", "The monitor is back and nobody took over, accept writes again"],
  ["demote_timeout", "single", "resume", "The monitor is back and no other node is left, accept writes again"],

  ...NODE_STATES.filter((state) => state !== "dropped").map(
    (state): Transition => [state, "dropped", "stop", "This node is being removed from the monitor"]),
];

/** States that a keeper enters on its own: a fenced primary (design: fencing, by itself). */
export const SELF_ASSIGNED: readonly (readonly [from: NodeState, to: NodeState])[] = [
  ["primary", "demote_timeout"],
  ["apply_settings", "demote_timeout"],
  ["wait_primary", "demote_timeout"],
];

const TRANSITIONS = new Map(KEEPER_TRANSITIONS.map((row) => [`${row[0]} ${row[1]}`, row]));

/** @returns the row for this pair; undefined when the keeper has no way to get there */
export function transitionFor(from: NodeState, to: NodeState): Transition | undefined {
  return TRANSITIONS.get(`${from} ${to}`);
}
