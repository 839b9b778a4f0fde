/** actor: what the fence does before all else. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_POLICY } from "../../../lib/group/view.ts";
import { makeActor } from "../../../lib/keeper/actor.ts";
import type { MonitorContact } from "../../../lib/keeper/contact.ts";
import type { LoopState } from "../../../lib/keeper/loop_state.ts";
import type { Observer } from "../../../lib/keeper/observer.ts";
import { loadState, newState } from "../../../lib/keeper/state_file.ts";

test("the fence: durable before anything else, and answers count from this turn's report on", async () => {
  const folder = mkdtempSync(join(tmpdir(), "actor-"));
  try {
    const path = join(folder, "state.json");
    const forgotten: number[] = [];
    const contact = { forget: (nowMs) => forgotten.push(nowMs) } as Partial<MonitorContact>;
    const loop = {
      node: {
        state: { ...newState(), state: "primary", goal: "primary" },
        paths: { state: path },
        config: { pgdata: join(folder, "pgdata") },
        policy: DEFAULT_POLICY,
      },
      policy: () => DEFAULT_POLICY,
      wake: () => {},
    } as unknown as LoopState;
    using actor = makeActor(loop, contact as MonitorContact, {} as Observer, {
      failFast: false,
      reached: () => {},
      started: () => {},
    });
    actor.act({ do: "fence" }, 1234);
    expect({ forgotten, state: loadState(path)?.state, wanted: loop.reportWanted }).toEqual({
      ...{ forgotten: [1234], state: "demote_timeout", wanted: true },
    });
    await loop.task?.done;
    expect(loop.task).toBeUndefined();
  } finally {
    rmSync(folder, { recursive: true });
  }
});
