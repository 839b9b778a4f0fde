/**
 * The keeper's loop. Nothing in it blocks: observing (observer.ts), reporting (reporter.ts) and acting (actor.ts) each run
 * on their own, at most one of a kind, and whatever ends, arrives or falls due leads to one `turn`, which looks at the
 * clock before anything else.
 */
import { parseHttpAddress } from "../config.ts";
import { type NodeState, STATE_TRAITS } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import { monotonicMs } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import { serveHttp } from "../sys/http.ts";
import { type Notifier, OVERDUE_MS } from "../sys/notify.ts";
import { makeActor } from "./actor.ts";
import { makeContact } from "./contact.ts";
import { couldBeReplaced, fenceAtMs, listeningUntilMs } from "./fence.ts";
import { openHooks } from "./hooks.ts";
import { type NodeHealth, nodeReply } from "./http.ts";
import { type LoopState, START } from "./loop_state.ts";
import {
  CLEAN_STOP,
  closeLocalDb,
  fenceStop,
  log,
  type Node,
  reloadSettings,
  stopNode,
  syncInForce,
  upstreamOf,
} from "./node.ts";
import { makeObserver } from "./observer.ts";
import { impatience, type Patience } from "./patience.ts";
import { makeReporter } from "./reporter.ts";
import { nextStep } from "./step.ts";

/** How long a keeper waits to hear what to do about a crash before it acts by itself. */
const ASK_TIMEOUT_MS = 1000;
/** How long a keeper that stops waits for its standby to be told to take over. */
const HAND_OVER_MS = 5000;
/** How long a keeper that ends waits for hooks that are still to be run. */
const HOOKS_END_MS = 10_000;
const TURN = "the wait for the next turn";

export type LoopOptions = {
  /** SIGTERM: stop PostgreSQL, say so, end. */
  readonly stop: AbortSignal;
  /** SIGQUIT: end at once, PostgreSQL stays. */
  readonly leave: AbortSignal;
  /** SIGHUP calls what is handed over here. */
  readonly onReload?: (reload: () => void) => void;
  /** End, leaving PostgreSQL as it is, when this state is reached (`create`). */
  readonly until?: (state: NodeState) => boolean;
  /** An action that fails ends the loop with its error, as does silence about the goal (`create`). */
  readonly failFast?: Patience;
  /**
   * Hears of each promise of this loop. It turns once a heartbeat, whatever is under way beside it; a look at PostgreSQL and
   * a report end by their own deadlines; what was told to end, ends. How long a transition takes, nobody knows before.
   */
  readonly notifier?: Notifier;
};

/** @returns the state in which the loop ended; "dropped" when the monitor knows this node no more */
export async function runLoop(node: Node, options: LoopOptions): Promise<NodeState> {
  const { notifier } = options;
  const startedMs = monotonicMs();
  const ended = Promise.withResolvers<NodeState>();
  using contact = makeContact(node, startedMs);
  const { policy } = contact;
  const loop: LoopState = {
    node,
    startedMs,
    notifier,
    policy,
    wake,
    finish,
    over: false,
    task: undefined,
    crash: undefined,
    startFailures: 0,
    backOffUntilMs: Number.NEGATIVE_INFINITY,
    reportWanted: true,
    reportSentMs: Number.NEGATIVE_INFINITY,
    choresDue: true,
    choresDoneMs: Number.NEGATIVE_INFINITY,
  };
  const observer = makeObserver(loop, {
    isCutOff: (nowMs) => fenceAt() !== undefined && nowMs >= cutOffAt(),
    isUnheard: () => contact.standing === "never",
  });
  const failFast = options.failFast !== undefined;
  const reporter = makeReporter(loop, contact, observer, { failFast, leave });
  const actor = makeActor(loop, contact, observer, {
    failFast,
    reached: (state) => {
      if (options.until?.(state)) finish(state);
    },
    started: () => tellHooks(node.state.state),
  });
  const { hooksDir, hookTimeoutMs } = node.config;
  const hooks =
    hooksDir === undefined
      ? undefined
      : openHooks({ directory: hooksDir, timeoutMs: hookTimeoutMs }, log, reporter.recordEvent);
  let toldState = node.state.state;
  let closing: "stopping" | "handing over" | undefined;
  let handOverUntilMs = Number.POSITIVE_INFINITY;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isScheduled = false;

  function wake(): void {
    if (isScheduled || loop.over) return;
    isScheduled = true;
    setImmediate(() => {
      isScheduled = false;
      turn();
    });
  }
  node.suspect = () => {
    observer.suspect();
    wake();
  };

  function finish(outcome: NodeState | Error): void {
    if (loop.over) return;
    loop.over = true;
    clearTimeout(timer);
    if (outcome instanceof Error) ended.reject(outcome);
    else ended.resolve(outcome);
  }

  function fenceAt(): number | undefined {
    return fenceAtMs({
      lastContactMs: contact.lastMs,
      lastReplyMs: observer.lastReplyMs,
      couldBeReplaced: couldBeReplaced(node.state.state, node.state.syncMembers.length),
      networkPartitionTimeoutMs: policy().networkPartitionTimeoutMs,
      listeningUntilMs: listeningUntilMs({ startedMs, looks: observer.looks, ...policy() }),
    });
  }

  /** When it stops being normal that the monitor has not been heard of: the fence then hangs on replies alone. */
  function cutOffAt(): number {
    return contact.lastMs + 1.25 * policy().heartbeatMs;
  }

  // ---------------------------------------------------------------- telling others

  /** As of this very moment, also when this process has just been thawed. */
  function health(): NodeHealth {
    const nowMs = monotonicMs();
    const fence = fenceAt();
    const isUnheard = contact.standing === "never" && observer.lastReplyMs === undefined;
    return {
      formation: node.config.formation,
      host: node.config.nodename,
      port: node.config.pgport,
      state: node.state,
      postgres: observer.postgres(nowMs),
      underWay: loop.task?.to,
      fenced: fence !== undefined && (nowMs >= fence || isUnheard),
      closing: loop.over || closing !== undefined,
      seen: node.observation,
      streams: observer.streams(nowMs),
      contactAgeMs: contact.standing === "never" ? undefined : nowMs - contact.lastMs,
      primaryLsn: upstreamOf(node)?.lsn,
      startFailures: loop.startFailures,
      syncInForce: syncInForce(node),
      reports: reporter.counts,
    };
  }

  /** For `systemctl status`. */
  function statusOf(nowMs: number): string {
    const { state, goal, name } = node.state;
    const course = goal === state ? "" : `, to be "${goal}"`;
    const heard = contact.standing === "fresh" ? "answers" : "does not answer";
    return `Node "${name}" is "${state}"${course}; PostgreSQL is ${observer.postgres(nowMs)}; the monitor ${reporter.isDisabled() ? "is disabled" : heard}`;
  }

  /** @param from the same state: PostgreSQL was started in it */
  function tellHooks(from: NodeState): void {
    const { config, state, observation } = node;
    toldState = state.state;
    hooks?.tell({
      formation: config.formation,
      group: state.groupId ?? config.group,
      node: { id: state.nodeId, name: state.name, host: config.nodename, port: config.pgport },
      from,
      to: state.state,
      timeline: observation?.timeline,
      lsn: observation && formatLsn(observation.lsn),
    });
  }

  // ---------------------------------------------------------------- one turn

  function isCrashConsidered(nowMs: number): boolean {
    const { crash } = loop;
    return crash === undefined || crash.considered === true || nowMs - crash.atMs >= ASK_TIMEOUT_MS;
  }

  function takeStep(nowMs: number): void {
    const { task } = loop;
    const fence = fenceAt();
    const isSilent = nowMs - contact.lastMs >= policy().networkPartitionTimeoutMs;
    const step = nextStep({
      state: node.state.state,
      goal: node.state.goal,
      contact: contact.standing === "fresh" && isSilent ? "lost" : contact.standing,
      monitorIsStale: reporter.monitorIsStale,
      fenced: fence !== undefined && nowMs >= fence,
      postgres: observer.postgres(nowMs),
      dataReady: node.state.data === "ready",
      underWay: task?.to,
      crashConsidered: isCrashConsidered(nowMs),
      adrift: observer.isAdrift(nowMs),
      backingOff: nowMs < loop.backOffUntilMs,
    });
    // a task without a goal (a start, chores) is short and bounded: only the fence goes before it
    const overtakes = step.do === "fence" || (step.do === "abort" && task?.to !== undefined);
    const isAllowed =
      closing === undefined ||
      (step.do === "transition" && STATE_TRAITS[step.row[1]].postgres === "down");
    if (isAllowed && (task === undefined || overtakes)) actor.act(step, nowMs);
  }

  function turn(): void {
    if (loop.over) return;
    const nowMs = monotonicMs();
    observer.noticeServer(nowMs);
    // crash recovery may take minutes; who is told to stop doesn't wait for its end
    if (loop.task?.name === START && STATE_TRAITS[node.state.goal].postgres === "down") {
      loop.task.controller.abort(new Error("the goal has changed"));
    }
    if (closing !== "stopping") takeStep(nowMs);
    if (node.state.state !== toldState) tellHooks(toldState);
    if (closing === "handing over" && hasHandedOver(nowMs)) {
      finish(node.state.state);
      return;
    }
    observer.observe(nowMs);
    reporter.report(nowMs);
    if (options.failFast && !loop.task) {
      const primary = upstreamOf(node)?.name;
      const error = impatience(options.failFast, nowMs - startedMs, node.state, primary);
      if (error) finish(error);
    }
    notifier?.expect(TURN, policy().heartbeatMs + OVERDUE_MS);
    notifier?.status(statusOf(nowMs));
    clearTimeout(timer);
    timer = setTimeout(turn, Math.max(1, nextDueMs(nowMs) - nowMs));
  }

  /** When there may be something to do although nothing has happened; a heartbeat from now at the latest. */
  function nextDueMs(nowMs: number): number {
    const fence = fenceAt();
    const { crash, backOffUntilMs } = loop;
    const dues = [
      ...observer.dueMs(nowMs),
      ...reporter.dueMs(nowMs),
      ...(fence !== undefined ? [fence, cutOffAt()] : []),
      ...(crash && !isCrashConsidered(nowMs) ? [crash.atMs + ASK_TIMEOUT_MS] : []),
      backOffUntilMs,
    ].filter((dueMs) => dueMs > nowMs);
    return Math.min(...dues, nowMs + policy().heartbeatMs);
  }

  // ---------------------------------------------------------------- signals

  /** The monitor knows all that it must to let somebody else open, or nobody can be told any more. */
  function hasHandedOver(nowMs: number): boolean {
    if (nowMs >= handOverUntilMs || contact.standing !== "fresh") return true;
    const { state, goal } = node.state;
    if (loop.task || reporter.isReporting || loop.reportWanted || reporter.acknowledged !== state)
      return false;
    if (state === "primary" || state === "apply_settings") {
      return loop.crash?.considered === true && (goal === "primary" || goal === "apply_settings");
    }
    return state !== "draining" && state !== "demote_timeout";
  }

  /** Removed while it was away, it takes no part any more: nobody is left who would fence it. */
  function leave(): void {
    if (closing === "stopping") return;
    closing = "stopping";
    loop.task?.controller.abort(new Error("the node was removed"));
    const done = loop.task?.done ?? Promise.resolve();
    done
      .then(() => stopNode(node, fenceStop(node)))
      .catch((error: unknown) => log.error(errorText(error)))
      .finally(() => finish("dropped"));
  }

  /** A primary walks to "demoted" before it ends: writes open elsewhere only when it has said so. */
  async function shutDown(): Promise<void> {
    closing = "stopping";
    notifier?.stopping();
    loop.task?.controller.abort(new Error("the keeper stops"));
    await loop.task?.done;
    log.info("Stopping PostgreSQL");
    await stopNode(node, CLEAN_STOP);
    const nowMs = monotonicMs();
    loop.crash = { atMs: nowMs };
    reporter.acknowledged = undefined;
    handOverUntilMs = nowMs + HAND_OVER_MS;
    closing = "handing over";
    loop.reportWanted = true;
    turn();
  }

  const onStop = (): void =>
    void shutDown().catch((error: unknown) =>
      finish(error instanceof Error ? error : new Error(errorText(error))),
    );
  const onLeave = (): void => finish(node.state.state);
  options.stop.addEventListener("abort", onStop, { once: true });
  options.leave.addEventListener("abort", onLeave, { once: true });
  options.onReload?.(() => {
    log.info("Reloading the settings");
    const read = reporter.readSettings();
    const reloaded = node.server && reloadSettings(node);
    reloaded?.catch((error: unknown) => log.warn(errorText(error)));
    notifier?.reloading(Promise.allSettled([read, reloaded]));
    wake();
  });

  const { http } = node.config;
  using _http =
    http === undefined
      ? undefined
      : serveHttp(parseHttpAddress(http), (path, query) => nodeReply(health(), path, query), log);
  try {
    if (!reporter.isDisabled()) reporter.watch();
    turn();
    notifier?.ready();
    return await ended.promise;
  } finally {
    loop.over = true;
    notifier?.stopping();
    clearTimeout(timer);
    options.stop.removeEventListener("abort", onStop);
    options.leave.removeEventListener("abort", onLeave);
    actor[Symbol.dispose]();
    closeLocalDb(node);
    if (node.state.state !== toldState) tellHooks(toldState);
    await hooks?.close(options.leave.aborted ? 0 : HOOKS_END_MS);
    await reporter[Symbol.asyncDispose]();
  }
}
