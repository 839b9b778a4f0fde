/** Which groups a drill may break: only those in which nothing is wrong. */
import { expect, test } from "bun:test";
import { troublesOf } from "../../../lib/drill/health.ts";
import { asked, group, NOBODY, setOf } from "../group/words.ts";

test("a primary and its synchronous secondaries are as they should be", () => {
  const pair = group(["1 primary", "2 secondary"]);
  const three = group(["1 primary", "2 secondary", "3 secondary no-quorum"]);
  expect([troublesOf(pair), troublesOf(three)]).toEqual([[], []]);
});

test.each([
  ["3 catchingup", 'node 3 "node_3" is catchingup'],
  ["3 secondary>catchingup", 'node 3 "node_3" is secondary, and is to be catchingup'],
  ["3 secondary down", `PostgreSQL of node 3 "node_3" doesn't run`],
  ["3 secondary gone", 'nothing was heard of node 3 "node_3" for 4 s'],
  ["3 secondary not-streaming", `node 3 "node_3" doesn't stream from the primary`],
  ["3 secondary maintained", 'node 3 "node_3" is in maintenance'],
  ["3 maintenance maintained", 'node 3 "node_3" is in maintenance'],
])("%s: it isn't", (third, trouble) => {
  expect(troublesOf(group(["1 primary", "2 secondary", third]))).toEqual([trouble]);
});

test("a group whose primary is alone, or being replaced, isn't", () => {
  expect(troublesOf(group(["1 single"], { sync: NOBODY }))).toEqual([
    "no node is primary",
    'node 1 "node_1" is single',
    "there is no standby",
    "commits wait for no standby, so some may be lost",
  ]);
  expect(troublesOf(group(["1 primary>draining", "2 secondary>prepare_promotion"]))).toContain(
    "no node is primary",
  );
});

test("a set of standbys that is not in force yet, a request, or a reason that blocks, isn't", () => {
  const view = group(["1 primary", "2 secondary"]);
  const sync = setOf([2], 1, 7);
  expect(troublesOf({ ...view, sync })).toEqual([
    "the set of synchronous standbys is not in force yet",
  ]);
  const request = asked({ planned: true });
  expect(troublesOf({ ...view, request })).toEqual(["a failover or switchover was asked for"]);
  expect(troublesOf({ ...view, blocked: "Blocked: why" })).toEqual(["Blocked: why"]);
});
