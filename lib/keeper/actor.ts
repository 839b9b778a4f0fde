/** Carries out what the loop has decided: one task at a time, beside everything else, and the fence before all. */
import { canTakeWrites, type NodeState } from "../fsm.ts";
import { delay, monotonicMs } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import { OVERDUE_MS } from "../sys/notify.ts";
import { chores } from "./chores.ts";
import type { MonitorContact } from "./contact.ts";
import { CHORES, type LoopState, REPAIR, START, type Task } from "./loop_state.ts";
import { CLEAN_STOP, demotionStop, log, save, startNode, stopNode, syncInForce } from "./node.ts";
import type { Observer } from "./observer.ts";
import type { Step } from "./step.ts";
import { checkpointTimeline, TRANSITIONS } from "./transitions.ts";

/** What was told to end has ended by then, a clean stop of PostgreSQL included. */
const ABORTED_MS = CLEAN_STOP.fastMs + CLEAN_STOP.immediateMs + CLEAN_STOP.killMs + OVERDUE_MS;

export type Actor = Disposable & {
  /** Carries a step out, beside everything else. */
  readonly act: (step: Step, nowMs: number) => void;
};

/**
 * @param options failFast: a transition that fails ends the loop; reached: a state has been reached; started: PostgreSQL
 *   was started in its state
 */
export function makeActor(
  loop: LoopState,
  contact: MonitorContact,
  observer: Observer,
  options: {
    readonly failFast: boolean;
    readonly reached: (state: NodeState) => void;
    readonly started: () => void;
  },
): Actor {
  const { node, policy, notifier } = loop;
  const checkpoints = new AbortController();
  let isCheckpointing = false;
  let lastWaiting = "";

  function begin(
    name: string,
    to: NodeState | undefined,
    action: (signal: AbortSignal) => Promise<void>,
    after?: () => void,
  ): void {
    const controller = new AbortController();
    const { signal } = controller;
    const ending = `what was told to end: ${name}`;
    signal.addEventListener("abort", () => notifier?.expect(ending, ABORTED_MS), { once: true });
    const inForceBefore = syncInForce(node);
    const mine: Task = { name, to, controller, done: Promise.resolve() };
    const run = async (): Promise<void> => {
      try {
        await action(signal);
        signal.throwIfAborted();
        after?.();
      } catch (error) {
        if (signal.aborted) {
          log.info(`Given up: ${name}`);
          return;
        }
        loop.backOffUntilMs = monotonicMs() + policy().heartbeatMs;
        if (options.failFast && error instanceof Error && to !== undefined) loop.finish(error);
        else log.error(`${name}: ${errorText(error)}`);
      } finally {
        if (loop.task === mine) loop.task = undefined;
        notifier?.met(ending);
        if (name !== CHORES || syncInForce(node) !== inForceBefore) loop.reportWanted = true;
        loop.wake();
      }
    };
    loop.task = mine;
    mine.done = run();
  }

  function reached(state: NodeState): void {
    save(node, { state });
    log.info(`Transition complete: current state is now "${state}"`);
    observer.awaitStream();
    observer.hurry();
    loop.choresDue = true;
    options.reached(state);
  }

  function roleToStart(): "primary" | "standby" {
    return canTakeWrites(node.state.state) || node.state.state === "stop_replication"
      ? "primary"
      : "standby";
  }

  /** Beside everything else: it may take minutes, and rewinding standbys wait for it. */
  function checkpointAfterPromotion(): void {
    if (isCheckpointing || !canTakeWrites(node.state.state)) return;
    isCheckpointing = true;
    checkpointTimeline(node, checkpoints.signal)
      .catch((error: unknown) => log.warn(`checkpoint after the promotion: ${errorText(error)}`))
      .finally(() => {
        isCheckpointing = false;
      });
  }

  /**
   * @param overtaken what else is under way: it may hang with the server, or just have started it
   * @param nowMs of this turn: the report that it sends is the first whose answer counts
   */
  function fence(overtaken: Task | undefined, nowMs: number): void {
    overtaken?.controller.abort(new Error("this primary is fenced"));
    // what the monitor said before is void: it may have given the group to somebody else since
    contact.forget(nowMs);
    loop.reportWanted = true;
    begin("fence", "demote_timeout", async () => {
      try {
        save(node, { state: "demote_timeout" });
      } finally {
        await stopNode(node, demotionStop(node));
        await Promise.race([overtaken?.done, delay(demotionStop(node).killMs)]);
        if (overtaken) await stopNode(node, demotionStop(node));
      }
    });
  }

  async function start(signal: AbortSignal): Promise<void> {
    try {
      await startNode(node, roleToStart(), signal);
      observer.forgetSilence();
      observer.hurry();
      log.info(`PostgreSQL is running with pid ${node.server?.pid}`);
      options.started();
    } catch (error) {
      // a start that was given up says nothing about the server: who may go on would seem unable to
      if (!signal.aborted) loop.startFailures += 1;
      throw error;
    }
  }

  function act(step: Step, nowMs: number): void {
    if (step.do === "wait") {
      if (step.why !== lastWaiting)
        log[step.why.startsWith("there is no way") ? "error" : "debug"](`Waiting: ${step.why}`);
      lastWaiting = step.why;
      return;
    }
    lastWaiting = "";
    switch (step.do) {
      case "abort":
        loop.task?.controller.abort(new Error("the goal has changed"));
        return;
      case "fence":
        log.warn(
          `Neither the monitor nor a standby has been heard of for ${policy().networkPartitionTimeoutMs} ms: this primary stops itself`,
        );
        fence(loop.task, nowMs);
        return;
      case "transition": {
        const [from, to, action, why] = step.row;
        log.info(`FSM transition from "${from}" to "${to}": ${why}`);
        begin(
          `transition to "${to}"`,
          to,
          (signal) => TRANSITIONS[action](node, signal),
          () => reached(to),
        );
        return;
      }
      case "start":
        log.info("PostgreSQL is not running, starting it");
        loop.crash = undefined;
        begin(START, undefined, start);
        return;
      case "stop":
        begin("stop PostgreSQL", undefined, async () => {
          await stopNode(node, demotionStop(node));
          observer.forgetSilence();
        });
        return;
      case "repair":
        log.info("This standby does not stream from the primary: looking for the reason");
        observer.awaitStream();
        begin(REPAIR, "catchingup", (signal) => TRANSITIONS.rejoin(node, signal));
        return;
      case "settle":
        if (loop.choresDue && node.server && nowMs >= loop.backOffUntilMs) {
          loop.choresDue = false;
          loop.choresDoneMs = nowMs;
          begin(CHORES, undefined, (signal) => chores(node, signal), checkpointAfterPromotion);
        }
        return;
    }
  }

  return {
    act,
    [Symbol.dispose]() {
      loop.task?.controller.abort(new Error("the keeper ends"));
      checkpoints.abort(new Error("the keeper ends"));
    },
  };
}
