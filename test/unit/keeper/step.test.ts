import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { NODE_STATES, STATE_TRAITS } from "../../../lib/fsm.ts";
import { type LocalView, nextStep, type Step } from "../../../lib/keeper/step.ts";

const SETTLED: LocalView = {
  state: "primary",
  goal: "primary",
  contact: "fresh",
  monitorIsStale: false,
  fenced: false,
  postgres: "up",
  dataReady: true,
  underWay: undefined,
  crashConsidered: true,
  adrift: false,
  backingOff: false,
};

/** `transition enableSync`, `wait`, `start`, … */
function stepText(change: Partial<LocalView>): string {
  const step: Step = nextStep({ ...SETTLED, ...change });
  return step.do === "transition" ? `${step.do} ${step.row[2]}` : step.do;
}
const why = (change: Partial<LocalView>): string => {
  const step = nextStep({ ...SETTLED, ...change });
  return step.do === "wait" ? step.why : "";
};

describe("nextStep", () => {
  test.each([
    ["a settled primary keeps its settings", {}, "settle"],
    ["the fence goes first", { fenced: true }, "fence"],
    [
      "the fence overtakes a transition",
      { fenced: true, goal: "wait_primary", underWay: "wait_primary" },
      "fence",
    ],
    ["a fence that closes is left alone", { fenced: true, underWay: "demote_timeout" }, "wait"],
    ["the fence needs no contact", { fenced: true, contact: "never" }, "fence"],
    ["a standby has no fence", { state: "secondary", goal: "secondary", fenced: true }, "settle"],
    ["a transition under way goes on", { goal: "wait_primary", underWay: "wait_primary" }, "wait"],
    [
      "a transition to another goal is given up",
      { goal: "draining", underWay: "wait_primary" },
      "abort",
    ],
    [
      "a stopped state stops what runs, without contact",
      { state: "demoted", goal: "demoted", contact: "never" },
      "stop",
    ],
    [
      "and what hangs",
      { state: "demote_timeout", goal: "demote_timeout", postgres: "hung" },
      "stop",
    ],
    ["but not at once again", { state: "demoted", goal: "demoted", backingOff: true }, "settle"],
    ["nothing is started before contact", { postgres: "down", contact: "never" }, "wait"],
    ["nor any transition", { goal: "wait_primary", contact: "never" }, "wait"],
    [
      "nothing is done for a monitor from the past",
      { goal: "wait_primary", monitorIsStale: true },
      "wait",
    ],
    [
      "a fenced primary opens only with contact",
      { state: "demote_timeout", postgres: "down", contact: "lost" },
      "wait",
    ],
    ["and then does", { state: "demote_timeout", postgres: "down" }, "transition resume"],
    [
      "one whose failover was called off opens only with contact",
      { state: "draining", postgres: "down", contact: "lost" },
      "wait",
    ],
    ["and then does, too", { state: "draining", postgres: "down" }, "transition resume"],
    [
      "also when it is to take another set, or is alone, by then",
      { state: "draining", goal: "apply_settings", postgres: "down" },
      "transition resume",
    ],
    [
      "a candidate that is to report again replays all that it has first",
      { state: "prepare_promotion", goal: "report_lsn" },
      "transition disconnect",
    ],
    ["a demotion needs none", { goal: "draining", contact: "lost" }, "transition drain"],
    ["a goal that nobody can reach waits", { state: "single", goal: "secondary" }, "wait"],
    ["a goal is tried again only later", { goal: "wait_primary", backingOff: true }, "wait"],
    [
      "an action that needs a server starts it first",
      { goal: "wait_primary", postgres: "down" },
      "start",
    ],
    [
      "one that doesn't goes on without",
      { goal: "draining", postgres: "down" },
      "transition drain",
    ],
    ["a crashed primary asks first", { postgres: "down", crashConsidered: false }, "wait"],
    ["and starts when told so", { postgres: "down" }, "start"],
    [
      "one that applies settings asks too",
      { state: "apply_settings", goal: "primary", postgres: "down", crashConsidered: false },
      "transition record",
    ],
    [
      "before it starts in order to apply them",
      { goal: "apply_settings", postgres: "down", crashConsidered: false },
      "wait",
    ],
    [
      "one that nobody can replace starts at once",
      { state: "wait_primary", goal: "wait_primary", postgres: "down", crashConsidered: false },
      "start",
    ],
    [
      "a crashed standby starts at once",
      { state: "secondary", goal: "secondary", postgres: "down", crashConsidered: false },
      "start",
    ],
    ["half a copy is never started", { postgres: "down", dataReady: false }, "wait"],
    [
      "nor is it promoted",
      { state: "prepare_promotion", goal: "stop_replication", dataReady: false },
      "wait",
    ],
    ["nor disconnected", { state: "catchingup", goal: "report_lsn", dataReady: false }, "wait"],
    [
      "but a new copy is made of it",
      { state: "demoted", goal: "catchingup", postgres: "down", dataReady: false },
      "transition rewindOrClone",
    ],
    [
      "a standby that is adrift joins again",
      { state: "catchingup", goal: "catchingup", adrift: true },
      "repair",
    ],
    [
      "and so does one with half a copy",
      { state: "catchingup", goal: "catchingup", postgres: "down", dataReady: false },
      "repair",
    ],
    [
      "but not at once again",
      { state: "catchingup", goal: "catchingup", adrift: true, backingOff: true },
      "wait",
    ],
    [
      "a hung one is stopped first",
      { state: "catchingup", goal: "catchingup", adrift: true, postgres: "hung" },
      "stop",
    ],
    [
      "a secondary is the monitor's to set back",
      { state: "secondary", goal: "secondary", adrift: true },
      "settle",
    ],
    [
      "one that has promised to receive nothing stays so",
      { state: "report_lsn", goal: "report_lsn", adrift: true },
      "settle",
    ],
    ["a start that failed waits", { postgres: "down", backingOff: true }, "wait"],
    [
      "a hung standby is stopped",
      { state: "secondary", goal: "secondary", postgres: "hung" },
      "stop",
    ],
    ["a hung primary is not, unless somebody takes over", { postgres: "hung" }, "wait"],
    [
      "a state without a server settles",
      { state: "init", goal: "init", postgres: "down" },
      "settle",
    ],
  ] as const)("%s", (_, change, outcome) => {
    expect(stepText(change)).toBe(outcome);
  });

  test("a missing row names both states", () => {
    expect(why({ state: "single", goal: "secondary" })).toBe(
      'there is no way from "single" to "secondary"',
    );
  });
});

const anyView = fc.record({
  state: fc.constantFrom(...NODE_STATES),
  goal: fc.constantFrom(...NODE_STATES),
  contact: fc.constantFrom("fresh", "lost", "never"),
  monitorIsStale: fc.boolean(),
  fenced: fc.boolean(),
  postgres: fc.constantFrom("up", "down", "hung"),
  dataReady: fc.boolean(),
  underWay: fc.option(fc.constantFrom(...NODE_STATES), { nil: undefined }),
  crashConsidered: fc.boolean(),
  adrift: fc.boolean(),
  backingOff: fc.boolean(),
});

test("whatever the view: a fenced primary does nothing but fence", () => {
  fc.assert(
    fc.property(anyView, (view) => {
      if (!view.fenced || !STATE_TRAITS[view.state].writes) return;
      expect(["fence", "wait"]).toContain(nextStep(view).do);
    }),
  );
});

test("whatever the view: without contact since its start a keeper only stops things", () => {
  fc.assert(
    fc.property(anyView, (view) => {
      const step = nextStep({ ...view, contact: "never" });
      expect(["fence", "abort", "stop", "wait"]).toContain(step.do);
    }),
  );
});

test("whatever the view: nothing is started from data that isn't complete", () => {
  fc.assert(
    fc.property(anyView, (view) => {
      expect(nextStep({ ...view, dataReady: false }).do).not.toBe("start");
    }),
  );
});
