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
  join_secondary: STOPPED,
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
  "alone", "noStandby",
  "selfHealthy", "selfUnhealthy", "selfStreaming", "selfStalled", "selfInSync", "selfCandidate",
  "selfQuorum", "sameTimeline", "caughtUp",
  "primaryHealthy", "primaryDown", "primaryStopped", "primarySilent", "primaryReporting",
] as const;
export type Fact = (typeof FACTS)[number];

/** A condition on one node: `at` names which of its two states must be among `states`. */
export type Match = { readonly at: "both" | "reported" | "goal"; readonly states: readonly NodeState[] };
const is = (...states: NodeState[]): Match => ({ at: "both", states });
const goal = (...states: NodeState[]): Match => ({ at: "goal", states });
const reported = (...states: NodeState[]): Match => ({ at: "reported", states });

/** What happens to the synchronous set: nobody, or exactly this standby. */
export type SyncChange = "nobody" | "self";

export type GroupRule = {
  readonly id: string;
  /** The node that the row is about; every condition in the list must hold. */
  readonly self: readonly Match[];
  /** The group's primary (or the one being demoted), when it's another node. */
  readonly primary?: readonly Match[];
  readonly when: readonly (Fact | `!${Fact}`)[];
  readonly goals: { readonly self?: NodeState; readonly primary?: NodeState };
  readonly sync?: SyncChange;
  /** Delete the node's row: it has confirmed that it's gone. */
  readonly forget?: true;
  readonly why: string;
};

// biome-ignore format: one row a rule
export const GROUP_RULES: readonly GroupRule[] = [
  // arriving and leaving
  { id: "R101", self: [is("init")], when: ["alone"],
    goals: { self: "single" }, sync: "nobody",
    why: "it is the first node of its group" },
  { id: "R102", self: [is("init")], primary: [goal("single", "wait_primary", "primary")], when: [],
    goals: { self: "wait_standby" },
    why: "the group has a primary, which must let it in first" },
  { id: "R103", self: [is("dropped")], when: [],
    goals: {}, forget: true,
    why: "the node has stopped and is removed" },
  { id: "R104", self: [is("wait_primary", "primary")], when: ["alone"],
    goals: { self: "single" }, sync: "nobody",
    why: "no other node is left in the group" },
  { id: "R105", self: [goal("primary")], when: ["noStandby"],
    goals: { self: "wait_primary" }, sync: "nobody",
    why: "the standby is being removed" },

  // a standby joins and catches up
  { id: "R111", self: [is("wait_standby")], primary: [is("single")], when: [],
    goals: { primary: "wait_primary" }, sync: "nobody",
    why: "a new standby wants to join" },
  { id: "R112", self: [is("wait_standby")], primary: [is("wait_primary", "primary")], when: [],
    goals: { self: "catchingup" },
    why: "the primary is ready for the new standby" },
  { id: "R113", self: [is("catchingup")], primary: [is("wait_primary")],
    when: ["selfHealthy", "selfStreaming", "sameTimeline", "caughtUp", "primaryHealthy"],
    goals: { self: "secondary" },
    why: "the standby streams from the primary and has caught up" },
  { id: "R114", self: [is("secondary")], primary: [is("wait_primary")],
    when: ["selfHealthy", "selfStreaming", "primaryHealthy", "selfQuorum"],
    goals: { primary: "primary" }, sync: "self",
    why: "a healthy secondary appeared" },
  { id: "R115", self: [is("secondary")], primary: [is("wait_primary")],
    when: ["selfHealthy", "selfStreaming", "primaryHealthy", "!selfQuorum"],
    goals: { primary: "primary" }, sync: "nobody",
    why: "a healthy secondary appeared, which is not part of the replication quorum" },

  // the standby is in trouble, the primary goes on without it
  { id: "R201", self: [goal("secondary")], primary: [goal("wait_primary", "primary")],
    when: ["selfUnhealthy", "primaryHealthy"],
    goals: { self: "catchingup", primary: "wait_primary" }, sync: "nobody",
    why: "the secondary became unhealthy" },
  { id: "R202", self: [goal("secondary")], primary: [goal("wait_primary", "primary")],
    when: ["selfStalled", "primaryHealthy"],
    goals: { self: "catchingup", primary: "wait_primary" }, sync: "nobody",
    why: "the secondary no longer receives from the primary, though both are alive" },

  // the primary is in trouble, the standby takes over
  { id: "R301", self: [is("secondary")], primary: [reported("primary", "demote_timeout"), goal("primary")],
    when: ["primaryDown", "selfHealthy", "selfCandidate", "selfInSync"],
    goals: { self: "prepare_promotion", primary: "draining" },
    why: "the primary is down and its synchronous standby has every acknowledged commit" },
  { id: "R302", self: [goal("prepare_promotion")],
    primary: [reported("primary", "draining", "demote_timeout"), goal("draining")],
    when: ["selfUnhealthy", "primaryReporting"],
    goals: { self: "catchingup", primary: "wait_primary" }, sync: "nobody",
    why: "the candidate became unhealthy before it was promoted: the old primary goes on" },
  { id: "R303", self: [is("prepare_promotion")], primary: [goal("draining")], when: [],
    goals: { self: "stop_replication", primary: "demote_timeout" },
    why: "the candidate no longer receives from the old primary, which can't acknowledge a commit any more" },
  { id: "R304", self: [is("stop_replication")],
    primary: [reported("demote_timeout", "demoted"), goal("demote_timeout", "demoted")], when: ["primaryStopped"],
    goals: { self: "wait_primary", primary: "demoted" }, sync: "nobody",
    why: "the old primary has confirmed that it is stopped" },
  { id: "R305", self: [is("stop_replication")], primary: [goal("demote_timeout", "demoted")],
    when: ["primarySilent"],
    goals: { self: "wait_primary", primary: "demoted" }, sync: "nobody",
    why: "the old primary can't acknowledge commits and has been silent for node_timeout" },

  // the old primary comes back
  { id: "R311", self: [is("demoted")], primary: [is("single", "wait_primary", "primary")], when: ["primaryHealthy"],
    goals: { self: "catchingup" },
    why: "a new primary is available" },
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
      if (goals.size > 0 || rule.forget) return { rule, selfId: self.nodeId, goals };
    }
  }
  return undefined;
}

// ---------------------------------------------------------------- the keeper's transitions

export const ACTIONS = [
  "initPrimary", "initStandby", "record", "prepareReplication", "becomeSingle", "enableSync", "disableSync",
  "disconnect", "promote", "openForWrites", "stop", "resume", "follow", "rewindOrClone",
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

  ["catchingup", "secondary", "record", "Convinced the monitor that I'm up and running, and eligible for promotion again"],
  ["secondary", "catchingup", "follow", "Failed to report back to the monitor, not eligible for promotion"],

  ["secondary", "prepare_promotion", "disconnect", "Stop traffic to primary, wait for it to finish draining"],
  ["prepare_promotion", "stop_replication", "promote", "Prevent against split-brain situations"],
  ["stop_replication", "wait_primary", "openForWrites", "Confirmed promotion with the monitor"],
  ["prepare_promotion", "catchingup", "follow", "The failover was called off, follow the primary again"],

  ["primary", "draining", "stop", "A failover occurred, stopping writes"],
  ["primary", "demote_timeout", "stop", "A failover occurred, no longer primary"],
  ["primary", "demoted", "stop", "A failover occurred, no longer primary"],
  ["draining", "demote_timeout", "stop", "Secondary confirms it's receiving no more writes"],
  ["draining", "demoted", "stop", "A failover occurred, no longer primary"],
  ["demote_timeout", "draining", "stop", "A failover occurred while this node was fenced"],
  ["demote_timeout", "demoted", "stop", "Demote timeout expired"],
  ["demoted", "catchingup", "rewindOrClone", "A new primary is available. First, try to rewind. If that fails, do a pg_basebackup."],

  ["draining", "wait_primary", "resume", "The failover was called off, accept writes again"],
  ["demote_timeout", "wait_primary", "resume", "The monitor is back and nobody took over, accept writes again"],
  ["demote_timeout", "primary", "resume", "The monitor is back and nobody took over, accept writes again"],
  ["demote_timeout", "single", "resume", "The monitor is back and no other node is left, accept writes again"],

  ...NODE_STATES.filter((state) => state !== "dropped").map(
    (state): Transition => [state, "dropped", "stop", "This node is being removed from the monitor"]),
];

/** States that a keeper enters on its own: a fenced primary (design: fencing, by itself). */
export const SELF_ASSIGNED: readonly (readonly [from: NodeState, to: NodeState])[] = [
  ["primary", "demote_timeout"],
  ["wait_primary", "demote_timeout"],
];

const TRANSITIONS = new Map(KEEPER_TRANSITIONS.map((row) => [`${row[0]} ${row[1]}`, row]));

/** @returns the row for this pair; undefined when the keeper has no way to get there */
export function transitionFor(from: NodeState, to: NodeState): Transition | undefined {
  return TRANSITIONS.get(`${from} ${to}`);
}
