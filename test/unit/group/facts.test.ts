/** Thresholds, at their exact edge; the stories of the rules are in rules.test.ts. */
import { expect, test } from "bun:test";
import { GROUP_RULES } from "../../../lib/fsm.ts";
import { assignedSet, decideGroup, nextDeadlineMs, primaryOf } from "../../../lib/group/facts.ts";
import { DEFAULT_POLICY, type GroupView, type NodeView } from "../../../lib/group/view.ts";
import { group, NOBODY } from "./words.ts";

const { nodeTimeoutMs, unreachablePrimaryTimeoutMs, caughtUpBytes } = DEFAULT_POLICY;

/** The rule that fires when one node differs by this much. */
function ruleWith(
  texts: readonly string[],
  id: number,
  change: Partial<NodeView>,
  extra = {},
): string {
  const view = group(texts, extra);
  const nodes = view.nodes.map((node) => (node.nodeId === id ? { ...node, ...change } : node));
  return decideGroup({ ...view, nodes })?.rule.id ?? "nothing";
}

test("a primary is silent from node_timeout on, to the millisecond", () => {
  const lost = ["1 primary gone", "2 secondary not-streaming"];
  expect(ruleWith(lost, 1, { reportAgeMs: nodeTimeoutMs })).toBe("R301");
  expect(ruleWith(lost, 1, { reportAgeMs: nodeTimeoutMs - 1 })).toBe("nothing");
});

test("a standby that receives holds back up to unreachable_primary_timeout", () => {
  const heard = ["1 primary gone", "2 secondary"];
  expect(ruleWith(heard, 1, { reportAgeMs: unreachablePrimaryTimeoutMs - 1 })).toBe("nothing");
  expect(ruleWith(heard, 1, { reportAgeMs: unreachablePrimaryTimeoutMs })).toBe("R301");
});

test("only a probe that was begun after the last report counts", () => {
  const lost = ["1 primary gone", "2 secondary not-streaming"];
  expect(ruleWith(lost, 1, { reportAgeMs: 5000, healthAgeMs: 4999 })).toBe("R301");
  expect(ruleWith(lost, 1, { reportAgeMs: 5000, healthAgeMs: 5000 })).toBe("nothing");
  expect(ruleWith(lost, 1, { reportAgeMs: 5000, healthAgeMs: undefined })).toBe("nothing");
});

test("a standby has caught up within caught_up_bytes", () => {
  const joins = ["1 wait_primary", "2 catchingup"];
  const lsn = (1n << 30n) - caughtUpBytes;
  expect(ruleWith(joins, 2, { lsn }, { sync: NOBODY })).toBe("R113");
  expect(ruleWith(joins, 2, { lsn: lsn - 1n }, { sync: NOBODY })).toBe("nothing");
  expect(ruleWith(joins, 2, { lsn: 1n << 31n }, { sync: NOBODY })).toBe("R113");
});

test("a standby is stalled from node_timeout on", () => {
  const both = ["1 primary", "2 secondary not-streaming"];
  expect(ruleWith(both, 2, { stalledMs: nodeTimeoutMs })).toBe("R202");
  expect(ruleWith(both, 2, { stalledMs: nodeTimeoutMs - 1 })).toBe("nothing");
});

test("an unknown timeline is never the same", () => {
  const joins = ["1 wait_primary other-timeline", "2 catchingup"];
  expect(ruleWith(joins, 2, { timeline: 2 }, { sync: NOBODY })).toBe("R113");
  const unknown = group(["1 wait_primary", "2 catchingup"], { sync: NOBODY });
  const nodes = unknown.nodes.map((node) => ({ ...node, timeline: 0 }));
  expect(decideGroup({ ...unknown, nodes })).toBeUndefined();
});

test("primaryOf: who is to write, else who is being demoted, else who was", () => {
  const of = (...texts: string[]): number | undefined => primaryOf(group(texts).nodes)?.nodeId;
  expect(of("1 demoted", "2 stop_replication>wait_primary")).toBe(2);
  expect(of("1 primary>draining", "2 secondary>prepare_promotion")).toBe(1);
  expect(of("1 primary>demoted", "2 prepare_promotion")).toBe(1);
  expect(of("1 catchingup", "2 secondary")).toBeUndefined();
});

test("a new set gets the next version, and the node that is to write", () => {
  const view = group(["1 draining>demote_timeout", "2 stop_replication"]);
  const rule = GROUP_RULES.find(({ id }) => id === "R304");
  const goals = new Map([
    [1, "demoted"],
    [2, "wait_primary"],
  ] as const);
  expect(rule && assignedSet(rule, 2, goals, view)).toEqual({
    version: 2,
    primaryId: 2,
    members: [],
    number: 0,
  });
});

test("nextDeadlineMs: the nearest threshold ahead, and never later than 10 s", () => {
  const at = (reportAgeMs: number, stalledMs = 0): number => {
    const view = group(["1 primary"]);
    const nodes = view.nodes.map((node) => ({ ...node, reportAgeMs, stalledMs }));
    return nextDeadlineMs({ ...view, nodes } as GroupView);
  };
  expect(at(1000)).toBe(nodeTimeoutMs - 1000);
  expect(at(1000, 3500)).toBe(500);
  expect(at(nodeTimeoutMs)).toBe(10_000);
  expect(at(unreachablePrimaryTimeoutMs - 7)).toBe(7);
});
