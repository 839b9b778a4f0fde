/** The production functions that the model runs, and what of its own effects may be broken on purpose. */
import { transitionFor } from "../../lib/fsm.ts";
import { blockedReason } from "../../lib/group/explain.ts";
import { decideGroup, isDisputed } from "../../lib/group/facts.ts";
import { nextTimeline, primaryAhead } from "../../lib/group/history.ts";
import { isAsynchronous, isBinding, pendingAfter } from "../../lib/group/quorum.ts";
import { couldBeReplaced, fenceAtMs } from "../../lib/keeper/fence.ts";
import { acknowledges, countsAsRunning } from "../../lib/keeper/report.ts";
import { nextStep } from "../../lib/keeper/step.ts";

export const LAWS = {
  decideGroup,
  isDisputed,
  blockedReason,
  nextTimeline,
  primaryAhead,
  pendingAfter,
  isAsynchronous,
  isBinding,
  transitionFor,
  nextStep,
  fenceAtMs,
  couldBeReplaced,
  countsAsRunning,
  acknowledges,
  /** A frozen server counts as stopped also where its stop is to be confirmed. */
  frozenIsStopped: false,
  /** The monitor records all of a report that a later one has overtaken, whatever goal its keeper knew. */
  acceptsLateReports: false,
  /** A report has contact count from when its answer came. */
  countsFromReceipt: false,
  /** A set counts as in force before its members have flushed what the primary has. */
  trustsNewMembers: false,
  /** A set counts as in force before the walsenders have read it. */
  trustsOldSenders: false,
  /** Only the running server is told to stop receiving; a restart receives again. */
  forgetsPromise: false,
  /** The promise is reported before the receiver has ended. */
  promisesEarly: false,
  /** An orderly stop waits for no standby, and reports what all of them have. */
  stopsAtOnce: false,
  /** A promotion goes on with the timeline that the standby was on. */
  keepsTimeline: false,
};
export type Laws = typeof LAWS;
