/** What the parts of the keeper's loop share: each writes down what it notices, and the next turn looks at it. */
import type { NodeState } from "../fsm.ts";
import type { Policy } from "../group/view.ts";
import type { Notifier } from "../sys/notify.ts";
import type { Node } from "./node.ts";

/** What is being done to PostgreSQL: one thing at a time. */
export type Task = {
  readonly name: string;
  /** The state that a transition leads to; other tasks lead to none. */
  readonly to: NodeState | undefined;
  readonly controller: AbortController;
  done: Promise<void>;
};

export const START = "start PostgreSQL";
export const REPAIR = "follow the primary again";
export const CHORES = "keep settings in order";

/** PostgreSQL has ended by itself: before it's started again, the monitor may give its place to another. */
export type Crash = {
  atMs: number;
  /** The report that told the monitor. */
  asked?: bigint;
  considered?: boolean;
};

export type LoopState = {
  readonly node: Node;
  readonly startedMs: number;
  readonly notifier: Notifier | undefined;
  readonly policy: () => Policy;
  /** Leads to a turn. */
  readonly wake: () => void;
  /** Ends the loop; what comes later says nothing any more. */
  readonly finish: (outcome: NodeState | Error) => void;
  over: boolean;
  task: Task | undefined;
  crash: Crash | undefined;
  startFailures: number;
  /** The last attempt has failed: none before. */
  backOffUntilMs: number;
  /** The next report doesn't wait for its heartbeat. */
  reportWanted: boolean;
  reportSentMs: number;
  choresDue: boolean;
  choresDoneMs: number;
};
