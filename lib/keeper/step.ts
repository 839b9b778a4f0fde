/** What a keeper does next. Pure; the loop gathers the view and carries the step out. */
import {
  type Action,
  type NodeState,
  STATE_TRAITS,
  type Transition,
  transitionFor,
} from "../fsm.ts";

export type LocalView = {
  readonly state: NodeState;
  readonly goal: NodeState;
  /** `never`: not since this keeper started, or was fenced. Until then nothing is done but stopping. */
  readonly contact: "fresh" | "lost" | "never";
  /** The monitor offers versions lower than were seen before: it was restored from the past. */
  readonly monitorIsStale: boolean;
  /** The fence's deadline has passed. */
  readonly fenced: boolean;
  /** `hung`: the processes live, but fresh connections go unanswered for postgres_timeout. */
  readonly postgres: "up" | "down" | "hung";
  /** PGDATA holds a complete cluster that may be started. */
  readonly dataReady: boolean;
  /** The goal of the transition that is under way. */
  readonly underWay: NodeState | undefined;
  /** The monitor has considered that PostgreSQL is down, or can't be asked. */
  readonly crashConsidered: boolean;
  /** This standby follows another node than the primary, or has not got a connection to it for long. */
  readonly adrift: boolean;
  /** The last attempt has just failed: not before the next heartbeat. */
  readonly backingOff: boolean;
};

export type Step =
  | { readonly do: "fence" | "abort" | "start" | "stop" | "repair" | "settle" }
  | { readonly do: "transition"; readonly row: Transition }
  | { readonly do: "wait"; readonly why: string };

/** Actions that need a running server and don't start one themselves. */
const NEEDS_SERVER: readonly Action[] = [
  "prepareReplication",
  "becomeSingle",
  "enableSync",
  "applySettings",
  "disableSync",
  "openForWrites",
];

/** Actions that open or read what is in PGDATA: a half-made copy is of no use to them. */
const NEEDS_DATA: readonly Action[] = [
  ...NEEDS_SERVER,
  "disconnect",
  "fastForward",
  "promote",
  "resume",
];

/** Crashed in one of these, a server may be needed no more: somebody else may take over. */
const REPLACEABLE: readonly NodeState[] = ["primary", "apply_settings"];

const wait = (why: string): Step => ({ do: "wait", why });

function startOrWait(view: LocalView): Step {
  if (!view.dataReady) return wait("the data directory is not complete");
  if (view.backingOff) return wait("the last start failed");
  // An eligible standby takes over faster, and more surely, than crash recovery.
  const isAsking = REPLACEABLE.includes(view.state) && REPLACEABLE.includes(view.goal);
  if (isAsking && !view.crashConsidered) {
    return wait("the monitor is asked what to do about the crash");
  }
  return { do: "start" };
}

/**
 * Order: the fence goes before everything, whatever is under way, then a transition whose goal has changed is given up,
 * then stopping, and only with fresh contact since the keeper's start anything else.
 */
export function nextStep(view: LocalView): Step {
  const { state, goal, postgres } = view;
  const traits = STATE_TRAITS[state];
  if (traits.writes && view.fenced) {
    return view.underWay === "demote_timeout" ? wait("the fence is closing") : { do: "fence" };
  }
  if (view.underWay !== undefined) {
    return view.underWay === goal ? wait("a transition is under way") : { do: "abort" };
  }
  if (traits.postgres === "down" && postgres !== "down" && !view.backingOff) return { do: "stop" };
  if (view.contact === "never")
    return wait("no contact with the monitor since this keeper started");
  if (view.monitorIsStale)
    return wait("the monitor knows less than this node: it was restored from the past");
  // A fenced primary that opened again on the goal it knew from before would be no fence at all.
  if (
    view.contact !== "fresh" &&
    traits.postgres === "down" &&
    STATE_TRAITS[goal].postgres !== "down"
  ) {
    return wait("a stopped node starts nothing without contact with the monitor");
  }
  // Replaceable, or not open yet; and no action gets anywhere with a server that doesn't answer.
  const isOurs = traits.postgres === "up" || (state === "maintenance" && goal !== state);
  if (postgres === "hung" && isOurs && !traits.writes && !view.backingOff) {
    return { do: "stop" };
  }
  if (goal !== state) {
    const row = transitionFor(state, goal);
    if (row === undefined) return wait(`there is no way from "${state}" to "${goal}"`);
    if (view.backingOff) return wait("the last attempt failed");
    if (!view.dataReady && NEEDS_DATA.includes(row[2])) {
      return wait("the data directory is not complete");
    }
    if (postgres === "down" && NEEDS_SERVER.includes(row[2])) return startOrWait(view);
    return { do: "transition", row };
  }
  if (state === "maintenance") return wait("this node is in maintenance, and left alone");
  if (traits.postgres !== "up") return { do: "settle" };
  if (state === "catchingup" && postgres !== "hung" && (view.adrift || !view.dataReady)) {
    return view.backingOff ? wait("the last attempt failed") : { do: "repair" };
  }
  if (postgres === "down") return startOrWait(view);
  // A primary is killed only when somebody takes over.
  if (postgres === "hung") return wait("PostgreSQL doesn't answer");
  return { do: "settle" };
}
