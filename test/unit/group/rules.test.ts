/** One story for each row of the monitor's table, and for each condition that holds it back. */
import { describe, expect, test } from "bun:test";
import { decided, type Extra, NOBODY, SYNC } from "./words.ts";

type Story = readonly [name: string, nodes: readonly string[], outcome: string, extra?: Extra];
const NONE: Extra = { sync: { ...NOBODY, version: 0, primaryId: 0 } };
const ALONE: Extra = { sync: NOBODY };

function stories(list: readonly Story[]): void {
  for (const [name, nodes, outcome, extra] of list) {
    test(name, () => {
      expect(decided(nodes, extra)).toBe(outcome);
    });
  }
}

describe("arriving and leaving", () => {
  stories([
    [
      "R101: the first node becomes single",
      ["1 init down"],
      "R101: 1 single; sync nobody for 1",
      NONE,
    ],
    [
      "R101: of two that wait, the one with the lower id",
      ["1 init down", "2 init down"],
      "R101: 1 single; sync nobody for 1",
      NONE,
    ],
    [
      "R101: nobody becomes single beside a node that was dropped",
      ["1 primary>dropped", "2 init down"],
      "nothing",
    ],
    ["R101: nor beside one that is being demoted", ["1 demoted down", "2 init down"], "nothing"],
    [
      "R102: a second node waits to be let in",
      ["1 single", "2 init down"],
      "R102: 2 wait_standby",
      ALONE,
    ],
    [
      "R102: but not in the middle of a failover",
      ["1 primary>draining", "2 secondary>prepare_promotion", "3 init down"],
      "nothing",
    ],
    [
      "R103: a node that has stopped is forgotten",
      ["1 single", "2 dropped down"],
      "R103: 2 forgotten",
      ALONE,
    ],
    [
      "R103: not before it has stopped",
      ["1 wait_primary", "2 catchingup>dropped"],
      "nothing",
      ALONE,
    ],
    ["R104: the last node becomes single", ["1 wait_primary"], "R104: 1 single", ALONE],
    [
      "R104: a primary that is alone stops waiting",
      ["1 primary"],
      "R104: 1 single; sync nobody for 1",
    ],
    [
      "R105: a standby that is being removed holds no commit up",
      ["1 primary", "2 secondary>dropped"],
      "R105: 1 wait_primary; sync nobody for 1",
    ],
    ["R105: with its standby there, a primary stays one", ["1 primary", "2 secondary"], "nothing"],
  ]);
});

describe("a standby joins and catches up", () => {
  stories([
    [
      "R111: the single node prepares for a standby",
      ["1 single", "2 wait_standby down"],
      "R111: 1 wait_primary",
      ALONE,
    ],
    [
      "R112: the primary is ready",
      ["1 wait_primary", "2 wait_standby down"],
      "R112: 2 catchingup",
      ALONE,
    ],
    [
      "R112: not before it has said so",
      ["1 single>wait_primary", "2 wait_standby down"],
      "nothing",
      ALONE,
    ],
    ["R113: it has caught up", ["1 wait_primary", "2 catchingup"], "R113: 2 secondary", ALONE],
    [
      "R113: not on another timeline",
      ["1 wait_primary", "2 catchingup other-timeline"],
      "nothing",
      ALONE,
    ],
    ["R113: not far behind", ["1 wait_primary", "2 catchingup far-behind"], "nothing", ALONE],
    [
      "R113: not with an unknown position",
      ["1 wait_primary", "2 catchingup without-wal"],
      "nothing",
      ALONE,
    ],
    [
      "R113: not without receiving",
      ["1 wait_primary", "2 catchingup not-streaming"],
      "nothing",
      ALONE,
    ],
    ["R113: not while it is down", ["1 wait_primary", "2 catchingup down"], "nothing", ALONE],
    [
      "R113: not while the primary is down",
      ["1 wait_primary down", "2 catchingup"],
      "nothing",
      ALONE,
    ],
    [
      "R114: the primary waits for it from now on",
      ["1 wait_primary", "2 secondary"],
      "R114: 1 primary; sync 2 for 1",
      ALONE,
    ],
    [
      "R114: not while it doesn't receive",
      ["1 wait_primary", "2 secondary not-streaming"],
      "nothing",
      ALONE,
    ],
    [
      "R114: not before it reports so",
      ["1 wait_primary", "2 catchingup>secondary"],
      "nothing",
      ALONE,
    ],
    [
      "R115: a standby outside of the quorum isn't waited for",
      ["1 wait_primary", "2 secondary no-quorum"],
      "R115: 1 primary",
      ALONE,
    ],
  ]);
});

describe("the standby is in trouble", () => {
  const goesOn = "1 wait_primary, 2 catchingup; sync nobody for 1";
  stories([
    ["R201: its PostgreSQL is down", ["1 primary", "2 secondary down"], `R201: ${goesOn}`],
    ["R201: nothing is heard of it", ["1 primary", "2 secondary gone"], `R201: ${goesOn}`],
    [
      "R201: while it was to become synchronous",
      ["1 wait_primary>primary", "2 secondary down"],
      `R201: ${goesOn}`,
    ],
    ["R201: silence alone is not death", ["1 primary", "2 secondary silent"], "nothing"],
    ["R201: nor is it while PostgreSQL answers", ["1 primary", "2 secondary mute"], "nothing"],
    [
      "R201: a primary that is down itself assigns nothing",
      ["1 primary down", "2 secondary down"],
      "nothing",
    ],
    [
      "R202: both live, but it receives nothing",
      ["1 primary", "2 secondary stalled"],
      `R202: ${goesOn}`,
    ],
    ["R202: a short break is nothing", ["1 primary", "2 secondary not-streaming"], "nothing"],
  ]);
});

describe("the primary is in trouble", () => {
  const takesOver = "R301: 1 draining, 2 prepare_promotion";
  const goesOn = "R302: 1 wait_primary, 2 catchingup; sync nobody for 1";
  const opens = "1 demoted, 2 wait_primary; sync nobody for 2";
  stories([
    [
      "R301: the primary dies and its only standby takes over",
      ["1 primary down", "2 secondary"],
      takesOver,
    ],
    [
      "R301: the primary's host is lost",
      ["1 primary gone", "2 secondary not-streaming"],
      takesOver,
    ],
    [
      "R301: a standby that still receives holds it back",
      ["1 primary gone", "2 secondary"],
      "nothing",
    ],
    [
      "R301: for unreachable_primary_timeout at most",
      ["1 primary unreachable", "2 secondary"],
      takesOver,
    ],
    [
      "R301: health unknown is not bad: the monitor has just started",
      ["1 primary silent", "2 secondary not-streaming"],
      "nothing",
    ],
    [
      "R301: a probe from before the last report proves nothing",
      ["1 primary stale", "2 secondary not-streaming"],
      "nothing",
    ],
    [
      "R301: PostgreSQL answers, only its keeper is dead",
      ["1 primary mute", "2 secondary not-streaming"],
      "nothing",
    ],
    [
      "R301: not when the set was never in force",
      ["1 primary down", "2 secondary"],
      "nothing",
      { inForce: undefined },
    ],
    [
      "R301: not when another version is in force",
      ["1 primary down", "2 secondary"],
      "nothing",
      { sync: { ...SYNC, version: 2 }, inForce: SYNC },
    ],
    ["R301: not when commits wait for nobody", ["1 primary down", "2 secondary"], "nothing", ALONE],
    [
      "R301: not when the set is another primary's",
      ["1 primary down", "2 secondary"],
      "nothing",
      { sync: { ...SYNC, primaryId: 3 } },
    ],
    ["R301: not a node with priority 0", ["1 primary down", "2 secondary priority-0"], "nothing"],
    ["R301: not a standby that is down too", ["1 primary down", "2 secondary down"], "nothing"],
    ["R301: not a standby that is catching up", ["1 primary down", "2 catchingup"], "nothing"],
    [
      "R301: not a standby that was set back",
      ["1 primary down", "2 secondary>catchingup"],
      "nothing",
    ],
    [
      "R301: a primary that stopped itself is asked to go on",
      ["1 demote_timeout>primary down", "2 secondary"],
      "nothing",
    ],
    [
      "R301: unless it can't be started",
      ["1 demote_timeout>primary down start-failed", "2 secondary"],
      takesOver,
    ],
    [
      "R302: the candidate dies first",
      ["1 primary>draining down", "2 secondary>prepare_promotion down"],
      goesOn,
    ],
    [
      "R302: when the old primary has stopped already",
      ["1 draining down", "2 prepare_promotion gone"],
      goesOn,
    ],
    [
      "R302: not without word from the old primary",
      ["1 primary>draining gone", "2 secondary>prepare_promotion down"],
      "nothing",
    ],
    [
      "R302: never once it may have been promoted",
      ["1 draining>demote_timeout down", "2 prepare_promotion>stop_replication down"],
      "nothing",
    ],
    [
      "R303: the candidate is disconnected",
      ["1 primary>draining down", "2 prepare_promotion"],
      "R303: 1 demote_timeout, 2 stop_replication",
    ],
    [
      "R303: not before it has said so",
      ["1 primary>draining down", "2 secondary>prepare_promotion"],
      "nothing",
    ],
    [
      "R304: the old primary confirms that it has stopped",
      ["1 demote_timeout down", "2 stop_replication"],
      `R304: ${opens}`,
    ],
    [
      "R304: a stop that isn't finished is no confirmation",
      ["1 draining>demote_timeout down", "2 stop_replication"],
      "nothing",
    ],
    ["R304: not while its PostgreSQL runs", ["1 demote_timeout", "2 stop_replication"], "nothing"],
    [
      "R304: a crash is no confirmation",
      ["1 primary>demote_timeout down", "2 stop_replication"],
      "nothing",
    ],
    [
      "R304: not before the promotion is done",
      ["1 demote_timeout down", "2 prepare_promotion>stop_replication"],
      "nothing",
    ],
    [
      "R305: the old primary was silent for node_timeout",
      ["1 primary>demote_timeout gone", "2 stop_replication"],
      `R305: ${opens}`,
    ],
    ["R305: not earlier", ["1 primary>demote_timeout", "2 stop_replication"], "nothing"],
    [
      "R311: the old primary follows the new one",
      ["1 demoted down", "2 wait_primary"],
      "R311: 1 catchingup",
      { sync: { ...NOBODY, primaryId: 2 } },
    ],
    [
      "R311: not before that takes writes",
      ["1 demoted down", "2 stop_replication>wait_primary"],
      "nothing",
      { sync: { ...NOBODY, primaryId: 2 } },
    ],
    [
      "R311: not while that is down",
      ["1 demoted down", "2 wait_primary down"],
      "nothing",
      { sync: { ...NOBODY, primaryId: 2 } },
    ],
  ]);
});
