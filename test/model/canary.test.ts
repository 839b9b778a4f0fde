/** The explorer must find what is broken on purpose; a mutant that survives fails its test. */
import { expect, test } from "bun:test";
import { GROUP_RULES, type GroupRule } from "../../lib/fsm.ts";
import { fenceAtMs } from "../../lib/keeper/fence.ts";
import { type LocalView, nextStep, type Step } from "../../lib/keeper/step.ts";
import { explore, played, settledGroup } from "./explorer.ts";
import { emptyWorld, LAWS, type Laws, type World } from "./world.ts";

const TIMEOUT_MS = 60_000;

/** The table with one row changed. */
const withRule = (id: string, change: Partial<GroupRule>): Laws => ({
  ...LAWS,
  rules: GROUP_RULES.map((rule) => (rule.id === id ? { ...rule, ...change } : rule)),
});
const without = (id: string, fact: string): Laws =>
  withRule(id, {
    when: (GROUP_RULES.find((rule) => rule.id === id)?.when ?? []).filter((name) => name !== fact),
  });
const withoutRule = (id: string): Laws => ({
  ...LAWS,
  rules: GROUP_RULES.filter((rule) => rule.id !== id),
});
const stepping = (step: (view: LocalView) => Step): Laws => ({ ...LAWS, nextStep: step });

const pair = (faultsLeft = 1, commitsLeft = 0): World =>
  settledGroup(emptyWorld(2, { faultsLeft, commitsLeft }));
const cutOff = (): World => played(pair(), ["node 1 is cut off from everybody", "time passes"]);
const crashed = (): World =>
  played(pair(), ["server 1 is killed", "node 1 reports", "the monitor decides"]);
const MUTANTS: readonly (readonly [name: string, laws: Laws, root: () => World, breaks: string])[] =
  [
    [
      "R301 promotes a standby that is not in sync",
      without("R301", "selfInSync"),
      asynchronous,
      "S1",
    ],
    [
      "R304 opens writes before the old primary has stopped",
      without("R304", "primaryStopped"),
      fencing,
      "S2",
    ],
    [
      "R305 opens writes before the old primary was silent",
      without("R305", "primarySilent"),
      frozen,
      "S2",
    ],
    [
      "a set is in force before its members have flushed",
      { ...LAWS, trustsNewMembers: true },
      behind,
      "S1",
    ],
    ["R201 leaves the set as it is", withoutSync("R201"), () => pair(1, 0), "S4"],
    [
      "a frozen server counts as stopped",
      { ...LAWS, frozenIsStopped: true },
      frozenAndCutOff,
      "S2",
    ],
    ["no fence", { ...LAWS, fenceAtMs: () => undefined }, cutOff, "S2"],
    ["the fence is late by a threshold", { ...LAWS, fenceAtMs: lateFence }, cutOff, "S2"],
    ["an overtaken report is recorded", { ...LAWS, acceptsLateReports: true }, heldUp, "S2"],
    ["a transition's row is missing", stepping(withoutRow("prepare_promotion")), crashed, "S3"],
    ["R311 is missing: an old primary never comes back", withoutRule("R311"), crashed, "S4"],
    ["R304 is missing: a stopped primary is never replaced", withoutRule("R304"), crashed, "S4"],
    [
      "R303 opens for writes at once",
      withRule("R303", { goals: { self: "wait_primary", primary: "demoted" } }),
      crashed,
      "S3",
    ],
  ];

test.each(MUTANTS)(
  "%s",
  (_, laws, root, breaks) => {
    const outcome = explore(root(), laws, { statesMax: 40_000 });
    console.log(`  ${outcome.states} worlds: ${outcome.broken?.split("\n")[0]}`);
    expect(outcome.broken?.slice(0, breaks.length)).toBe(breaks);
  },
  TIMEOUT_MS,
);

/** Nothing waits for the standby, as the operator has chosen. */
function asynchronous(): World {
  return settledGroup(emptyWorld(2, { quorum: false, faultsLeft: 1, commitsLeft: 1 }));
}
/** The primary has committed alone, and the standby is about to come back. */
function behind(): World {
  return played(pair(2, 1), [
    "server 2 is killed",
    "node 2 reports",
    "the monitor decides",
    "node 1 reports",
    "keeper 1 takes a step",
    "keeper 1 takes a step",
    "node 1 reports",
    "node 2 reports",
    "keeper 2 takes a step",
    "keeper 2 takes a step",
    "keeper 2 takes a step",
    "node 2 reports",
    "the monitor decides",
    "node 2 reports",
  ]);
}
/** R301 while the server is frozen, before the keeper has heard of it. */
function frozen(): World {
  return played(pair(), ["server 1 freezes", "node 1 reports", "the monitor decides"]);
}
/** As above, and the keeper fences itself before it hears of the failover. */
function frozenAndCutOff(): World {
  const takeOver = Array.from({ length: 3 }, () => "keeper 2 takes a step");
  return played(pair(2), [
    "server 1 freezes",
    "node 1 reports",
    "node 1 is cut off from the monitor",
    "the monitor decides",
    "node 2 reports",
    ...takeOver,
    "node 2 reports",
    "the monitor decides",
    "node 2 reports",
    ...takeOver,
  ]);
}
/** An isolated primary is failed over while no keeper runs there; then one starts, and fences it. */
function fencing(): World {
  return played(pair(2), [
    "node 1 is cut off from everybody",
    "keeper 1 is killed",
    "time passes",
    "time passes",
    "the monitor decides",
    "keeper 1 starts",
    "time passes",
  ]);
}
/** A fenced primary says that it has stopped, and is believed much later, when it's open again. */
function heldUp(): World {
  const step = "keeper 1 takes a step";
  return played(pair(3), [
    "node 1 is cut off from everybody",
    "time passes",
    step,
    step,
    "node 1 reaches the monitor again",
    "the nodes reach one another again",
    "a report of node 1 is held up",
    "node 1 reports",
    step,
    step,
    step,
    step,
    "node 1 reports",
    "server 1 freezes",
    "node 1 reports",
    "the monitor decides",
  ]);
}
function withoutSync(id: string): Laws {
  const rule = GROUP_RULES.find((row) => row.id === id);
  const { sync: _, ...rest } = rule as GroupRule;
  return { ...LAWS, rules: GROUP_RULES.map((row) => (row.id === id ? rest : row)) };
}
function lateFence(input: Parameters<typeof fenceAtMs>[0]): number | undefined {
  const at = fenceAtMs(input);
  return at === undefined ? undefined : at + 5000;
}
function withoutRow(to: string): (view: LocalView) => Step {
  return (view) => {
    const step = nextStep(view);
    return step.do === "transition" && step.row[1] === to
      ? { do: "wait", why: `there is no way from "${view.state}" to "${to}"` }
      : step;
  };
}
