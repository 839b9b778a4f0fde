import { describe, expect, test } from "bun:test";
import { isOnLineage, nextTimeline, primaryAhead } from "../../../lib/group/history.ts";
import type { NodeView, Timeline } from "../../../lib/group/view.ts";
import { type Extra, FIRST, group } from "./words.ts";

/** 1 until 100, 2 until 200, 4 from then on; 3 was somebody's own. */
const HISTORY: readonly Timeline[] = [
  { timeline: 1, parent: 0, forkLsn: 0n },
  { timeline: 2, parent: 1, forkLsn: 100n },
  { timeline: 4, parent: 2, forkLsn: 200n },
];
const on = (timeline: number, lsn: bigint, history = HISTORY): boolean =>
  isOnLineage({ timeline, lsn }, { history });

describe("isOnLineage", () => {
  test("on the current timeline, wherever", () => {
    expect(on(4, 0n)).toBe(true);
    expect(on(4, 10_000n)).toBe(true);
  });

  test("on an older one, up to the point where the history left it", () => {
    expect(on(2, 200n)).toBe(true);
    expect(on(2, 201n)).toBe(false);
    expect(on(1, 100n)).toBe(true);
    expect(on(1, 101n)).toBe(false);
    expect(on(1, 150n)).toBe(false);
  });

  test("never on one that the history doesn't have, however far", () => {
    expect(on(3, 150n)).toBe(false);
    expect(on(5, 10_000n)).toBe(false);
  });

  test("an unknown timeline proves nothing; without a history there is none to leave", () => {
    expect(on(0, 0n)).toBe(false);
    expect(on(7, 5n, [])).toBe(true);
    expect(on(0, 5n, [])).toBe(false);
  });

  test("a history with a gap ends there", () => {
    expect(on(1, 1n, HISTORY.slice(2))).toBe(false);
    expect(on(2, 1n, HISTORY.slice(2))).toBe(true);
  });
});

describe("nextTimeline", () => {
  const next = (timeline: number, promotion?: Pick<Timeline, "timeline" | "forkLsn">) =>
    nextTimeline({ timeline, promotion }, { history: HISTORY });

  test("the one of its own promotion, where that left the current one", () => {
    expect(next(5, { timeline: 5, forkLsn: 300n })).toEqual({
      timeline: 5,
      parent: 4,
      forkLsn: 300n,
    });
  });

  test("a number may be left out: a promotion that never opened for writes had it", () => {
    expect(next(7, { timeline: 7, forkLsn: 300n })?.parent).toBe(4);
  });

  test("a promotion says nothing of a later timeline: it was restored to that one by hand", () => {
    expect(next(7, { timeline: 5, forkLsn: 300n })).toEqual({
      timeline: 7,
      parent: 4,
      forkLsn: 0n,
    });
    expect(next(7)).toEqual({ timeline: 7, parent: 4, forkLsn: 0n });
  });

  test("a promotion is known before its timeline is seen", () => {
    expect(next(4, { timeline: 5, forkLsn: 300n })?.timeline).toBe(5);
    expect(next(0, { timeline: 5, forkLsn: 300n })?.timeline).toBe(5);
  });

  test("none, when the history has it already", () => {
    expect(next(1, { timeline: 2, forkLsn: 100n })).toBeUndefined();
    expect(next(0)).toBeUndefined();
    expect(next(4, { timeline: 4, forkLsn: 200n })).toBeUndefined();
    expect(next(4)).toBeUndefined();
  });

  test("the first one begins nowhere else", () => {
    const first = nextTimeline({ timeline: 3, promotion: undefined }, { history: [] });
    expect(first).toEqual({ timeline: 3, parent: 0, forkLsn: 0n });
  });
});

describe("primaryAhead", () => {
  const ahead = (text: string, extra: Extra = {}): number | undefined =>
    primaryAhead(group([text, "2 secondary"], extra))?.nodeId;

  test("the primary takes writes on a timeline that the history lacks", () => {
    expect(ahead("1 primary")).toBeUndefined();
    for (const state of ["single", "wait_primary", "primary", "apply_settings"])
      expect({ state, id: ahead(`1 ${state} timeline-3`) }).toEqual({ state, id: 1 });
  });

  test("the group's first one", () => {
    expect(ahead("1 single", { history: [] })).toBe(1);
    expect(ahead("1 single timeline-0", { history: [] })).toBeUndefined();
  });

  test("on an older one it is not ahead", () => {
    expect(ahead("1 primary", { history: [FIRST, { ...FIRST, timeline: 2 }] })).toBeUndefined();
  });

  test("not while it's down, a standby, or to be replaced", () => {
    const inRecovery = (view: NodeView): NodeView => ({ ...view, inRecovery: true });
    const view = group(["1 primary timeline-3"]);
    expect(primaryAhead({ ...view, nodes: view.nodes.map(inRecovery) })).toBeUndefined();
    for (const text of [
      "1 primary timeline-3 down",
      "1 primary>draining timeline-3",
      "1 demote_timeout>primary timeline-3",
      "1 stop_replication>wait_primary timeline-3",
      "1 stop_replication timeline-3",
    ])
      expect({ text, id: ahead(text) }).toEqual({ text, id: undefined });
  });

  test("a standby is never the one, whatever it has done", () => {
    expect(primaryAhead(group(["1 primary", "2 secondary timeline-3 writable"]))).toBeUndefined();
  });
});
