/** The one sentence that says why nothing happens: who is missing, and what to do. */
import { describe, expect, test } from "bun:test";
import {
  blockedReason,
  explainGroup,
  forksOf,
  lossOf,
  storyCells,
} from "../../../lib/group/explain.ts";
import { BOTH, type Extra, group, NOBODY, SYNC, setOf } from "./words.ts";

const TWO: Extra = { sync: BOTH };
const reason = (texts: readonly string[], extra: Extra = TWO): string =>
  blockedReason(group(texts, extra)) ?? "nothing";

const GOES_ON =
  "It goes on by itself when that changes; roles/formation.ts failover --allow-data-loss promotes another one";

describe("blockedReason", () => {
  test("a standby that may hold commits is missing", () => {
    expect(reason(["1 primary gone", "2 secondary not-streaming", "3 secondary gone"])).toBe(
      `Blocked: node 1 "node_1" is down, and node 3 "node_3" may hold acknowledged commits and can't be asked. ${GOES_ON}`,
    );
  });

  test("two of them are, and one was dropped", () => {
    const sync = setOf([2, 3, 4, 9], 1);
    const lost = [
      "1 primary gone",
      "2 secondary not-streaming",
      "3 secondary gone",
      "4 demoted gone",
    ];
    expect(reason(lost, { sync })).toContain(
      'node 3 "node_3", node 4 "node_4", node 9, which was dropped, may hold acknowledged commits',
    );
  });

  test("one that has promised, and is gone since, holds more than the others", () => {
    expect(reason(["1 draining gone", "2 report_lsn", "3 report_lsn gone ahead-1"])).toContain(
      'node 3 "node_3" holds commits that nobody else has',
    );
  });

  test("commits waited for nobody, or it isn't known for whom", () => {
    const lost = ["1 primary gone", "2 secondary not-streaming"];
    expect(reason(lost, { sync: NOBODY })).toContain(
      "its last commits need not have waited for any standby",
    );
    expect(reason(lost, { inForce: undefined })).toContain(
      "it is not known which standbys its last commits had waited for",
    );
  });

  test("an asynchronous standby is too far behind", () => {
    const extra: Extra = { sync: setOf([2], 0), settings: { durability: "performance" } };
    const lost = ["1 primary gone", "2 secondary not-streaming behind-16777217"];
    expect(reason(lost, extra)).toContain(
      "every standby is further behind than maximum_lag_on_failover allows",
    );
  });

  test("nobody may be promoted", () => {
    const barred = ["2 secondary not-streaming priority-0", "3 secondary not-streaming priority-0"];
    expect(reason(["1 primary gone", ...barred])).toContain(
      "every standby that is there has candidate priority 0",
    );
  });

  test("a failover was asked for, and there is nobody to give it to", () => {
    const request = { target: undefined, allowDataLoss: false };
    expect(reason(["1 primary", "2 secondary", "3 secondary down"], { ...TWO, request })).toBe(
      `Blocked: the failover that was asked for, and node 3 "node_3" may hold acknowledged commits and can't be asked. ${GOES_ON}`,
    );
  });

  test("a primary that hangs, and nobody can replace, is told of", () => {
    const hung = ["1 wait_primary down hung", "2 catchingup behind-99999999"];
    expect(reason(hung, { sync: NOBODY })).toContain('node 1 "node_1" is down');
  });

  test("a switchover waits until somebody can take over; nothing is in the way of one that goes on", () => {
    const planned = { request: { planned: true } };
    expect(reason(["1 primary", "2 secondary not-streaming"], planned)).toContain(
      "the switchover that was asked for waits for a healthy secondary",
    );
    expect(reason(["1 primary", "2 secondary"], planned)).toBe("nothing");
    expect(
      reason(["1 primary>draining", "2 secondary", "3 secondary gone"], { ...TWO, ...planned }),
    ).toBe("nothing");
    expect(
      reason(["1 draining ended-0", "2 secondary", "3 secondary gone"], { ...TWO, ...planned }),
    ).toBe("nothing");
  });

  test("who may hold commits is in maintenance", () => {
    expect(
      reason(["1 primary gone", "2 secondary not-streaming", "3 maintenance maintained"], TWO),
    ).toContain(
      'node 3 "node_3" may hold acknowledged commits and is in maintenance (roles/node.ts maintenance off)',
    );
  });

  test("a server left the history: an operator has to say which holds", () => {
    const forked = ["1 primary gone", "2 secondary timeline-2", "3 secondary not-streaming"];
    expect(reason(forked, { ...TWO, disputed: true })).toBe(
      'Blocked: node 2 "node_2" left the group\'s history while its primary could not be asked; roles/formation.ts accept-timeline says which one holds',
    );
  });

  test("nothing is in the way of a group that is well, that can elect, or that has elected", () => {
    expect(reason(["1 primary", "2 secondary", "3 secondary"])).toBe("nothing");
    expect(reason(["1 primary", "2 secondary", "3 secondary gone"])).toBe("nothing");
    expect(reason(["1 primary down", "2 secondary", "3 secondary"])).toBe("nothing");
    expect(reason(["1 draining gone", "2 report_lsn", "3 secondary>report_lsn"])).toBe("nothing");
    const chosen = ["1 draining gone", "2 prepare_promotion", "3 join_secondary gone ahead-1"];
    expect(reason(chosen)).toBe("nothing");
    expect(reason(["1 primary gone"])).toBe("nothing");
  });

  test("the one that was chosen is gone, with what nobody else has", () => {
    const chosen = ["1 draining gone", "2 prepare_promotion gone ahead-5", "3 join_secondary"];
    expect(reason(chosen)).toContain('node 2 "node_2" holds commits that nobody else has');
  });

  test("a crashed primary that its keeper can start again is not lost yet", () => {
    const crashed = ["2 secondary", "3 secondary gone"];
    expect(reason(["1 primary down", ...crashed])).toBe("nothing");
    expect(reason(["1 primary down start-failed", ...crashed])).toContain("node 3");
  });
});

describe("explainGroup", () => {
  const ifDied = (texts: readonly string[], extra: Extra = TWO): string =>
    explainGroup(group(texts, extra)).ifPrimaryDied;
  const waits = (texts: readonly string[], id: number, extra: Extra = TWO): string | null =>
    explainGroup(group(texts, extra)).nodes.find(({ nodeId }) => nodeId === id)?.waitsFor ?? null;

  test("if the primary died now: who would take over", () => {
    expect(ifDied(["1 primary", "2 secondary", "3 secondary priority-90"])).toBe(
      'no acknowledged commit would be lost: node 3 "node_3" would take over',
    );
    const async: Extra = { sync: setOf([2], 0), settings: { durability: "performance" } };
    expect(ifDied(["1 primary", "2 secondary behind-100"], async)).toBe(
      '100 bytes or more would be lost, as the group is asynchronous: node 2 "node_2" would take over',
    );
  });

  test("if the primary died now: why nobody would", () => {
    expect(ifDied(["1 primary", "2 secondary behind-7", "3 secondary gone"])).toBe(
      'nobody would take over, because node 3 "node_3" may hold acknowledged commits and can\'t be asked; ' +
        "a promotion that may lose commits would lose at least 7 bytes",
    );
    expect(ifDied(["1 single"], { sync: NOBODY })).toContain("there is no other node");
    expect(ifDied(["1 draining", "2 report_lsn"])).toBe("it is being replaced already");
    expect(ifDied(["2 secondary"])).toBe("there is no primary");
  });

  test("lossOf: what only the primary has", () => {
    expect(lossOf(group(["1 primary", "2 secondary behind-9", "3 secondary behind-5"]))).toBe(5n);
    expect(lossOf(group(["1 primary", "2 secondary ahead-1"]))).toBe(0n);
    expect(lossOf(group(["1 primary", "2 secondary gone"]))).toBeUndefined();
  });

  test("a node that is where it should be waits for nothing", () => {
    const { nodes, blocked, primary } = explainGroup(group(["1 primary", "2 secondary"]));
    expect(nodes.map(({ waitsFor, sinceMs }) => [waitsFor, sinceMs])).toEqual([
      [null, null],
      [null, null],
    ]);
    expect({ blocked, primary }).toEqual({ blocked: null, primary: "node_1" });
  });

  test("what each node waits for", () => {
    expect(waits(["1 primary gone", "2 secondary"], 1)).toBe("a report of its keeper");
    expect(waits(["1 primary", "2 secondary not-streaming"], 2)).toBe(
      'its connection to node 1 "node_1"',
    );
    expect(waits(["1 primary", "2 catchingup behind-16777217"], 2)).toBe(
      "16777217 bytes of WAL that it is behind",
    );
    expect(waits(["1 primary>draining", "2 secondary"], 1)).toBe(
      'its keeper, to get from "primary" to "draining": A failover occurred, stopping writes',
    );
    expect(waits(["1 draining", "2 report_lsn", "3 secondary>report_lsn"], 2)).toBe(
      'node 3 "node_3" to report the end of its WAL',
    );
    expect(waits(["1 draining", "2 prepare_promotion", "3 join_secondary"], 3)).toBe(
      'node 2 "node_2" to take over',
    );
    expect(waits(["1 primary", "2 secondary down start-failed"], 2)).toBe(
      "PostgreSQL to start, which has failed 1 times",
    );
  });

  test("a row says for how long, and what helps", () => {
    const rowsOf = (...texts: string[]): string[][] =>
      explainGroup(group(texts, { sync: SYNC })).nodes.map(storyCells);
    expect(rowsOf("1 primary", "2 secondary gone")).toEqual([
      ["1", "node_1", "primary", "primary", "-", "nothing", "-"],
      [
        ...["2", "node_2", "secondary", "secondary", "4 s", "a report of its keeper"],
        "on localhost: roles/keeper.ts run --pgdata DIR",
      ],
    ]);
  });

  test("forksOf: servers that are no part of the history, but not one that is being promoted", () => {
    const forks = forksOf(
      group(["1 primary", "2 secondary timeline-3", "3 secondary writable", "4 secondary"]),
    );
    expect(forks.map(({ text }) => text)).toEqual([
      'node 2 "node_2" is not part of the group\'s history: it is on timeline 3 at 0/40000000',
      'node 3 "node_3" runs as a primary, which it was not told to be: it is on timeline 1 at 0/40000000',
    ]);
    expect(forksOf(group(["1 demoted", "2 stop_replication timeline-2"]))).toEqual([]);
  });
});
