/** Why a group does not do what its operator waits for, in sentences that name the next step. */
import { canTakeWrites, type NodeState, STATE_TRAITS, transitionFor } from "../fsm.ts";
import {
  byPreference,
  chosenOf,
  elect,
  hasPromised,
  highest,
  isElectable,
  isHealthy,
  isReporting,
  standbysOf,
} from "./election.ts";
import { isForked, isPrimaryDown, primaryOf } from "./facts.ts";
import { handOverOf, isGoingOn, isReadyToHandOver } from "./handover.ts";
import { isOnLineage } from "./history.ts";
import { formatLsn } from "./lsn.ts";
import { isAsynchronous, missingFrom, possibleSets } from "./quorum.ts";
import type { GroupView, NodeView } from "./view.ts";

const named = ({ nodeId, name }: NodeView): string => `node ${nodeId} "${name}"`;

const LOSE = "roles/formation.ts failover --allow-data-loss promotes another one";

/** Those whose word, or return, a promotion without loss waits for. */
function whoIsMissing(view: GroupView, primary: NodeView | undefined): string {
  const strays = view.nodes.filter(
    (node) => hasPromised(node) && isHealthy(node, view.policy) && !isOnLineage(node, view),
  );
  if (view.request?.allowDataLoss && strays.length > 0)
    return `${strays.map(named).join(", ")} has left the group's history: roles/formation.ts accept-timeline goes on with it`;
  const sets = possibleSets(view);
  if (sets === undefined) return "it is not known which standbys its last commits had waited for";
  if (
    sets.some(({ members, number }) => members.length === 0 || number === 0) &&
    !isAsynchronous(view)
  )
    return "its last commits need not have waited for any standby";
  const { voters, healthy } = standbysOf(view, primary);
  const there = new Set([...healthy, ...voters.filter(hasPromised)].map(({ nodeId }) => nodeId));
  const missing = missingFrom(sets, there);
  const names = missing.map((id) => {
    const node = view.nodes.find(({ nodeId }) => nodeId === id);
    return node === undefined ? `node ${id}, which was dropped,` : named(node);
  });
  const away = missing.filter((id) => view.nodes.find(({ nodeId }) => nodeId === id)?.maintenance);
  if (names.length > 0 && away.length === names.length)
    return `${names.join(", ")} may hold acknowledged commits and is in maintenance (roles/node.ts maintenance off)`;
  if (names.length > 0)
    return `${names.join(", ")} may hold acknowledged commits and can't be asked`;
  const ahead = voters.filter((node) => hasPromised(node) && !healthy.includes(node));
  if (ahead.length > 0) return `${ahead.map(named).join(", ")} holds commits that nobody else has`;
  if (healthy.length === 0) return "no standby is healthy";
  if (isAsynchronous(view))
    return "every standby is further behind than maximum_lag_on_failover allows";
  return "every standby that is there has candidate priority 0";
}

/**
 * Why nobody is promoted although the primary is to be replaced.
 *
 * @returns undefined when nothing is in the way, or nothing is to be done
 */
export function blockedReason(view: GroupView): string | undefined {
  const primary = primaryOf(view.nodes);
  if (primary === undefined) return undefined;
  const standbys = view.nodes.filter((node) => node !== primary && node.goal !== "dropped");
  if (view.disputed) {
    const forks = standbys.filter((node) => isForked(node, view)).map(named);
    const who = forks.join(", ") || "a standby";
    return `Blocked: ${who} left the group's history while its primary could not be asked; roles/formation.ts accept-timeline says which one holds`;
  }
  const { policy } = view;
  // a keeper that says so and a connection that fails: it hangs, and nobody restarts it
  const isHung = !primary.pgRunning && primary.health === "bad";
  const isLost = !isReporting(primary, policy) || primary.startFailures > 0 || isHung;
  const wantsFailover =
    canTakeWrites(primary.goal) &&
    ((isPrimaryDown(primary, view) && isLost) || view.request !== undefined);
  const isUnderWay = primary.goal === "draining" || primary.goal === "demote_timeout";
  if (standbys.length === 0 || !(wantsFailover || isUnderWay)) return undefined;
  if (isGoingOn(handOverOf(view, primary))) return undefined;
  if (view.request?.planned && canTakeWrites(primary.goal) && !isLost) {
    return isReadyToHandOver(view, primary)
      ? undefined
      : "Blocked: the switchover that was asked for waits for a healthy secondary that streams from the primary and has caught up";
  }
  // the candidate of a failover that was called off stays one until it can follow its primary again
  const chosen = isUnderWay ? chosenOf(view.nodes) : undefined;
  if (chosen && isHealthy(chosen, policy)) return undefined;
  if (!chosen && elect(view, primary) !== undefined) return undefined;
  if (isElectable(view, primary)) return undefined;
  const what =
    view.request && !isLost ? "the failover that was asked for" : `${named(primary)} is down`;
  return `Blocked: ${what}, and ${whoIsMissing(view, primary)}. It goes on by itself when that changes; ${LOSE}`;
}

/** Its WAL is not part of the group's history, nor about to be: a node that is being promoted begins a timeline. */
const hasLeft = (node: NodeView, view: GroupView): boolean =>
  node.goal !== "dropped" &&
  node.timeline > 0 &&
  chosenOf([node]) === undefined &&
  (!isOnLineage(node, view) || isForked(node, view));

/** What a node waits for, since when, and the command that would help; null: nothing. */
export type NodeStory = Pick<NodeView, "nodeId" | "name" | "reported" | "goal"> & {
  readonly waitsFor: string | null;
  readonly sinceMs: number | null;
  readonly command: string | null;
};

export type GroupStory = {
  readonly groupId: number;
  /** Its name; null: there is none. */
  readonly primary: string | null;
  /** What would be lost if the primary died now, and who would take over. */
  readonly ifPrimaryDied: string;
  /** Why nobody is promoted although somebody should be. */
  readonly blocked: string | null;
  readonly nodes: readonly NodeStory[];
};

type Wait = string | readonly [what: string, sinceMs: number];

function catchingUp(node: NodeView, view: GroupView, primary: NodeView | undefined): Wait {
  if (primary === undefined || !isHealthy(primary, view.policy)) return "a healthy primary";
  if (!node.streaming) return [`its connection to ${named(primary)}`, node.stalledMs];
  if (node.timeline !== primary.timeline) return `the WAL of timeline ${primary.timeline}`;
  const behind = primary.lsn - node.lsn;
  return behind > view.policy.caughtUpBytes
    ? `${behind} bytes of WAL that it is behind`
    : "the monitor, which looks again with the next report";
}

/** In the states that a node stays in until something else happens; the others wait for nothing. */
const WAITS: Partial<
  Record<
    NodeState,
    (node: NodeView, view: GroupView, primary: NodeView | undefined) => Wait | undefined
  >
> = {
  init: () => "the monitor, which has not decided what it is to be",
  wait_primary: () => "a healthy secondary",
  apply_settings: (_, { sync }) =>
    `the synchronous standbys ${sync.members.join(", ")} to be in force, ${sync.number} for each commit`,
  draining: (_, { nodes }) => {
    const chosen = chosenOf(nodes);
    return chosen ? `${named(chosen)} to stop receiving from it` : "a standby to be elected";
  },
  demote_timeout: (_, { nodes }) => {
    const chosen = chosenOf(nodes);
    return chosen ? `${named(chosen)} to be promoted` : "the monitor's word that nobody took over";
  },
  demoted: () => "a healthy primary to follow",
  wait_standby: (_, __, primary) => `${primary ? named(primary) : "a primary"} to let it in`,
  catchingup: catchingUp,
  secondary: (node, _, primary) =>
    node.streaming || primary === undefined
      ? undefined
      : [`its connection to ${named(primary)}`, node.stalledMs],
  prepare_promotion: () => "the monitor to go on with its promotion",
  stop_replication: (_, __, primary) =>
    `${primary ? named(primary) : "the old primary"} to confirm that it is stopped, or to be silent for node_timeout`,
  report_lsn: (node, view) => {
    const silent = view.nodes.filter(
      (each) => each !== node && each.goal === "report_lsn" && !hasPromised(each),
    );
    return silent.length > 0
      ? `${silent.map(named).join(", ")} to report the end of its WAL`
      : "enough standbys to elect one of them";
  },
  fast_forward: () => "the WAL that it lacks",
  join_secondary: (_, { nodes }) => {
    const chosen = chosenOf(nodes);
    return `${chosen ? named(chosen) : "another standby"} to take over`;
  },
  maintenance: () => "an operator, who has it in maintenance",
  dropped: () => "the monitor to forget it",
};

const RUN = (node: NodeView): string => `on ${node.host}: roles/keeper.ts run --pgdata DIR`;
const STATUS = (node: NodeView): string =>
  `on ${node.host}: roles/keeper.ts status --pgdata DIR, and its postgres.log`;

function storyOf(node: NodeView, view: GroupView, primary: NodeView | undefined): NodeStory {
  const { nodeId, name, reported, goal } = node;
  const story = (wait: Wait | undefined, command: string | null = null): NodeStory => {
    const [waitsFor = null, sinceMs] = typeof wait === "object" ? wait : [wait, node.goalAgeMs];
    const since = waitsFor === null ? null : Math.round(sinceMs);
    return { nodeId, name, reported, goal, waitsFor, sinceMs: since, command };
  };
  if (!isReporting(node, view.policy)) {
    return story(["a report of its keeper", node.reportAgeMs], RUN(node));
  }
  if (hasLeft(node, view)) {
    return view.disputed
      ? story(
          "an operator, who must say which timeline is the group's",
          "roles/formation.ts accept-timeline NODE",
        )
      : story("being taken back into the group's history, which it has left");
  }
  if (reported !== goal) {
    const why = transitionFor(reported, goal)?.[3] ?? "there is no way from one to the other";
    return story(`its keeper, to get from "${reported}" to "${goal}": ${why}`);
  }
  if (STATE_TRAITS[goal].postgres === "up" && !node.pgRunning) {
    const failed = node.startFailures > 0 ? `, which has failed ${node.startFailures} times` : "";
    return story(`PostgreSQL to start${failed}`, STATUS(node));
  }
  return story(WAITS[goal]?.(node, view, primary));
}

/** Known commits that only the primary has, in bytes of WAL; undefined: no standby could take over at all. */
export function lossOf(view: GroupView): bigint | undefined {
  const primary = primaryOf(view.nodes);
  const { healthy } = standbysOf(view, primary);
  if (healthy.length === 0) return undefined;
  const best = highest(healthy);
  return primary && primary.lsn > best ? primary.lsn - best : 0n;
}

function ifPrimaryDied(view: GroupView, primary: NodeView | undefined): string {
  if (primary === undefined) return "there is no primary";
  if (!canTakeWrites(primary.goal)) return "it is being replaced already";
  const others = view.nodes.filter((node) => node !== primary && node.goal !== "dropped");
  if (others.length === 0)
    return "everything since the last backup would be lost: there is no other node";
  const dead: NodeView = {
    ...primary,
    pgRunning: false,
    reportAgeMs: Math.max(primary.reportAgeMs, view.policy.nodeTimeoutMs),
  };
  const after: GroupView = {
    ...view,
    nodes: view.nodes.map((node) => (node === primary ? dead : node)),
  };
  const bytes = lossOf(after);
  if (view.disputed || !isElectable(after, dead)) {
    const why = view.disputed ? "it is disputed which timeline holds" : whoIsMissing(after, dead);
    const cost =
      bytes === undefined
        ? ""
        : `; a promotion that may lose commits would lose at least ${bytes} bytes`;
    return `nobody would take over, because ${why}${cost}`;
  }
  const heirs = standbysOf(after, dead)
    .healthy.filter(({ candidatePriority }) => candidatePriority > 0)
    .toSorted(byPreference);
  const heir = heirs[0] === undefined ? "a standby" : named(heirs[0]);
  return isAsynchronous(view)
    ? `${bytes ?? 0n} bytes or more would be lost, as the group is asynchronous: ${heir} would take over`
    : `no acknowledged commit would be lost: ${heir} would take over`;
}

/** What the group and each of its nodes are doing, and waiting for. */
export function explainGroup(view: GroupView): GroupStory {
  const primary = primaryOf(view.nodes);
  return {
    groupId: view.groupId,
    primary: primary?.name ?? null,
    ifPrimaryDied: ifPrimaryDied(view, primary),
    blocked: blockedReason(view) ?? null,
    nodes: view.nodes.map((node) => storyOf(node, view, primary)),
  };
}

/** A duration as people say it. */
function durationText(ms: number): string {
  const s = Math.round(ms / 1000);
  if (s < 120) return `${s} s`;
  return s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

export const STORY_HEADER = [
  ...["Node", "Name", "Reported State", "Assigned State", "Since", "Waits for", "What helps"],
] as const;

/** One row of a table with that header. */
export const storyCells = (story: NodeStory): string[] => [
  ...[String(story.nodeId), story.name, story.reported, story.goal],
  story.sinceMs === null ? "-" : durationText(story.sinceMs),
  story.waitsFor ?? "nothing",
  story.command ?? "-",
];

/** A node whose WAL isn't part of the group's history. */
export type Fork = { readonly node: string; readonly timeline: number; readonly text: string };

export const forksOf = (view: GroupView): Fork[] =>
  view.nodes
    .filter((node) => hasLeft(node, view))
    .map((node) => {
      const what = isOnLineage(node, view)
        ? "runs as a primary, which it was not told to be"
        : "is not part of the group's history";
      const where = `on timeline ${node.timeline} at ${formatLsn(node.lsn)}`;
      return {
        node: node.name,
        timeline: node.timeline,
        text: `${named(node)} ${what}: it is ${where}`,
      };
    });
