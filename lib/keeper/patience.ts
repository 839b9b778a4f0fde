/** When `create` gives up waiting for others. Pure. */
import type { NodeState } from "../fsm.ts";
import { AppError } from "../sys/errors.ts";

export type Patience = { readonly goalTimeoutMs: number; readonly joinTimeoutMs: number };

/**
 * @param waitedMs since the loop began, with nothing under way
 * @returns what to end with; undefined: there is still time, or nobody else is waited for
 */
export function impatience(
  limits: Patience,
  waitedMs: number,
  { state, goal }: { readonly state: NodeState; readonly goal: NodeState },
  primary: string | undefined,
): AppError | undefined {
  if (state === "init" && goal === "init" && waitedMs > limits.goalTimeoutMs) {
    return new AppError(
      "timeout",
      "the monitor's database answers, but nobody assigns this node a goal",
      {
        detail: { waited_ms: limits.goalTimeoutMs },
        hint: "Start the monitor's process with roles/monitor.ts run, then run create again: it continues.",
      },
    );
  }
  if (state === "wait_standby" && goal === "wait_standby" && waitedMs > limits.joinTimeoutMs) {
    return new AppError("timeout", "the primary is not ready for a standby", {
      detail: { waited_ms: limits.joinTimeoutMs, primary },
      hint: "Check that the primary's keeper runs (roles/keeper.ts run), then run create again: it continues.",
    });
  }
  return undefined;
}
