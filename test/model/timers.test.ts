import { expect, test } from "bun:test";
import { type Policy, PRESETS } from "../../lib/group/view.ts";
import { POLICY, TICK_MS } from "./world.ts";

type Timers = Omit<(typeof PRESETS)["default"], "postgresTimeoutMs"> & Partial<Policy>;

/** After how many ticks a primary is late, closes its fence, has stopped, and may be dead. */
function order(timers: Timers, tickMs: number): Record<string, number> {
  const { heartbeatMs, networkPartitionTimeoutMs, fenceStopTimeoutMs, nodeTimeoutMs } = timers;
  const ticks = (ms: number): number => Math.ceil(ms / tickMs);
  return {
    late: ticks(2 * heartbeatMs),
    fenced: ticks(networkPartitionTimeoutMs),
    stopped: ticks(networkPartitionTimeoutMs + fenceStopTimeoutMs),
    dead: ticks(nodeTimeoutMs),
  };
}

test.each(Object.entries(PRESETS))(
  "what the model has shown of its timers holds for those of preset %s: they come in the same order",
  (_, timers) => {
    expect(order(timers, timers.networkPartitionTimeoutMs)).toEqual(order(POLICY, TICK_MS));
  },
);
