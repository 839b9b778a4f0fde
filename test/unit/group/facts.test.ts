/** Thresholds, at their exact edge; the stories of the rules are in rules.test.ts. */
import { describe, expect, test } from "bun:test";
import { ELECTION_PATIENCE_MS } from "../../../lib/group/election.ts";
import {
  assignedSet,
  decideGroup,
  isDisputed,
  isForked,
  nextDeadlineMs,
  primaryOf,
} from "../../../lib/group/facts.ts";
import { DEFAULT_POLICY, type GroupView, type NodeView } from "../../../lib/group/view.ts";
import { BOTH, type Extra, FIRST, group, LSN, NOBODY, SECOND, setOf } from "./words.ts";

const { nodeTimeoutMs, unreachablePrimaryTimeoutMs, caughtUpBytes } = DEFAULT_POLICY;

/** A group in which one node differs by this much. */
function groupWith(
  texts: readonly string[],
  id: number,
  change: Partial<NodeView>,
  extra: Extra = {},
): GroupView {
  const view = group(texts, extra);
  return {
    ...view,
    nodes: view.nodes.map((node) => (node.nodeId === id ? { ...node, ...change } : node)),
  };
}
const ruleWith = (...args: Parameters<typeof groupWith>): string =>
  decideGroup(groupWith(...args))?.rule.id ?? "nothing";

/** How long after its last contact an isolated primary has stopped. */
const CLOSED_MS = DEFAULT_POLICY.networkPartitionTimeoutMs + DEFAULT_POLICY.fenceStopTimeoutMs;

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
  const lsn = LSN - caughtUpBytes;
  expect(ruleWith(joins, 2, { lsn }, { sync: NOBODY })).toBe("R113");
  expect(ruleWith(joins, 2, { lsn: lsn - 1n }, { sync: NOBODY })).toBe("nothing");
  expect(ruleWith(joins, 2, { lsn: LSN + 1n }, { sync: NOBODY })).toBe("R113");
});

test("a standby that isn't heard of is stalled when the primary has not sent to it for node_timeout", () => {
  const both = ["1 primary", "2 secondary mute"];
  expect(ruleWith(both, 2, { notSentToMs: nodeTimeoutMs })).toBe("R202");
  expect(ruleWith(both, 2, { notSentToMs: nodeTimeoutMs - 1 })).toBe("nothing");
  const heard = ["1 primary", "2 secondary"];
  expect(ruleWith(heard, 2, { notSentToMs: nodeTimeoutMs })).toBe("nothing");
});

test("a standby is stalled from node_timeout on", () => {
  const both = ["1 primary", "2 secondary not-streaming"];
  expect(ruleWith(both, 2, { stalledMs: nodeTimeoutMs })).toBe("R202");
  expect(ruleWith(both, 2, { stalledMs: nodeTimeoutMs - 1 })).toBe("nothing");
});

test("an unknown timeline is never the same", () => {
  const joins = ["1 wait_primary timeline-0", "2 catchingup timeline-0"];
  expect(decideGroup(group(joins, { sync: NOBODY }))).toBeUndefined();
});

test("a fence has closed its timeout, and the time to stop, after the candidate's promise", () => {
  const opens = ["1 primary>demote_timeout gone", "2 stop_replication"];
  const strict: Extra = { settings: { strictFencing: true } };
  expect(ruleWith(opens, 2, { promisedMs: CLOSED_MS }, strict)).toBe("R305");
  expect(ruleWith(opens, 2, { promisedMs: CLOSED_MS - 1 }, strict)).toBe("nothing");
  expect(ruleWith(opens, 2, { promisedMs: undefined }, strict)).toBe("nothing");
});

test("asynchronous commits are acknowledged by the old primary alone: only its fence counts", () => {
  const opens = ["1 primary>demote_timeout gone", "2 stop_replication"];
  const extra: Extra = { sync: setOf([2], 0), settings: { durability: "performance" } };
  expect(ruleWith(opens, 2, { promisedMs: CLOSED_MS - 1 }, extra)).toBe("nothing");
  expect(ruleWith(opens, 2, { promisedMs: CLOSED_MS }, extra)).toBe("R305");
});

test("primaryOf: who is to write, else who is being demoted, else who was", () => {
  const of = (...texts: string[]): number | undefined => primaryOf(group(texts).nodes)?.nodeId;
  expect(of("1 demoted", "2 stop_replication>wait_primary")).toBe(2);
  expect(of("1 primary>draining", "2 secondary>prepare_promotion")).toBe(1);
  expect(of("1 primary>demoted", "2 prepare_promotion")).toBe(1);
  expect(of("1 catchingup", "2 secondary")).toBeUndefined();
});

describe("isForked", () => {
  const forked = (text: string, extra: Extra = {}): boolean =>
    group([text], extra).nodes.some((node) => isForked(node, group([text], extra)));

  test("a standby that runs as a primary, or is on a timeline of its own", () => {
    expect(forked("2 secondary")).toBe(false);
    expect(forked("2 secondary writable")).toBe(true);
    expect(forked("2 catchingup timeline-3")).toBe(true);
    expect(forked("2 catchingup ahead-1", { history: [FIRST, SECOND] })).toBe(true);
  });

  test("what isn't known, and what a promotion has made, is no fork", () => {
    expect(forked("2 secondary timeline-0")).toBe(false);
    expect(forked("2 secondary timeline-2 down")).toBe(false);
    expect(forked("2 secondary timeline-2 silent")).toBe(false);
    expect(forked("2 stop_replication timeline-2")).toBe(false);
  });
});

test("isDisputed: a fork, and no primary that goes on", () => {
  const of = (...texts: string[]): boolean => isDisputed(group(texts));
  expect(of("1 primary", "2 secondary timeline-2")).toBe(false);
  expect(of("1 primary down", "2 secondary timeline-2")).toBe(true);
  expect(of("1 primary gone", "2 secondary timeline-2")).toBe(true);
  expect(of("1 primary down", "2 secondary")).toBe(false);
});

test("assignedSet: the next version, for the node that is to write", () => {
  const view = group(["1 draining>demote_timeout", "2 stop_replication"]);
  const goals = new Map([
    [1, "demoted"],
    [2, "wait_primary"],
  ] as const);
  expect(assignedSet(goals, view)).toEqual(setOf([], 0, 2, 2));
  expect(assignedSet(new Map(), view)).toEqual(setOf([], 0, 2, 1));
});

test("a promotion that may lose commits says how many bytes", () => {
  const noteOf = (texts: readonly string[], extra: Extra): string | undefined =>
    decideGroup(group(texts, extra))?.note;
  const lost = ["1 primary down", "2 secondary behind-100"];
  const asynchronous: Extra = { sync: setOf([2], 0), settings: { durability: "performance" } };
  expect(noteOf(lost, asynchronous)).toBe(
    "the old primary's last known position is 100 bytes ahead: commits in them are lost",
  );
  const allowed: Extra = { inForce: undefined, request: { target: 2, allowDataLoss: true } };
  expect(noteOf(lost, allowed)).toContain("100 bytes ahead");
  expect(noteOf(lost, {})).toBeUndefined();
});

describe("nextDeadlineMs", () => {
  const at = (change: Partial<NodeView>, text = "1 primary"): number =>
    nextDeadlineMs(groupWith([text], 1, change));

  test("the nearest threshold ahead, and never later than 10 s", () => {
    expect(at({ reportAgeMs: 1000 })).toBe(nodeTimeoutMs - 1000);
    expect(at({ reportAgeMs: 1000, stalledMs: 3500 })).toBe(500);
    expect(at({ reportAgeMs: nodeTimeoutMs })).toBe(10_000);
    expect(at({ reportAgeMs: unreachablePrimaryTimeoutMs - 7 })).toBe(7);
  });

  test("an election waits, a fence closes, a fetch takes too long", () => {
    expect(at({ promisedMs: ELECTION_PATIENCE_MS - 3 }, "1 report_lsn")).toBe(3);
    expect(at({ promisedMs: CLOSED_MS - 5 }, "1 stop_replication")).toBe(5);
    const goalAgeMs = DEFAULT_POLICY.fastForwardTimeoutMs - 9;
    expect(at({ goalAgeMs }, "1 report_lsn>fast_forward")).toBe(9);
    expect(at({ goalAgeMs }, "1 report_lsn")).toBeGreaterThan(9);
  });
});

test("R322: whoever may still receive is asked, one decision after the other", () => {
  const texts = ["1 primary>draining down", "2 secondary", "3 secondary"];
  expect(decideGroup(group(texts, { sync: BOTH }))?.selfId).toBe(2);
  const [primary, , third] = texts as [string, string, string];
  const next = [primary, "2 secondary>report_lsn", third];
  expect(decideGroup(group(next, { sync: BOTH }))?.selfId).toBe(3);
});
