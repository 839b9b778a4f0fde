/**
 * What is broken on purpose, and must be found: the production files with one piece of text replaced,
 * or one of the model's own effects. A text that isn't there any more fails its mutant: it then needs a new one.
 */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LAWS, type Laws } from "./laws.ts";
import { SCENARIOS } from "./scenario.ts";
import { type Failure, replay, walk } from "./walk.ts";

type Effect = { [Key in keyof Laws]: Laws[Key] extends boolean ? Key : never }[keyof Laws];

export type Mutant = {
  readonly name: string;
  /** One of the production files, below lib/. */
  readonly file?: string;
  readonly from?: string;
  readonly to?: string;
  readonly effect?: Effect;
  /** The properties that may show it. */
  readonly breaks: readonly string[];
  /** Of the walks that look for it. */
  readonly nodes: number;
};

const text = (
  name: string,
  file: string,
  from: string,
  to: string,
  breaks: readonly string[],
  nodes = 3,
): Mutant => ({ name, file, from, to, breaks, nodes });
const effect = (name: string, of: Effect, breaks: readonly string[], nodes = 3): Mutant => ({
  name,
  effect: of,
  breaks,
  nodes,
});

const S1 = ["S1"];
const S2 = ["S2"];
const UNSAFE = ["S1", "S2"];
const STUCK = ["S3", "S4"];

export const MUTANTS: readonly Mutant[] = [
  // quorum arithmetic
  text(
    "an overlap of one standby fewer is enough",
    "group/quorum.ts",
    "members.length - Math.max(1, number) + 1",
    "members.length - Math.max(1, number)",
    UNSAFE,
  ),
  text(
    "sets assigned since are not considered",
    "group/quorum.ts",
    "return [inForce, ...since];",
    "return [inForce];",
    UNSAFE,
  ),
  text(
    "only the last assignment is remembered",
    "group/quorum.ts",
    "version >= (inForce?.version ?? 0)",
    "version < 0",
    UNSAFE,
  ),
  text(
    "a primary that may have committed alone is replaced",
    "group/quorum.ts",
    "(set.number > 0 || asynchronous)",
    "true",
    UNSAFE,
  ),
  text("an empty set needs no overlap", "group/quorum.ts", "set.members.length > 0 &&", "", UNSAFE),
  text(
    "a set is in force when one standby fewer has flushed",
    "group/quorum.ts",
    "members.filter(hasFlushed).length >= number",
    "members.filter(hasFlushed).length >= number - 1",
    S1,
  ),

  // elections
  text(
    "a standby that left the history is elected",
    "group/election.ts",
    "voters.filter((node) => isOnLineage(node, view))",
    "voters",
    UNSAFE,
    4,
  ),
  text(
    "standbys that still receive are counted",
    "group/election.ts",
    "PROMISED.includes(reported) && PROMISED.includes(goal)",
    'reported !== "init" && goal !== "init"',
    [...UNSAFE, ...STUCK],
  ),
  text(
    "what the winner lacks is not fetched",
    "group/election.ts",
    "source: complete(winner) ? undefined : source",
    "source: undefined",
    UNSAFE,
  ),
  text(
    "the only standby is promoted whatever it has",
    "group/election.ts",
    "return overlaps(possibleSets(view), new Set([node.nodeId]), isAsynchronous(view));",
    "return true;",
    UNSAFE,
  ),
  text(
    "WAL beyond a fork counts as part of the history",
    "group/history.ts",
    "return node.lsn <= at.forkLsn;",
    "return true;",
    UNSAFE,
    4,
  ),

  // rules
  text(
    "R304 opens writes before the old primary has stopped",
    "fsm.ts",
    'when: ["primaryStopped", "selfHealthy"]',
    'when: ["selfHealthy"]',
    S2,
  ),
  text(
    "R305 opens writes before the old primary was silent",
    "fsm.ts",
    'when: ["primarySilent", "writesFenced", "selfHealthy"]',
    'when: ["writesFenced", "selfHealthy"]',
    S2,
  ),
  text(
    "R305 opens writes before the fence has closed",
    "fsm.ts",
    'when: ["primarySilent", "writesFenced", "selfHealthy"]',
    'when: ["primarySilent", "selfHealthy"]',
    UNSAFE,
  ),
  text(
    "R303 opens for writes at once",
    "fsm.ts",
    'goals: { self: "stop_replication", primary: "demote_timeout" }',
    'goals: { self: "wait_primary", primary: "demoted" }',
    ["S2", "S3"],
  ),
  text(
    "R311 never fires: an old primary never comes back",
    "fsm.ts",
    'self: [is("demoted")]',
    'self: [is("maintenance")]',
    STUCK,
  ),
  text(
    "R322 never fires: nobody promises",
    "fsm.ts",
    'goals: { self: "report_lsn" },\n    why: "the primary is to be replaced',
    'goals: {},\n    why: "the primary is to be replaced',
    STUCK,
  ),
  text(
    "R326 never fires: whoever can't fetch tries for ever",
    "fsm.ts",
    'self: [goal("fast_forward")], primary: [goal(...LEAVING)], when: ["fetchFailed"]',
    'self: [goal("maintenance")], primary: [goal(...LEAVING)], when: ["fetchFailed"]',
    STUCK,
    4,
  ),
  text(
    "R329 never fires: losers of an election follow nobody",
    "fsm.ts",
    "self: [reported(...RECEIVING, ...PROMISED), goal(...PROMISED)]",
    'self: [goal("maintenance")]',
    STUCK,
  ),
  text(
    "R303 promotes an heir that lacks what the primary had when it stopped",
    "fsm.ts",
    'when: ["selfHealthy", "handedOver"]',
    'when: ["selfHealthy"]',
    UNSAFE,
  ),
  text(
    "R133 never fires: maintenance has no end",
    "fsm.ts",
    'self: [goal("maintenance")], primary: [goal(...OPEN)]',
    'self: [goal("prepare_maintenance")], primary: [goal(...OPEN)]',
    STUCK,
  ),
  text(
    "a transition's row is missing",
    "fsm.ts",
    '["join_secondary", "catchingup", "rejoin", "A primary is available, follow it"],',
    "",
    ["S3"],
  ),
  text(
    "a primary that says it stops counts as stopped",
    "group/facts.ts",
    "STOPPED_BY_GOAL.includes(reported) && confirmed && !pgRunning",
    "STOPPED_BY_GOAL.includes(reported) && confirmed",
    UNSAFE,
  ),

  // the keeper's steps, fence and report
  text(
    "no fence",
    "keeper/fence.ts",
    "if (!input.couldBeReplaced) return undefined;",
    "return undefined;",
    S2,
  ),
  text(
    "the fence is late",
    "keeper/fence.ts",
    "return heard + input.networkPartitionTimeoutMs;",
    "return heard + 3 * input.networkPartitionTimeoutMs;",
    S2,
  ),
  text(
    "a keeper that has just started goes by what it knew",
    "keeper/step.ts",
    'if (view.contact === "never")',
    'if (view.contact === "never" && view.fenced)',
    UNSAFE,
  ),
  text(
    "a fenced primary opens again on the goal it knew",
    "keeper/step.ts",
    'view.contact !== "fresh" &&',
    'view.contact === "never" &&',
    UNSAFE,
  ),
  text(
    "a frozen server counts as stopped",
    "keeper/report.ts",
    'postgres !== "down" || stopping',
    'postgres === "up" || stopping',
    UNSAFE,
  ),

  // the effects
  effect("a report that was overtaken, and knew another goal, is recorded", "acceptsLateReports", [
    ...UNSAFE,
    ...STUCK,
  ]),
  effect("contact counts from the answer, not from the report", "countsFromReceipt", S2),
  effect("a set is in force before its members have flushed", "trustsNewMembers", S1),
  effect("a set is in force before the walsenders have read it", "trustsOldSenders", UNSAFE, 4),
  effect("a promise is forgotten in a crash", "forgetsPromise", UNSAFE),
  effect("a promise is reported before the receiver has ended", "promisesEarly", UNSAFE),
  effect("a stop that doesn't wait for the standbys counts as orderly", "stopsAtOnce", UNSAFE),
  effect("a promotion stays on its timeline", "keepsTimeline", UNSAFE),
];

const LIB = join(import.meta.dir, "../../lib");
const COPIED = ["fsm.ts", "group", "keeper/step.ts", "keeper/fence.ts", "keeper/report.ts"];

/** The production functions of a copy with the replacement; they import nothing but one another. */
async function mutated(file: string, from: string, to: string): Promise<Laws> {
  const folder = mkdtempSync(join(tmpdir(), "pgaf-mutant-"));
  try {
    mkdirSync(join(folder, "keeper"));
    for (const name of COPIED) cpSync(join(LIB, name), join(folder, name), { recursive: true });
    const path = join(folder, file);
    const source = readFileSync(path, "utf8");
    const pieces = source.split(from);
    if (pieces.length !== 2) {
      throw new Error(
        `${file} has this ${pieces.length - 1} times, and must have it once: ${from}`,
      );
    }
    writeFileSync(path, pieces.join(to));
    const load = (name: string) => import(join(folder, name));
    const [fsm, explain, facts, history, quorum, step, fence, report] = await Promise.all(
      [
        "fsm.ts",
        "group/explain.ts",
        "group/facts.ts",
        "group/history.ts",
        "group/quorum.ts",
        "keeper/step.ts",
        "keeper/fence.ts",
        "keeper/report.ts",
      ].map(load),
    );
    const found = {
      ...fsm,
      ...explain,
      ...facts,
      ...history,
      ...quorum,
      ...step,
      ...fence,
      ...report,
    };
    const laws: Record<string, unknown> = { ...LAWS };
    for (const [name, value] of Object.entries(LAWS)) {
      if (typeof value === "function") laws[name] = found[name];
    }
    return laws as Laws;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export async function lawsOf({ file, from, to, effect: of }: Mutant): Promise<Laws> {
  if (of !== undefined) return { ...LAWS, [of]: true };
  return mutated(file ?? "", from ?? "", to ?? "");
}

const WALKS_MAX = 4000;

/** Looks for it in the scenarios, then in walks. @returns where it was found, and what it breaks; undefined: it survives */
export async function caughtBy(
  mutant: Mutant,
): Promise<{ where: string; failure: Failure } | undefined> {
  const laws = await lawsOf(mutant);
  const isIt = ({ message }: Failure): boolean => mutant.breaks.includes(message.slice(0, 2));
  for (const [name, run] of SCENARIOS) {
    const failure = replay(run, laws);
    if (failure && isIt(failure)) return { where: name, failure };
  }
  for (let seed = 1; seed <= WALKS_MAX; seed += 1) {
    const { failure } = walk(seed, { nodes: mutant.nodes }, laws);
    if (failure && isIt(failure)) return { where: `seed ${seed}`, failure };
  }
  return undefined;
}
