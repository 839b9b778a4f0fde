/** The two tables as data: what they promise whoever reads them, and their golden print. */
import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  ACTIONS,
  canTakeWrites,
  decide,
  FACTS,
  GROUP_RULES,
  KEEPER_TRANSITIONS,
  type Match,
  NODE_STATES,
  PROMISED,
  SELF_ASSIGNED,
  STATE_TRAITS,
  transitionFor,
} from "../../lib/fsm.ts";

const GOLDEN = join(import.meta.dir, "../golden/fsm.txt");

const matchText = ({ at, states }: Match): string =>
  `${at === "both" ? "is" : at} ${states.join("|")}`;
const matchesText = (matches: readonly Match[]): string => matches.map(matchText).join(" & ");

function printed(): string {
  const rules = GROUP_RULES.map((rule) =>
    [
      rule.id,
      `self ${matchesText(rule.self)}`,
      ...(rule.primary ? [`primary ${matchesText(rule.primary)}`] : []),
      ...(rule.when.length > 0 ? [`when ${rule.when.join(" ")}`] : []),
      `=> ${Object.entries(rule.goals)
        .map(([who, goal]) => `${who} ${goal}`)
        .concat(
          rule.sync ? ["sync"] : [],
          rule.forget ? ["forget"] : [],
          rule.passOver ? ["passOver"] : [],
        )
        .join(", ")}`,
      `# ${rule.why}`,
    ].join("; "),
  );
  const transitions = KEEPER_TRANSITIONS.map(
    ([from, to, action, why]) => `${from} -> ${to}: ${action} # ${why}`,
  );
  const alone = SELF_ASSIGNED.map(([from, to]) => `${from} -> ${to}: by itself, the fence`);
  return `${[...rules, "", ...transitions, ...alone].join("\n")}\n`;
}

test("the tables are as test/golden/fsm.txt prints them; UPDATE=1 rewrites it", () => {
  if (process.env["UPDATE"] === "1") writeFileSync(GOLDEN, printed());
  expect(printed()).toBe(readFileSync(GOLDEN, "utf8"));
});

test("every rule has an id of its own, in ascending order, and says why", () => {
  const ids = GROUP_RULES.map(({ id }) => id);
  expect(ids).toEqual([...new Set(ids)].toSorted());
  expect(GROUP_RULES.filter(({ why }) => why.length < 10)).toEqual([]);
});

test("every fact is read by some rule, and every rule reads only facts there are", () => {
  const read = new Set(
    GROUP_RULES.flatMap(({ when }) => when.map((name) => name.replace("!", ""))),
  );
  expect([...read].toSorted()).toEqual([...FACTS].toSorted());
});

test("no rule reads a primary's fact without naming a primary, or gives one a goal", () => {
  const needsPrimary = /^!?(primary|sameTimeline|caughtUp|selfSafe)/;
  const wrong = GROUP_RULES.filter(
    ({ primary, when, goals }) =>
      primary === undefined && (goals.primary || when.some((fact) => needsPrimary.test(fact))),
  );
  expect(wrong).toEqual([]);
});

test("every action is named by some transition, and each pair has one row", () => {
  expect([...new Set(KEEPER_TRANSITIONS.map(([, , action]) => action))].toSorted()).toEqual(
    [...ACTIONS].toSorted(),
  );
  const pairs = KEEPER_TRANSITIONS.map(([from, to]) => `${from} ${to}`);
  expect(pairs).toEqual([...new Set(pairs)]);
  for (const row of KEEPER_TRANSITIONS) expect(transitionFor(row[0], row[1])).toBe(row);
});

test("transitionFor: no row to where a node is already, nor back from dropped", () => {
  for (const state of NODE_STATES) {
    expect(transitionFor(state, state)).toBeUndefined();
    expect(transitionFor("dropped", state)).toBeUndefined();
    if (state !== "dropped") expect(transitionFor(state, "dropped")?.[2]).toBe("stop");
  }
});

test("PROMISED: standbys that receive nothing from a primary, in no state that follows one", () => {
  for (const state of PROMISED) expect(STATE_TRAITS[state].role).toBe("standby");
  expect(PROMISED).not.toContain("catchingup");
  expect(PROMISED).not.toContain("secondary");
});

test("a fence closes each state that others can end: all that take writes, but single", () => {
  expect(SELF_ASSIGNED.map(([from]) => from).toSorted()).toEqual(
    NODE_STATES.filter((state) => canTakeWrites(state) && state !== "single").toSorted(),
  );
});

test("no way leads from a standby to writes but through stop_replication, on a new timeline", () => {
  const standby = (state: (typeof NODE_STATES)[number]) => STATE_TRAITS[state].role === "standby";
  const shortcuts = KEEPER_TRANSITIONS.filter(([from, to]) => standby(from) && canTakeWrites(to));
  expect(shortcuts).toEqual([]);
});

test("states that take writes run a primary; a stopped state has no role", () => {
  for (const state of NODE_STATES) {
    const { postgres, role, writes } = STATE_TRAITS[state];
    if (writes)
      expect({ state, postgres, role }).toEqual({ state, postgres: "up", role: "primary" });
    if (postgres !== "up") expect({ state, role }).toEqual({ state, role: "none" });
  }
  expect(NODE_STATES.filter(canTakeWrites)).toEqual([
    "single",
    "wait_primary",
    "primary",
    "apply_settings",
  ]);
});

test("decide: a row that takes part in a change of the set holds without a new goal", () => {
  const when = ["setDiffers"] as const;
  const rules = [{ id: "A", self: [], when, goals: {}, why: "a new set" }];
  const self = { nodeId: 1, reported: "primary", goal: "primary" } as const;
  expect(decide([{ self, primary: undefined, facts: new Set(when) }], rules)?.goals.size).toBe(0);
  expect(decide([{ self, primary: undefined, facts: new Set() }], rules)).toBeUndefined();
});

test("decide: the row further up wins, and a row that would change nothing is passed over", () => {
  const rules = [
    { id: "A", self: [], when: [], goals: { self: "secondary" as const }, why: "first" },
    { id: "B", self: [], when: [], goals: { self: "catchingup" as const }, why: "second" },
  ];
  const subject = (goal: "secondary" | "catchingup") => ({
    self: { nodeId: 1, reported: goal, goal },
    primary: undefined,
    facts: new Set<never>(),
  });
  expect(decide([subject("catchingup")], rules)?.rule.id).toBe("A");
  expect(decide([subject("secondary")], rules)?.rule.id).toBe("B");
  expect(decide([], rules)).toBeUndefined();
});
