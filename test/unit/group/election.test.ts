/** Who is promoted, and when nobody may be. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  chosenOf,
  ELECTION_PATIENCE_MS,
  elect,
  hasFailedToFetch,
  hasFetched,
  hasPromised,
  isElectable,
  isSafe,
  standbysOf,
} from "../../../lib/group/election.ts";
import type { NodeView } from "../../../lib/group/view.ts";
import { BOTH, type Extra, FIRST, group, NOBODY, SECOND, SYNC, setOf } from "./words.ts";

const PRIMARY = "1 primary>draining down";
const TWO: Extra = { sync: BOTH };
const ASYNC: Extra = { sync: setOf([2, 3], 0), settings: { durability: "performance" } };
const LOSS: Extra = { request: { target: undefined, allowDataLoss: true } };

/** `2`, `2 from 3`, or `nobody`: among these, node 1 is the primary. */
function elected(texts: readonly string[], extra: Extra = TWO): string {
  const view = group([PRIMARY, ...texts], extra);
  const { winner, source } = elect(view, view.nodes[0]) ?? {};
  if (winner === undefined) return "nobody";
  return source ? `${winner.nodeId} from ${source.nodeId}` : `${winner.nodeId}`;
}

function electable(texts: readonly string[], extra: Extra = TWO): boolean {
  const view = group(["1 primary down", ...texts], extra);
  return isElectable(view, view.nodes[0]);
}

function safe(text: string, extra: Extra = {}, primary = "1 primary down"): boolean {
  const view = group([primary, text], extra);
  const [one, two] = view.nodes as [NodeView, NodeView];
  return isSafe(two, view, one);
}

test("hasPromised: by its own word, and not told otherwise since", () => {
  const of = (text: string): boolean => group([text]).nodes.every(hasPromised);
  expect(of("2 report_lsn")).toBe(true);
  expect(of("2 report_lsn>join_secondary")).toBe(true);
  expect(of("2 fast_forward>prepare_promotion")).toBe(true);
  expect(of("2 secondary>report_lsn")).toBe(false);
  expect(of("2 report_lsn>catchingup")).toBe(false);
  expect(of("2 join_secondary>dropped")).toBe(false);
});

describe("elect: the order", () => {
  test("equals: the lowest id", () => {
    expect(elected(["2 report_lsn", "3 report_lsn"])).toBe("2");
    expect(elected(["3 report_lsn", "2 report_lsn"])).toBe("2");
  });

  test("position before id", () => {
    expect(elected(["2 report_lsn behind-1", "3 report_lsn"])).toBe("3");
  });

  test("priority before position: it fetches what it lacks", () => {
    expect(elected(["2 report_lsn behind-1 priority-51", "3 report_lsn"])).toBe("2 from 3");
    expect(elected(["2 report_lsn priority-51", "3 report_lsn"])).toBe("2");
  });

  test("ancestry before all: who has left the history is no candidate, and no source", () => {
    const forked = "3 report_lsn timeline-2 priority-100";
    expect(elected(["2 report_lsn", forked], TWO)).toBe("nobody");
    expect(elected(["2 report_lsn", forked], { sync: SYNC })).toBe("2");
    const beyond: Extra = { sync: SYNC, history: [FIRST, SECOND] };
    expect(elected(["2 report_lsn timeline-2", "3 report_lsn ahead-9 priority-100"], beyond)).toBe(
      "2",
    );
  });

  test("a server that runs as a primary is no candidate", () => {
    expect(elected(["2 report_lsn writable", "3 report_lsn"], { sync: setOf([2, 3], 2) })).toBe(
      "3",
    );
  });

  test("priority 0 is never promoted, but WAL is fetched from it", () => {
    expect(elected(["2 report_lsn priority-0", "3 report_lsn behind-1"])).toBe("3 from 2");
    expect(elected(["2 report_lsn priority-0", "3 report_lsn"])).toBe("3");
    expect(elected(["2 report_lsn priority-0", "3 report_lsn priority-0"])).toBe("nobody");
  });

  test("the node that the operator names, whatever the priorities, and no other", () => {
    const named = (target: number): Extra => ({
      ...TWO,
      request: { target, allowDataLoss: false },
    });
    expect(elected(["2 report_lsn priority-100", "3 report_lsn priority-0"], named(3))).toBe("3");
    expect(elected(["2 report_lsn", "3 report_lsn behind-5"], named(3))).toBe("3 from 2");
    expect(elected(["2 report_lsn", "3 report_lsn"], named(4))).toBe("nobody");
  });

  test("who could not fetch goes after those that need not, and is tried again for want of them", () => {
    const failed = "2 report_lsn behind-1 priority-90 passed-over";
    expect(elected([failed, "3 report_lsn"])).toBe("3");
    expect(elected([failed, "3 report_lsn priority-0"])).toBe("2 from 3");
  });

  test("nobody while somebody is being promoted", () => {
    expect(elected(["2 report_lsn>fast_forward", "3 report_lsn"])).toBe("nobody");
    expect(chosenOf(group(["2 report_lsn>fast_forward"]).nodes)?.nodeId).toBe(2);
    expect(chosenOf(group(["2 report_lsn"]).nodes)).toBeUndefined();
  });
});

describe("elect: who has to be there", () => {
  test("any 1 of 2: both; all of 2: one; any 2 of 3: two; any 1 of 3: three", () => {
    const gone = "3 secondary>report_lsn gone";
    expect(elected(["2 report_lsn", gone], TWO)).toBe("nobody");
    expect(elected(["2 report_lsn", gone], { sync: setOf([2, 3], 2) })).toBe("2");
    const three: Extra = { sync: setOf([2, 3, 4], 2) };
    expect(elected(["2 report_lsn", "4 report_lsn", gone], three)).toBe("2");
    expect(elected(["2 report_lsn", gone], three)).toBe("nobody");
    const any: Extra = { sync: setOf([2, 3, 4], 1) };
    expect(elected(["2 report_lsn", "4 report_lsn", gone], any)).toBe("nobody");
    expect(elected(["2 report_lsn", "4 report_lsn", "3 report_lsn"], any)).toBe("2");
  });

  test("by each set that may have been in force", () => {
    const sync = setOf([2], 1, 3);
    const changed = (pending: Extra["pending"]): Extra => ({
      sync,
      pending: pending ?? [],
      inForce: setOf([2], 1, 1),
    });
    const gone = "3 catchingup gone";
    expect(elected(["2 report_lsn", gone], changed([]))).toBe("2");
    expect(elected(["2 report_lsn", gone], changed([setOf([2, 3], 2, 2)]))).toBe("2");
    expect(elected(["2 report_lsn", gone], changed([setOf([2, 3], 1, 2)]))).toBe("nobody");
    expect(elected(["2 report_lsn", gone], changed([setOf([], 0, 2)]))).toBe("nobody");
  });

  test("an asynchronous standby is none of them, but can be promoted", () => {
    const gone = "2 secondary>report_lsn gone";
    expect(elected([gone, "3 report_lsn no-quorum"], { sync: SYNC })).toBe("nobody");
    const there = ["2 report_lsn", "3 report_lsn no-quorum priority-90 behind-7"];
    expect(elected(there, { sync: SYNC })).toBe("3 from 2");
  });

  test("one that has promised and died counts, unless it has more than the others", () => {
    expect(elected(["2 report_lsn", "3 report_lsn gone"])).toBe("2");
    expect(elected(["2 report_lsn", "3 report_lsn gone behind-1"])).toBe("2");
    expect(elected(["2 report_lsn", "3 report_lsn gone ahead-1"])).toBe("nobody");
  });

  test("one that has died with more than others is not needed, when those are enough", () => {
    const both: Extra = { sync: setOf([2, 3], 2) };
    expect(elected(["2 report_lsn", "3 report_lsn gone ahead-1"], both)).toBe("2");
  });

  test("nobody by a set that isn't known, or when commits waited for nobody", () => {
    expect(elected(["2 report_lsn"], { inForce: undefined })).toBe("nobody");
    expect(elected(["2 report_lsn"], { sync: NOBODY })).toBe("nobody");
  });

  test("anybody, when the operator allows that commits are lost", () => {
    expect(elected(["2 report_lsn"], { inForce: undefined, ...LOSS })).toBe("2");
    expect(elected(["2 report_lsn", "3 report_lsn gone ahead-1"], { ...TWO, ...LOSS })).toBe("2");
    expect(elected(["2 report_lsn timeline-2"], { ...TWO, ...LOSS })).toBe("nobody");
  });
});

describe("elect: patience", () => {
  const both: Extra = { sync: setOf([2, 3], 2) };

  test("one that is there and hasn't reported yet is waited for, but not for ever", () => {
    const late = "3 secondary>report_lsn";
    expect(elected([`2 report_lsn promised-${ELECTION_PATIENCE_MS - 1}`, late], both)).toBe(
      "nobody",
    );
    expect(elected([`2 report_lsn promised-${ELECTION_PATIENCE_MS}`, late], both)).toBe("2");
  });

  test("who isn't there is not waited for", () => {
    expect(elected(["2 report_lsn", "3 secondary>report_lsn gone"], both)).toBe("2");
    expect(elected(["2 report_lsn", "3 secondary>report_lsn down"], both)).toBe("2");
  });
});

describe("asynchronous groups", () => {
  test("the standby that is furthest, when all that may reply to the primary have promised", () => {
    expect(elected(["2 report_lsn behind-1", "3 report_lsn"], ASYNC)).toBe("3");
    expect(elected(["2 report_lsn", "3 secondary>report_lsn gone"], ASYNC)).toBe("nobody");
  });

  test("within maximum_lag_on_failover of what the primary last said", () => {
    const lagging = (bytes: number): string[] => [
      `2 report_lsn behind-${bytes}`,
      `3 report_lsn behind-${bytes}`,
    ];
    const settings = { durability: "performance", maximumLagBytes: 1000n } as const;
    expect(elected(lagging(1000), { ...ASYNC, settings })).toBe("2");
    expect(elected(lagging(1001), { ...ASYNC, settings })).toBe("nobody");
    expect(elected(lagging(1001), { ...ASYNC, ...LOSS, settings })).toBe("2");
  });

  test("a synchronous group has no such bound: nothing acknowledged is missing", () => {
    const settings = { maximumLagBytes: 1000n };
    const far = ["2 report_lsn behind-5000", "3 report_lsn behind-5000"];
    expect(elected(far, { ...TWO, settings })).toBe("2");
  });
});

describe("isElectable: could one be promoted, once all have reported", () => {
  test("those that can still promise count", () => {
    expect(electable(["2 secondary", "3 secondary"])).toBe(true);
    expect(electable(["2 secondary", "3 catchingup"])).toBe(true);
    expect(electable(["2 report_lsn", "3 secondary>report_lsn"])).toBe(true);
    expect(electable(["2 secondary>prepare_promotion"], { sync: SYNC })).toBe(true);
  });

  test("those that are gone, leave, or have left the history don't", () => {
    for (const other of [
      "3 secondary gone",
      "3 secondary down",
      "3 secondary>dropped",
      "3 secondary>demoted",
      "3 secondary timeline-2",
      "3 wait_standby",
    ])
      expect({ other, electable: electable(["2 secondary", other]) }).toEqual({
        other,
        electable: false,
      });
  });

  test("one of them has to be a candidate", () => {
    expect(electable(["2 secondary priority-0", "3 secondary priority-0"])).toBe(false);
    expect(electable(["2 secondary priority-0", "3 secondary"])).toBe(true);
    const request = { target: 2, allowDataLoss: false };
    expect(electable(["2 secondary priority-0", "3 secondary"], { ...TWO, request })).toBe(true);
    expect(electable(["2 secondary down", "3 secondary"], { ...TWO, request })).toBe(false);
  });
});

describe("isSafe: the only standby has every commit", () => {
  test("by the one set, and by all that may be in force", () => {
    expect(safe("2 secondary")).toBe(true);
    expect(safe("2 secondary", TWO)).toBe(false);
    expect(safe("2 secondary", { sync: setOf([2, 3], 2) })).toBe(true);
    expect(safe("2 secondary", { inForce: undefined })).toBe(false);
    expect(safe("2 secondary", { sync: NOBODY })).toBe(false);
    expect(safe("2 secondary", { sync: setOf([2], 1, 2), inForce: NOBODY })).toBe(false);
  });

  test("on the group's history, as a standby, and a candidate", () => {
    expect(safe("2 secondary timeline-2")).toBe(false);
    expect(safe("2 secondary writable")).toBe(false);
    expect(safe("2 secondary priority-0")).toBe(false);
    const request = { target: 2, allowDataLoss: false };
    expect(safe("2 secondary priority-0", { request })).toBe(true);
  });

  test("what may be lost by choice, or with the operator's word", () => {
    const async: Extra = { ...ASYNC, sync: setOf([2], 0) };
    expect(safe("2 secondary behind-16777216", async)).toBe(true);
    expect(safe("2 secondary behind-16777217", async)).toBe(false);
    expect(safe("2 secondary behind-16777217", { ...async, ...LOSS })).toBe(true);
    expect(safe("2 secondary", { inForce: undefined, ...LOSS })).toBe(true);
    expect(safe("2 secondary timeline-2", LOSS)).toBe(false);
  });
});

describe("fetching", () => {
  const fetched = (texts: readonly string[], extra: Extra = TWO): boolean => {
    const view = group([PRIMARY, ...texts], extra);
    return hasFetched(view.nodes[1] as NodeView, view, view.nodes[0]);
  };
  const failed = (texts: readonly string[], extra: Extra = TWO): boolean => {
    const view = group([PRIMARY, ...texts], extra);
    return hasFailedToFetch(view.nodes[1] as NodeView, view, view.nodes[0]);
  };

  test("it has fetched what any of the others has, and those are still enough", () => {
    expect(fetched(["2 fast_forward", "3 join_secondary"])).toBe(true);
    expect(fetched(["2 fast_forward behind-1", "3 join_secondary"])).toBe(false);
    expect(fetched(["2 fast_forward", "3 join_secondary gone"])).toBe(true);
    expect(fetched(["2 fast_forward", "3 join_secondary gone ahead-1"])).toBe(false);
    expect(fetched(["2 fast_forward", "3 catchingup"])).toBe(false);
  });

  test("what it has fetched has to be of the group's history", () => {
    expect(fetched(["2 fast_forward timeline-2", "3 join_secondary"])).toBe(false);
    const beyond: Extra = { ...TWO, history: [FIRST, SECOND] };
    expect(fetched(["2 fast_forward", "3 join_secondary"], beyond)).toBe(true);
    expect(fetched(["2 fast_forward ahead-1", "3 join_secondary"], beyond)).toBe(false);
  });

  test("the node to fetch from is there no more", () => {
    expect(failed(["2 fast_forward behind-1 from-3", "3 join_secondary"])).toBe(false);
    expect(failed(["2 fast_forward behind-1 from-3", "3 report_lsn>join_secondary"])).toBe(false);
    for (const source of [
      "3 join_secondary gone",
      "3 join_secondary down",
      "3 join_secondary timeline-2",
      "3 join_secondary writable",
      "3 secondary",
      "3 join_secondary>dropped",
      "4 join_secondary",
    ]) {
      const texts = ["2 fast_forward behind-1 from-3", source];
      expect({ source, failed: failed(texts) }).toEqual({ source, failed: true });
    }
  });

  test("only the one that was named counts, and there has to be one", () => {
    const texts = ["3 join_secondary gone", "4 join_secondary"];
    expect(failed(["2 fast_forward behind-1 from-4", ...texts])).toBe(false);
    expect(failed(["2 fast_forward behind-1 from-3", ...texts])).toBe(true);
    expect(failed(["2 fast_forward behind-1", ...texts])).toBe(true);
  });

  test("it takes longer than fast_forward_timeout", () => {
    const source = "3 join_secondary";
    expect(failed(["2 fast_forward behind-1 from-3 told-29999", source])).toBe(false);
    expect(failed(["2 fast_forward behind-1 from-3 told-30000", source])).toBe(true);
  });
});

test("standbysOf: neither the primary, nor who has no part in an election", () => {
  const view = group([
    "1 primary",
    "2 secondary",
    "3 catchingup gone",
    "4 wait_standby",
    "5 demoted",
  ]);
  const { voters, healthy } = standbysOf(view, view.nodes[0]);
  expect(voters.map(({ nodeId }) => nodeId)).toEqual([2, 3]);
  expect(healthy.map(({ nodeId }) => nodeId)).toEqual([2]);
});

test("whatever has been reported: the winner has, or fetches, every acknowledged commit", () => {
  const ids = [2, 3, 4, 5];
  const standby = fc.record({
    behind: fc.nat({ max: 3 }),
    priority: fc.constantFrom(0, 50, 90),
    word: fc.constantFrom("", "gone", "down", "passed-over", "timeline-2"),
    state: fc.constantFrom("report_lsn", "join_secondary", "secondary>report_lsn"),
  });
  const sets = fc.array(
    fc
      .tuple(fc.subarray(ids, { minLength: 1 }), fc.nat())
      .map(([members, seed]) => setOf(members, (seed % members.length) + 1)),
    { minLength: 1, maxLength: 3 },
  );
  fc.assert(
    fc.property(fc.tuple(standby, standby, standby, standby), sets, (standbys, chosen) => {
      const versions = chosen.map((set, i) => ({ ...set, version: i + 1 }));
      const sync = versions.at(-1) ?? SYNC;
      const texts = standbys.map(({ state, behind, priority, word }, i) =>
        [`${i + 2} ${state} behind-${behind} priority-${priority} promised-5000`, word]
          .join(" ")
          .trim(),
      );
      const view = group([PRIMARY, ...texts], {
        sync,
        pending: versions.slice(0, -1),
        inForce: versions[0],
      });
      const election = elect(view, view.nodes[0]);
      fc.pre(election !== undefined);
      const { winner, source } = election;
      const end = (source ?? winner).lsn;
      // A commit that ends beyond what the winner will have is flushed at most by these.
      const ahead = view.nodes.filter(
        (node) =>
          node.nodeId !== 1 && (!hasPromised(node) || node.timeline !== 1 || node.lsn > end),
      );
      const lost = versions.filter(
        ({ members, number }) =>
          members.filter((id) => ahead.some(({ nodeId }) => nodeId === id)).length >= number,
      );
      expect(lost).toEqual([]);
      // whom WAL is fetched from is there, has promised, is of the history, and has what the winner lacks
      const usable = standbysOf(view, view.nodes[0]).healthy.filter(hasPromised);
      expect(source === undefined || usable.includes(source)).toBe(true);
      expect(source === undefined || source.lsn > winner.lsn).toBe(true);
      expect(usable.every(({ lsn }) => lsn <= end)).toBe(true);
      expect(winner.candidatePriority).toBeGreaterThan(0);
    }),
    { numRuns: 500 },
  );
});
