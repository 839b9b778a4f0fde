/** Hazards that span several modules, as test/traps.md numbers them. */
import { describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { makeNodeDirectory, nodePaths, saveConfig } from "../../lib/config.ts";
import {
  canTakeWrites,
  GROUP_RULES,
  NODE_STATES,
  type NodeState,
  PROMISED,
} from "../../lib/fsm.ts";
import { elect, isSafe } from "../../lib/group/election.ts";
import { blockedReason } from "../../lib/group/explain.ts";
import { decideGroup, type GroupDecision, isPrimaryDown } from "../../lib/group/facts.ts";
import { pendingAfter } from "../../lib/group/quorum.ts";
import { DURABILITIES, type GroupView } from "../../lib/group/view.ts";
import { SETTLED } from "../../lib/keeper/heartbeat.ts";
import { statusOf } from "../../lib/keeper/setup.ts";
import { newState, saveState } from "../../lib/keeper/state_file.ts";
import { MIGRATIONS } from "../../lib/monitor/schema/migrations.ts";
import { BOTH, decided, FIRST, group, NOBODY, SECOND, setOf } from "./group/words.ts";

// ---------------------------------------------------------------- the rules on any group

const WORDS = ["", "down", "gone", "silent", "stale", "unreachable", "stalled", "behind-9", "timeline-2", "writable",
  "no-quorum", "priority-0", "priority-90", "start-failed", "promised-9000", "passed-over"]; // biome-ignore format: words

const IN_CHARGE = [
  ...NODE_STATES.filter(canTakeWrites),
  "draining",
  "demote_timeout",
] as NodeState[];
const anyState = fc.constantFrom(...NODE_STATES);
const anyNode = fc.record({
  reported: anyState,
  goal: anyState,
  isConverged: fc.boolean(),
  word: fc.constantFrom(...WORDS),
});
const anyGroup = fc
  .record({
    nodes: fc.array(anyNode, { minLength: 1, maxLength: 4 }),
    durability: fc.constantFrom(...DURABILITIES),
    members: fc.subarray([1, 2, 3, 4]),
    number: fc.nat({ max: 2 }),
    primaryId: fc.integer({ min: 1, max: 4 }),
    isKnown: fc.boolean(),
    request: fc.option(
      fc.record({ target: fc.constantFrom(undefined, 1, 2), allowDataLoss: fc.boolean() }),
      {
        nil: undefined,
      },
    ),
    disputed: fc.boolean(),
    numberSyncStandbys: fc.nat({ max: 2 }),
  })
  .map(
    ({
      nodes,
      durability,
      members,
      number,
      primaryId,
      isKnown,
      request,
      disputed,
      numberSyncStandbys,
    }) => {
      const sync = setOf(members, Math.min(number, members.length), 2, primaryId);
      let inCharge = 0;
      const texts = nodes.map(({ reported, goal, isConverged, word }, at) => {
        // a group has one node that is to take writes, or that is being replaced: the rules never make another
        const own = IN_CHARGE.includes(goal) && ++inCharge > 1 ? "demoted" : goal;
        return `${at + 1} ${isConverged ? own : reported}>${own} ${word}`.trim();
      });
      return group(texts, {
        sync,
        inForce: isKnown ? sync : undefined,
        history: [FIRST],
        request,
        disputed,
        settings: { durability, numberSyncStandbys },
      });
    },
  );

/** What the monitor writes down of a decision. */
function after(
  view: GroupView,
  { rule, selfId, goals, sync, fetchFrom }: GroupDecision,
): GroupView {
  const nodes = view.nodes
    .filter(({ nodeId }) => !(rule.forget && nodeId === selfId))
    .map((node) => ({
      ...node,
      goal: goals.get(node.nodeId) ?? node.goal,
      fetchFrom: goals.has(node.nodeId) ? fetchFrom : node.fetchFrom,
      passedOver: node.passedOver || (rule.passOver === true && node.nodeId === selfId),
    }));
  return sync ? { ...view, nodes, sync, pending: pendingAfter(view, sync) } : { ...view, nodes };
}

/** All that the rules make of a group before anybody reports anything new. */
function settled(view: GroupView): { view: GroupView; rules: string[] } {
  const rules: string[] = [];
  for (let at = view; rules.length < 8 + 4 * view.nodes.length; ) {
    const decision = decideGroup(at);
    if (decision === undefined) return { view: at, rules };
    rules.push(decision.rule.id);
    at = after(at, decision);
  }
  return { view, rules: [...rules, "and so on"] };
}

const inChargeOf = ({ nodes }: GroupView): number =>
  nodes.filter(({ goal }) => IN_CHARGE.includes(goal)).length;

describe("whatever the group", () => {
  test("the rules come to an end before anybody reports again", () => {
    fc.assert(
      fc.property(anyGroup, (view) => {
        expect(settled(view).rules.at(-1)).not.toBe("and so on");
      }),
      { numRuns: 3000 },
    );
  });

  test("one node at most is told to take writes, or is being replaced", () => {
    fc.assert(
      fc.property(anyGroup, (view) => {
        expect(inChargeOf(settled(view).view)).toBeLessThanOrEqual(1);
      }),
      { numRuns: 3000 },
    );
  });

  test("there is always something to say of what is in the way, a primary or not", () => {
    fc.assert(
      fc.property(anyGroup, (view) => {
        expect(() => blockedReason(view)).not.toThrow();
      }),
      { numRuns: 1000 },
    );
  });
});

// ---------------------------------------------------------------- a node that is left alone

const ALONE = { sync: NOBODY };

test("of a node that is left alone only a first one, or one that takes writes, becomes single", () => {
  const single = GROUP_RULES.filter(({ goals }) => Object.values(goals).includes("single"));
  expect(single.map(({ id }) => id)).toEqual(["R101", "R104"]);
  const may: readonly NodeState[] = ["init", "wait_primary", "primary", "apply_settings"];
  for (const state of NODE_STATES.filter((each) => !may.includes(each) && each !== "dropped")) {
    for (const word of ["", " down", " gone", " start-failed"]) {
      const text = `1 ${state}${word}`;
      expect({ text, rule: decided([text], ALONE).match(/single/) }).toEqual({ text, rule: null });
    }
  }
});

test("R104: the only node that takes writes goes on, though it has priority 0", () => {
  for (const state of ["wait_primary", "primary", "apply_settings"] as const)
    expect(decided([`1 ${state} priority-0`], ALONE)).toBe("R104: 1 single");
});

// ---------------------------------------------------------------- health and time

test("a report within node_timeout goes before any probe", () => {
  const view = group(["1 primary", "2 secondary not-streaming"]);
  const nodes = view.nodes.map((node) => ({ ...node, health: "bad" as const, healthAgeMs: 0 }));
  const refused = { ...view, nodes };
  expect(refused.nodes.map((node) => isPrimaryDown(node, refused))).toEqual([false, false]);
  expect(decideGroup(refused)).toBeUndefined();
});

test("no other node's word moves the moment at which a silent primary is replaced", () => {
  const others = [
    "",
    " down",
    " gone",
    " silent",
    " unreachable",
    " stalled",
    " told-0",
    " timeline-2",
  ];
  const pair = ["1 primary>demote_timeout gone", "2 stop_replication"];
  for (const word of others)
    expect(decided([...pair, `3 demoted${word}`])).toBe(
      "R305: 1 demoted, 2 wait_primary; sync nobody for 2",
    );
});

// ---------------------------------------------------------------- a failover under way

test("R302: a candidate that is there keeps a failover from being called off, whatever its connection says", () => {
  for (const word of ["", " not-streaming", " stalled", " priority-90"]) {
    const candidate = `2 secondary>prepare_promotion${word}`;
    expect(decided(["1 primary>draining down", candidate])).toBe("nothing");
  }
});

test("what an operator allows to be lost lets no server in that has left the history", () => {
  const request = { target: undefined, allowDataLoss: true };
  const pair = group(["1 primary down", "2 secondary timeline-2"], { request });
  const [primary, standby] = pair.nodes;
  expect(primary && standby && isSafe(standby, pair, primary)).toBe(false);
  const election = [
    "1 primary>draining gone",
    "2 report_lsn timeline-2 ahead-9",
    "3 report_lsn behind-9",
  ];
  const view = group(election, { request, sync: BOTH });
  expect(elect(view, view.nodes[0])?.winner.nodeId).toBe(3);
});

test("R122: a standby that was removed at once leaves the set, though nobody's goal changes", () => {
  expect(decided(["1 primary", "2 secondary"], { sync: BOTH })).toBe(
    "R122: 1 apply_settings; sync 1 of 2 for 1",
  );
});

test("R311: the old primary waits for the one that may have commits of its own, for as long as it's away", () => {
  const lost = ["1 demoted down", "2 wait_primary gone timeline-2"];
  const extra = { sync: setOf([], 0, 2, 2), history: [FIRST, SECOND] };
  expect(decided(lost, extra)).toBe("nothing");
  expect(blockedReason(group(lost, extra))).toContain('node 2 "node_2" is down');
});

// ---------------------------------------------------------------- lists and files

test("the schema's lists of states are those of the tables", () => {
  const schema = MIGRATIONS.join("");
  const word = "'[a-z_]+'";
  const lists = [
    ...schema.matchAll(new RegExp(`state\\s+(?:not )?in \\((${word}(?:,\\s*${word})*)\\)`, "g")),
  ].map(([, list = ""]) => list.replaceAll(/['\s]/g, "").split(","));
  expect(lists.length).toBeGreaterThan(8);
  expect(lists.flat().filter((state) => !NODE_STATES.includes(state as NodeState))).toEqual([]);
  const writers = NODE_STATES.filter(canTakeWrites);
  const waiting = ["report_lsn", "join_secondary"];
  const chosen = ["prepare_promotion", "stop_replication", "fast_forward"];
  const known = [
    writers,
    [...writers, "draining", "demote_timeout", ...chosen],
    [...PROMISED, "stop_replication"],
    PROMISED.filter((state) => state !== "prepare_promotion"),
    ["secondary", "catchingup", ...waiting],
    waiting,
    chosen,
    ["init", "wait_standby"],
    ["catchingup", "wait_primary", "fast_forward"], // goals that wait for a position
    ["primary", "apply_settings"], // who can hand over
    ["draining", "demote_timeout", "demoted"], // who is to be stopped
    ["secondary", "catchingup", "demoted"], // who can be left alone
    SETTLED, // who may say its report in short
  ].map((states) => [...states].toSorted().join());
  expect(
    lists.map((list) => list.toSorted().join()).filter((list) => !known.includes(list)),
  ).toEqual([]);
});

test("asking a node for its status changes none of its files", () => {
  const folder = mkdtempSync(join(tmpdir(), "pgaf-status-"));
  const before = process.env["XDG_DATA_HOME"];
  process.env["XDG_DATA_HOME"] = folder;
  try {
    const pgdata = join(folder, "data");
    const paths = nodePaths(pgdata);
    makeNodeDirectory(paths);
    saveConfig(paths.keeperConfig, {
      ...{
        version: 1,
        pgdata,
        pgport: 5432,
        pgctl: "/bin/pg_ctl",
        nodename: "localhost",
        auth: "trust",
      },
      ...{
        formation: "default",
        group: 0,
        monitor: "postgres://m/m",
        candidatePriority: 50,
        replicationQuorum: true,
      },
    });
    saveState(paths.state, {
      ...newState(),
      nodeId: 1,
      groupId: 0,
      state: "secondary",
      goal: "secondary",
    });
    const all = (): unknown =>
      readdirSync(folder, { recursive: true })
        .map(String)
        .toSorted()
        .map((name) => [
          name,
          statSync(join(folder, name)).mtimeMs,
          statSync(join(folder, name)).ino,
        ]);
    const files = all();
    expect(statusOf(pgdata).keeper).toMatchObject({ pid: undefined, state: "secondary" });
    expect(all()).toEqual(files);
  } finally {
    if (before === undefined) delete process.env["XDG_DATA_HOME"];
    else process.env["XDG_DATA_HOME"] = before;
    rmSync(folder, { recursive: true });
  }
});
