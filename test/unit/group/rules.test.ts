/** One story for each row of the monitor's table, and for each condition that holds it back. */
import { describe, expect, test } from "bun:test";
import { decideGroup } from "../../../lib/group/facts.ts";
import type { Settings } from "../../../lib/group/view.ts";
import { BOTH, decided, type Extra, FIRST, group, NOBODY, SECOND, SYNC, setOf } from "./words.ts";

type Story = readonly [name: string, nodes: readonly string[], outcome: string, extra?: Extra];
const NONE: Extra = { sync: { ...NOBODY, version: 0, primaryId: 0 } };
const ALONE: Extra = { sync: NOBODY };
const TWO: Extra = { sync: BOTH };
const REQUEST = { target: undefined, allowDataLoss: false };
const ASKED: Extra = { request: REQUEST };
const PROTECTED: Partial<Settings> = { durability: "protection" };
/** The history has gone on to a second timeline, at the position where everybody is. */
const FORKED: Extra = { history: [FIRST, SECOND] };

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
    ["R102: and a third", ["1 primary", "2 secondary", "3 init down"], "R102: 3 wait_standby"],
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
      "R104: a primary that is alone waits for nobody",
      ["1 primary"],
      "R104: 1 single; sync nobody for 1",
    ],
    ["R104: not before it has reached its goal", ["1 primary>wait_primary"], "nothing", ALONE],
    ["R104: not beside another node", ["1 wait_primary", "2 demoted>dropped"], "nothing", ALONE],
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
    ["R111: not before it's single", ["1 init>single", "2 wait_standby down"], "nothing", ALONE],
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
    [
      "R112: also while the primary changes from one such state to another",
      ["1 wait_primary>primary", "2 secondary", "3 wait_standby down"],
      "R112: 3 catchingup",
    ],
    ["R113: it has caught up", ["1 wait_primary", "2 catchingup"], "R113: 2 secondary", ALONE],
    [
      "R113: beside a standby that is synchronous",
      ["1 primary", "2 secondary", "3 catchingup"],
      "R113: 3 secondary",
    ],
    [
      "R113: while the primary waits for its set to be in force",
      ["1 primary>apply_settings", "2 secondary", "3 catchingup"],
      "R113: 3 secondary",
    ],
    [
      "R113: not while the primary is to be replaced",
      ["1 primary>draining", "2 secondary>prepare_promotion", "3 catchingup"],
      "R322: 3 report_lsn",
    ],
    [
      "R113: not on a timeline that the primary has left",
      ["1 wait_primary timeline-2", "2 catchingup"],
      "nothing",
      { ...ALONE, ...FORKED },
    ],
    ["R113: not far behind", ["1 wait_primary", "2 catchingup behind-16777217"], "nothing", ALONE],
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
      "R114: 1 primary; sync 1 of 2 for 1",
      ALONE,
    ],
    [
      "R114: for two of three, when that many are wanted",
      ["1 wait_primary", "2 secondary", "3 secondary", "4 secondary"],
      "R114: 1 primary; sync 2 of 2,3,4 for 1",
      { ...ALONE, settings: { numberSyncStandbys: 2 } },
    ],
    [
      "R114: for all there are, when more are wanted",
      ["1 wait_primary", "2 secondary", "3 catchingup not-streaming"],
      "R114: 1 primary; sync 1 of 2 for 1",
      { ...ALONE, settings: { numberSyncStandbys: 2 } },
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
      "R114: not before the primary has gone on alone",
      ["1 primary>wait_primary", "2 secondary"],
      "nothing",
      ALONE,
    ],
    [
      "R114: not while the primary is down",
      ["1 wait_primary down", "2 secondary"],
      "nothing",
      ALONE,
    ],
    [
      "R114: not for one outside of the quorum, when another one can come",
      ["1 wait_primary", "2 secondary no-quorum", "3 catchingup not-streaming"],
      "nothing",
      ALONE,
    ],
    [
      "R115: a standby outside of the quorum isn't waited for",
      ["1 wait_primary", "2 secondary no-quorum"],
      "R115: 1 primary",
      ALONE,
    ],
    [
      "R115: nor any in a group that is asynchronous, but its replies count",
      ["1 wait_primary", "2 secondary"],
      "R115: 1 primary; sync 0 of 2 for 1",
      { ...ALONE, settings: { durability: "performance" } },
    ],
    [
      "R115: not while it doesn't receive",
      ["1 wait_primary", "2 secondary no-quorum not-streaming"],
      "nothing",
      ALONE,
    ],
    [
      "R115: not while the primary is down",
      ["1 wait_primary down", "2 secondary no-quorum"],
      "nothing",
      ALONE,
    ],
  ]);
});

describe("whom commits wait for", () => {
  stories([
    [
      "R121: the only standby is set back, and commits go on",
      ["1 primary", "2 secondary>catchingup"],
      "R121: 1 wait_primary; sync nobody for 1",
    ],
    [
      "R121: also in the middle of another change",
      ["1 primary>apply_settings", "2 secondary>catchingup", "3 catchingup not-streaming"],
      "R121: 1 wait_primary; sync nobody for 1",
      TWO,
    ],
    [
      "R121: a standby that is being removed holds no commit up",
      ["1 primary", "2 secondary>dropped"],
      "R121: 1 wait_primary; sync nobody for 1",
    ],
    [
      "R121: a standby outside of the quorum makes no difference",
      ["1 primary", "2 secondary>catchingup", "3 secondary no-quorum"],
      "R121: 1 wait_primary; sync nobody for 1",
    ],
    ["R121: with its standby there, a primary stays one", ["1 primary", "2 secondary"], "nothing"],
    [
      "R121: nor does it wait for one where all are outside of the quorum",
      ["1 primary", "2 secondary no-quorum"],
      "nothing",
      ALONE,
    ],
    [
      "R121: under protection commits wait for the standby",
      ["1 primary", "2 secondary>catchingup"],
      "nothing",
      { settings: PROTECTED },
    ],
    [
      "R122: another standby is synchronous too",
      ["1 primary", "2 secondary", "3 secondary"],
      "R122: 1 apply_settings; sync 1 of 2,3 for 1",
    ],
    [
      "R122: one of two is left out",
      ["1 primary", "2 secondary", "3 secondary>catchingup"],
      "R122: 1 apply_settings; sync 1 of 2 for 1",
      TWO,
    ],
    [
      "R122: one of two leaves the quorum",
      ["1 primary", "2 secondary", "3 secondary no-quorum"],
      "R122: 1 apply_settings; sync 1 of 2 for 1",
      TWO,
    ],
    [
      "R122: more are wanted",
      ["1 primary", "2 secondary", "3 secondary"],
      "R122: 1 apply_settings; sync 2 of 2,3 for 1",
      { ...TWO, settings: { numberSyncStandbys: 2 } },
    ],
    [
      "R122: the group becomes asynchronous",
      ["1 primary", "2 secondary"],
      "R122: 1 apply_settings; sync 0 of 2 for 1",
      { settings: { durability: "performance" } },
    ],
    [
      "R122: a set that was another primary's is no set",
      ["1 primary", "2 secondary"],
      "R122: 1 apply_settings; sync 1 of 2 for 1",
      { sync: setOf([2], 1, 1, 3) },
    ],
    [
      "R122: once more while the last change is applied",
      ["1 primary>apply_settings", "2 secondary", "3 secondary>catchingup"],
      "R122: sync 1 of 2 for 1",
      TWO,
    ],
    [
      "R122: under protection too few are filled up with all",
      ["1 primary", "2 secondary", "3 catchingup not-streaming"],
      "R122: 1 apply_settings; sync 2 of 2,3 for 1",
      { settings: { ...PROTECTED, numberSyncStandbys: 2 } },
    ],
    [
      "R122: a standby that hasn't reported so isn't waited for",
      ["1 primary", "2 secondary", "3 catchingup>secondary"],
      "nothing",
    ],
    [
      "R122: nor one outside of the quorum",
      ["1 primary", "2 secondary", "3 secondary no-quorum"],
      "nothing",
    ],
    [
      "R123: under protection whoever comes back first is waited for",
      ["1 wait_primary", "2 catchingup not-streaming", "3 catchingup not-streaming"],
      "R123: sync 1 of 2,3 for 1",
      { settings: PROTECTED },
    ],
    [
      "R123: nobody is, before commits have waited for any standby",
      ["1 wait_primary", "2 catchingup not-streaming"],
      "nothing",
      { ...ALONE, settings: PROTECTED },
    ],
    [
      "R123: nor without protection",
      ["1 wait_primary", "2 catchingup not-streaming", "3 catchingup not-streaming"],
      "nothing",
      TWO,
    ],
    ["R124: the set is in force", ["1 apply_settings", "2 secondary"], "R124: 1 primary"],
    [
      "R124: not the one before",
      ["1 apply_settings", "2 secondary"],
      "nothing",
      { sync: setOf([2], 1, 2), inForce: SYNC },
    ],
    [
      "R124: nor another primary's",
      ["1 apply_settings", "2 secondary"],
      "nothing",
      { inForce: setOf([2], 1, 1, 3) },
    ],
    [
      "R124: not before the primary has said so",
      ["1 primary>apply_settings", "2 secondary"],
      "nothing",
    ],
  ]);
});

describe("a standby is in trouble", () => {
  const setBack = "2 catchingup";
  stories([
    ["R201: its PostgreSQL is down", ["1 primary", "2 secondary down"], `R201: ${setBack}`],
    ["R201: nothing is heard of it", ["1 primary", "2 secondary gone"], `R201: ${setBack}`],
    [
      "R201: while it was to become synchronous",
      ["1 wait_primary>primary", "2 secondary down"],
      `R201: ${setBack}`,
    ],
    ["R201: silence alone is not death", ["1 primary", "2 secondary silent"], "nothing"],
    ["R201: nor is it while PostgreSQL answers", ["1 primary", "2 secondary mute"], "nothing"],
    [
      "R201: a primary that is down itself sets nobody back",
      ["1 primary down", "2 secondary down"],
      "nothing",
    ],
    [
      "R201: nor one that is being replaced",
      ["1 draining gone", "2 secondary down"],
      "R322: 2 report_lsn",
    ],
    [
      "R202: both live, but it receives nothing",
      ["1 primary", "2 secondary stalled"],
      `R202: ${setBack}`,
    ],
    ["R202: a short break is nothing", ["1 primary", "2 secondary not-streaming"], "nothing"],
    [
      "R202: a primary that is down stalls everybody",
      ["1 primary down", "2 secondary stalled"],
      "R301: 1 draining, 2 prepare_promotion",
    ],
    [
      "R203: it was promoted by hand",
      ["1 primary", "2 secondary timeline-2 writable"],
      "R203: 2 demoted",
    ],
    [
      "R203: it has gone further than the point where the history left its timeline",
      ["1 wait_primary timeline-2", "2 catchingup ahead-1"],
      "R203: 2 demoted",
      { ...ALONE, ...FORKED },
    ],
    [
      "R203: not when it has not",
      ["1 wait_primary timeline-2", "2 catchingup"],
      "nothing",
      { ...ALONE, ...FORKED },
    ],
    [
      "R203: not while it's disputed which of the two holds",
      ["1 primary", "2 secondary timeline-2 writable"],
      "nothing",
      { disputed: true },
    ],
    [
      "R203: not while the primary can't be asked",
      ["1 primary down", "2 secondary timeline-2 writable"],
      "nothing",
    ],
    [
      "R203: not before there is a primary that takes writes",
      ["1 stop_replication>wait_primary", "2 secondary timeline-2 writable"],
      "nothing",
    ],
    [
      "R203: a server that is down has to show its timeline first",
      ["1 wait_primary", "2 catchingup timeline-2 down"],
      "nothing",
      ALONE,
    ],
  ]);
});

describe("the primary is in trouble, and its only standby takes over", () => {
  const takesOver = "1 draining, 2 prepare_promotion";
  const opens = "1 demoted, 2 wait_primary; sync nobody for 2";
  stories([
    ["R300: a failover is asked for", ["1 primary", "2 secondary"], `R300: ${takesOver}`, ASKED],
    ["R300: not without that", ["1 primary", "2 secondary"], "nothing"],
    [
      "R300: to the node that was named, although its priority is 0",
      ["1 primary", "2 secondary priority-0"],
      `R300: ${takesOver}`,
      { request: { ...REQUEST, target: 2 } },
    ],
    [
      "R300: to no other one",
      ["1 primary", "2 secondary"],
      "nothing",
      { request: { ...REQUEST, target: 3 } },
    ],
    [
      "R300: not to one that may lack a commit",
      ["1 primary", "2 secondary"],
      "nothing",
      { sync: setOf([2], 1, 2), inForce: NOBODY, ...ASKED },
    ],
    [
      "R300: unless that is allowed",
      ["1 primary", "2 secondary"],
      `R300: ${takesOver}`,
      {
        sync: setOf([2], 1, 2),
        inForce: NOBODY,
        request: { target: undefined, allowDataLoss: true },
      },
    ],
    [
      "R300: not to one that is down",
      ["1 primary", "2 secondary>catchingup down"],
      "nothing",
      { settings: PROTECTED, ...ASKED },
    ],
    [
      "R300: not from a primary that goes on alone",
      ["1 wait_primary", "2 catchingup not-streaming"],
      "nothing",
      { ...ALONE, ...ASKED },
    ],
    [
      "R301: the primary dies and its only standby takes over",
      ["1 primary down", "2 secondary"],
      `R301: ${takesOver}`,
    ],
    [
      "R301: in the middle of a change of the set",
      ["1 apply_settings down", "2 secondary"],
      `R301: ${takesOver}`,
      { sync: setOf([2], 1, 2), pending: [BOTH], inForce: SYNC },
    ],
    [
      "R301: a standby that was set back takes over, when the primary waits for it all the same",
      ["1 primary down", "2 catchingup"],
      `R301: ${takesOver}`,
      { settings: PROTECTED },
    ],
    [
      "R301: the primary's host is lost",
      ["1 primary gone", "2 secondary not-streaming"],
      `R301: ${takesOver}`,
    ],
    [
      "R301: a standby that still receives holds it back",
      ["1 primary gone", "2 secondary"],
      "nothing",
    ],
    [
      "R301: for unreachable_primary_timeout at most",
      ["1 primary unreachable", "2 secondary"],
      `R301: ${takesOver}`,
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
      "R301: not when it isn't known what was in force",
      ["1 primary down", "2 secondary"],
      "nothing",
      { inForce: undefined },
    ],
    [
      "R301: not when commits may have waited for somebody else",
      ["1 primary down", "2 secondary"],
      "nothing",
      { sync: setOf([2], 1, 2), inForce: setOf([3], 1) },
    ],
    [
      "R301: nor by a set that was assigned in between",
      ["1 primary down", "2 secondary"],
      "nothing",
      { sync: setOf([2], 1, 3), pending: [setOf([2, 3], 1, 2)], inForce: SYNC },
    ],
    [
      "R301: not when commits wait for nobody",
      ["1 primary down", "2 secondary no-quorum"],
      "nothing",
      ALONE,
    ],
    [
      "R301: not when the set is another primary's",
      ["1 apply_settings down", "2 secondary"],
      "R122: sync 1 of 2 for 1",
      { sync: setOf([2], 1, 1, 3) },
    ],
    ["R301: not a node with priority 0", ["1 primary down", "2 secondary priority-0"], "nothing"],
    ["R301: not a standby that is down too", ["1 primary down", "2 secondary down"], "nothing"],
    [
      "R301: not a standby that has left the history",
      ["1 primary down", "2 secondary timeline-2"],
      "nothing",
    ],
    [
      "R301: in an asynchronous group, one that is near enough",
      ["1 primary down", "2 secondary behind-16777216"],
      `R301: ${takesOver}`,
      { sync: setOf([2], 0), settings: { durability: "performance" } },
    ],
    [
      "R301: and no other",
      ["1 primary down", "2 secondary behind-16777217"],
      "nothing",
      { sync: setOf([2], 0), settings: { durability: "performance" } },
    ],
    [
      "R301: a primary that stopped itself is asked to go on",
      ["1 demote_timeout>primary down", "2 secondary"],
      "nothing",
    ],
    [
      "R301: unless it can't be started",
      ["1 demote_timeout>primary down start-failed", "2 secondary"],
      `R301: ${takesOver}`,
    ],
    [
      "R302: the candidate dies first",
      ["1 primary>draining down", "2 secondary>prepare_promotion down"],
      "R302: 1 wait_primary; sync nobody for 1",
    ],
    [
      "R302: when the old primary has stopped already",
      ["1 draining down", "2 prepare_promotion gone"],
      "R302: 1 wait_primary; sync nobody for 1",
    ],
    [
      "R302: under protection commits wait for the candidate's return",
      ["1 draining down", "2 prepare_promotion gone"],
      "R302: 1 wait_primary",
      { settings: PROTECTED },
    ],
    [
      "R302: not while the candidate is there",
      ["1 primary>draining down", "2 secondary>prepare_promotion"],
      "nothing",
    ],
    [
      "R302: not without word from the old primary",
      ["1 primary>draining gone", "2 secondary>prepare_promotion down"],
      "nothing",
    ],
    [
      "R302: nor when it can't be started",
      ["1 primary>draining down start-failed", "2 secondary>prepare_promotion down"],
      "nothing",
    ],
    [
      "R302: never once somebody may have been promoted",
      ["1 draining>demote_timeout down", "2 prepare_promotion>stop_replication down"],
      "nothing",
    ],
    [
      "R303: the candidate is disconnected",
      ["1 primary>draining down", "2 prepare_promotion"],
      "R303: 1 demote_timeout, 2 stop_replication",
    ],
    [
      "R303: when the old primary is on its way already, only the candidate's goal changes",
      ["1 demote_timeout down", "2 prepare_promotion"],
      "R303: 2 stop_replication",
    ],
    [
      "R303: not before it has said so",
      ["1 primary>draining down", "2 secondary>prepare_promotion"],
      "nothing",
    ],
    [
      "R303: not while it is down",
      ["1 primary>draining gone", "2 prepare_promotion down"],
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
      "R304: not while the candidate is down",
      ["1 demote_timeout down", "2 stop_replication down"],
      "nothing",
    ],
    [
      "R304: under protection the new primary waits for the old one's return",
      ["1 demote_timeout down", "2 stop_replication"],
      "R304: 1 demoted, 2 wait_primary; sync 1 of 1 for 2",
      { settings: PROTECTED },
    ],
    [
      "R305: the old primary was silent for node_timeout",
      ["1 primary>demote_timeout gone", "2 stop_replication"],
      `R305: ${opens}`,
    ],
    ["R305: not earlier", ["1 primary>demote_timeout", "2 stop_replication"], "nothing"],
    [
      "R305: not while somebody may still acknowledge its commits",
      ["1 primary>demote_timeout gone", "2 stop_replication", "3 secondary"],
      "R322: 3 report_lsn",
      TWO,
    ],
    [
      "R305: but when those have promised",
      ["1 primary>demote_timeout gone", "2 stop_replication", "3 join_secondary"],
      `R305: ${opens}`,
      TWO,
    ],
    [
      "R305: or its own fence has closed, counted from the candidate's promise",
      [
        "1 primary>demote_timeout gone",
        "2 stop_replication promised-3700",
        "3 catchingup>report_lsn",
      ],
      `R305: ${opens}`,
      TWO,
    ],
    [
      "R305: with strict fencing nothing but that",
      ["1 primary>demote_timeout gone", "2 stop_replication promised-3699"],
      "nothing",
      { settings: { strictFencing: true } },
    ],
    [
      "R305: not while the candidate is down",
      ["1 primary>demote_timeout gone", "2 stop_replication down"],
      "nothing",
    ],
    [
      "R306: the candidate is gone, and the old primary goes on",
      ["1 draining>demote_timeout down", "2 stop_replication gone"],
      "R306: 1 wait_primary, 2 demoted; sync nobody for 1",
    ],
    [
      "R306: not while the candidate is only down",
      ["1 draining>demote_timeout down", "2 stop_replication down"],
      "nothing",
    ],
    [
      "R306: not without word from the old primary",
      ["1 draining>demote_timeout gone", "2 stop_replication gone"],
      "nothing",
    ],
    [
      "R306: nor when it can't be started",
      ["1 draining>demote_timeout down start-failed", "2 stop_replication gone"],
      "nothing",
    ],
    [
      "R306: never once the new primary may have opened",
      ["1 demote_timeout>demoted down", "2 stop_replication>wait_primary gone"],
      "nothing",
      { sync: setOf([], 0, 1, 2) },
    ],
    [
      "R307: the candidate is gone, and another one takes its place",
      ["1 primary>demote_timeout gone", "2 stop_replication gone", "3 join_secondary"],
      "R307: 2 demoted",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R307: not when the other one may lack a commit",
      ["1 primary>demote_timeout gone", "2 stop_replication gone", "3 join_secondary"],
      "nothing",
      TWO,
    ],
    [
      "R311: the old primary comes back as a standby",
      ["1 demoted down", "2 wait_primary"],
      "R311: 1 catchingup",
      { sync: setOf([], 0, 1, 2) },
    ],
    [
      "R311: not before the new one takes writes",
      ["1 demoted down", "2 stop_replication>wait_primary"],
      "nothing",
      { sync: setOf([], 0, 1, 2) },
    ],
    [
      "R311: not while that is down",
      ["1 demoted down", "2 wait_primary down"],
      "nothing",
      { sync: setOf([], 0, 1, 2) },
    ],
  ]);
});

describe("the new primary is lost before the old one is back", () => {
  const LOSS: Extra = {
    sync: { ...NOBODY, primaryId: 2 },
    request: { target: undefined, allowDataLoss: true },
  };
  stories([
    [
      "R312: an operator goes on with what the old primary has",
      ["1 demoted down", "2 wait_primary gone"],
      "R312: 1 report_lsn",
      LOSS,
    ],
    [
      "R312: also when it was to follow the new one, and has not begun",
      ["1 demoted>catchingup down", "2 wait_primary gone"],
      "R312: 1 report_lsn",
      LOSS,
    ],
    [
      "R312: not by itself",
      ["1 demoted down", "2 wait_primary gone"],
      "nothing",
      { sync: { ...NOBODY, primaryId: 2 } },
    ],
    [
      "R312: not while the new primary may come back",
      ["1 demoted>catchingup down", "2 wait_primary"],
      "nothing",
      LOSS,
    ],
    [
      "R312: not beside a standby that has more",
      ["1 demoted down", "2 wait_primary gone", "3 catchingup not-streaming"],
      "R300: 2 draining, 3 prepare_promotion",
      LOSS,
    ],
  ]);
});

describe("the primary is in trouble, and its standbys elect one of them", () => {
  const primary = "1 primary>draining down";
  stories([
    [
      "R320: a failover is asked for",
      ["1 primary", "2 secondary", "3 secondary"],
      "R320: 1 draining",
      { ...TWO, ...ASKED },
    ],
    [
      "R320: not when nobody may be promoted",
      ["1 primary", "2 secondary priority-0", "3 secondary priority-0"],
      "nothing",
      { ...TWO, ...ASKED },
    ],
    [
      "R321: the primary dies",
      ["1 primary down", "2 secondary", "3 secondary"],
      "R321: 1 draining",
      TWO,
    ],
    [
      "R321: its host is lost",
      ["1 primary gone", "2 secondary not-streaming", "3 secondary not-streaming"],
      "R321: 1 draining",
      TWO,
    ],
    [
      "R321: one of the standbys still receives",
      ["1 primary gone", "2 secondary not-streaming", "3 secondary"],
      "nothing",
      TWO,
    ],
    [
      "R321: not when one is gone that alone may have flushed the last commit",
      ["1 primary down", "2 secondary", "3 secondary gone"],
      "nothing",
      TWO,
    ],
    [
      "R321: when both of two flush each commit, one is enough",
      ["1 primary down", "2 secondary", "3 secondary gone"],
      "R321: 1 draining",
      { sync: setOf([2, 3], 2), settings: { numberSyncStandbys: 2 } },
    ],
    [
      "R321: an asynchronous standby doesn't count",
      ["1 primary down", "2 secondary gone", "3 secondary no-quorum"],
      "nothing",
    ],
    [
      "R322: each standby is asked for the end of its WAL",
      [primary, "2 secondary", "3 secondary>report_lsn"],
      "R322: 2 report_lsn",
      TWO,
    ],
    [
      "R322: also one that is catching up: it may hold commits",
      [primary, "2 report_lsn", "3 catchingup"],
      "R322: 3 report_lsn",
      TWO,
    ],
    [
      "R322: not while the primary stays",
      ["1 primary", "2 secondary", "3 secondary"],
      "nothing",
      TWO,
    ],
    [
      "R323: both have reported, and one is elected",
      [primary, "2 report_lsn", "3 report_lsn"],
      "R323: 2 prepare_promotion",
      TWO,
    ],
    [
      "R323: the first elected is lost, and one that had lost takes its place",
      [primary, "2 stop_replication>demoted gone", "3 join_secondary"],
      "R323: 3 prepare_promotion",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R323: nobody before enough have reported",
      [primary, "2 report_lsn", "3 secondary>report_lsn"],
      "nothing",
      TWO,
    ],
    [
      "R323: nor from a report that a new goal has overtaken",
      [primary, "2 report_lsn>join_secondary", "3 report_lsn>join_secondary"],
      "nothing",
      TWO,
    ],
    [
      "R324: the one preferred lacks WAL, and fetches it",
      [primary, "2 report_lsn priority-90 behind-1", "3 report_lsn"],
      "R324: 2 fast_forward; from 3",
      TWO,
    ],
    [
      "R324: from the most advanced, where there are several that have more",
      [primary, "2 report_lsn priority-90 behind-2", "3 report_lsn behind-1", "4 report_lsn"],
      "R324: 2 fast_forward; from 4",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R324: not from one that is gone, however much it has",
      [primary, "2 report_lsn priority-90 behind-2", "3 report_lsn behind-1", "4 report_lsn gone"],
      "R324: 2 fast_forward; from 3",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R324: not from one that has left the history",
      [
        primary,
        "2 report_lsn priority-90 behind-2",
        "3 report_lsn behind-1",
        "4 report_lsn timeline-2",
      ],
      "R324: 2 fast_forward; from 3",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R324: nor from one that has gone on where the history left its timeline",
      [
        primary,
        "2 report_lsn timeline-2 priority-90",
        "3 report_lsn timeline-2 ahead-1",
        "4 report_lsn ahead-9",
      ],
      "R324: 2 fast_forward; from 3",
      { ...FORKED, sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R324: not from one that may still receive from the old primary",
      [
        primary,
        "2 report_lsn priority-90 behind-2 promised-5000",
        "3 report_lsn behind-1",
        "4 secondary>report_lsn",
      ],
      "R324: 2 fast_forward; from 3",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R324: not when it could not before",
      [primary, "2 report_lsn priority-90 behind-1 passed-over", "3 report_lsn"],
      "R323: 3 prepare_promotion",
      TWO,
    ],
    [
      "R325: it has fetched all there is",
      [primary, "2 fast_forward from-3", "3 report_lsn>join_secondary"],
      "R325: 2 prepare_promotion",
      TWO,
    ],
    [
      "R325: not before",
      [primary, "2 fast_forward behind-1 from-3", "3 join_secondary"],
      "nothing",
      TWO,
    ],
    [
      "R325: not with WAL that is none of the history's",
      [primary, "2 fast_forward timeline-2 from-3", "3 join_secondary"],
      "nothing",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R325: not while it is down",
      ["1 primary>draining gone", "2 fast_forward down from-3", "3 join_secondary behind-1"],
      "R327: 2 report_lsn",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R326: it takes too long",
      [primary, "2 report_lsn>fast_forward behind-1 from-3 told-30000", "3 join_secondary"],
      "R326: 2 report_lsn; 2 passed over",
      TWO,
    ],
    [
      "R326: nobody is left to fetch from",
      [primary, "2 report_lsn>fast_forward behind-1 from-3", "3 join_secondary gone"],
      "R302: 1 wait_primary; sync nobody for 1",
      TWO,
    ],
    [
      "R326: nor does the old primary answer",
      [
        "1 primary>draining gone",
        "2 report_lsn>fast_forward behind-1 from-3",
        "3 join_secondary gone",
      ],
      "R326: 2 report_lsn; 2 passed over",
      TWO,
    ],
    [
      "R326: not within its time",
      [primary, "2 report_lsn>fast_forward behind-1 from-3 told-29999", "3 join_secondary"],
      "nothing",
      TWO,
    ],
    [
      "R326: the one that was named is gone, though another one would be there",
      [primary, "2 fast_forward behind-1 from-3", "3 join_secondary gone", "4 join_secondary"],
      "R326: 2 report_lsn; 2 passed over",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R326: the one that was named has left the history",
      [
        primary,
        "2 fast_forward behind-1 from-3",
        "3 join_secondary timeline-2",
        "4 join_secondary",
      ],
      "R326: 2 report_lsn; 2 passed over",
      { sync: setOf([2, 3, 4], 2) },
    ],
    [
      "R327: the candidate is lost, and others are there",
      [primary, "2 prepare_promotion gone", "3 join_secondary"],
      "R327: 2 report_lsn",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R327: not when no other can take over",
      ["1 primary>draining gone", "2 prepare_promotion gone", "3 join_secondary priority-0"],
      "nothing",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R327: not while the candidate is well",
      [primary, "2 report_lsn>prepare_promotion", "3 join_secondary"],
      "nothing",
      { sync: setOf([2, 3], 2) },
    ],
    [
      "R327: nor when it is the only standby",
      ["1 primary>draining gone", "2 prepare_promotion down"],
      "nothing",
    ],
    [
      "R328: who is not elected waits for the new primary",
      [primary, "2 report_lsn>prepare_promotion", "3 report_lsn"],
      "R328: 3 join_secondary",
      TWO,
    ],
    [
      "R328: not before somebody is",
      [primary, "2 secondary>report_lsn", "3 report_lsn"],
      "nothing",
      TWO,
    ],
    [
      "R329: the new primary takes writes",
      ["1 demoted>catchingup gone", "2 wait_primary timeline-2", "3 join_secondary"],
      "R329: 3 catchingup",
      { sync: setOf([], 0, 1, 2), ...FORKED },
    ],
    [
      "R329: the failover was called off before the standby had heard of it",
      ["1 wait_primary", "2 secondary>prepare_promotion"],
      "R329: 2 catchingup",
      ALONE,
    ],
    [
      "R329: not before it takes writes",
      ["1 demoted gone", "2 stop_replication>wait_primary timeline-2", "3 join_secondary"],
      "nothing",
      { sync: setOf([], 0, 1, 2), ...FORKED },
    ],
    [
      "R329: not while it is down",
      ["1 demoted gone", "2 wait_primary timeline-2 down", "3 join_secondary"],
      "nothing",
      { sync: setOf([], 0, 1, 2), ...FORKED },
    ],
  ]);
});

describe("maintenance", () => {
  const LAST = { sync: { ...SYNC, version: 2 }, inForce: { ...SYNC, version: 1 } };
  const BY_2: Extra = { sync: { ...NOBODY, primaryId: 2 } };
  stories([
    [
      "R131: the primary leaves it out first",
      ["1 primary", "2 secondary maintained", "3 secondary"],
      "R131: 2 catchingup",
      TWO,
    ],
    [
      "R131: not while the primary is away, who may have to be replaced by it",
      ["1 primary silent", "2 secondary maintained"],
      "nothing",
    ],
    [
      "R113: nor does it become a secondary meanwhile",
      ["1 wait_primary", "2 catchingup maintained"],
      "R132: 2 maintenance",
      ALONE,
    ],
    [
      "R132: not while commits may still wait for it",
      ["1 primary>wait_primary", "2 catchingup maintained"],
      "nothing",
      { ...LAST, sync: { ...NOBODY, version: 2 } },
    ],
    [
      "R132: nor when it isn't known whether they do",
      ["1 wait_primary", "2 catchingup maintained"],
      "nothing",
      { sync: NOBODY, inForce: undefined },
    ],
    [
      "R132: in an asynchronous group they never do",
      ["1 primary", "2 catchingup maintained", "3 secondary"],
      "R132: 2 maintenance",
      { sync: setOf([3], 0), inForce: undefined, settings: { durability: "performance" } },
    ],
    [
      "R132: an old primary is left alone as it is, stopped",
      ["1 demoted down maintained", "2 wait_primary"],
      "R132: 1 maintenance",
      BY_2,
    ],
    [
      "R133: it follows the primary again",
      ["1 wait_primary", "2 maintenance down"],
      "R133: 2 catchingup",
      ALONE,
    ],
    [
      "R133: not before it's over",
      ["1 wait_primary", "2 maintenance down maintained"],
      "nothing",
      ALONE,
    ],
    [
      "R133: nor without a primary to follow",
      ["1 demoted", "2 maintenance", "3 stop_replication"],
      "nothing",
      BY_2,
    ],
    [
      "R134: it takes part in the election that is under way",
      ["1 primary>draining gone", "2 maintenance", "3 report_lsn>prepare_promotion"],
      "R134: 2 report_lsn",
    ],
    [
      "R123: under protection commits wait for those that are not in maintenance",
      ["1 wait_primary", "2 maintenance maintained", "3 catchingup behind-99999999"],
      "R123: sync 1 of 3 for 1",
      { sync: BOTH, settings: PROTECTED },
    ],
    [
      "R123: unless all of them are",
      ["1 wait_primary", "2 maintenance maintained"],
      "nothing",
      { settings: PROTECTED },
    ],
    [
      "R301: one that is about to be left alone takes over when nobody else can",
      ["1 primary down", "2 secondary maintained"],
      "R301: 1 draining, 2 prepare_promotion",
    ],
    [
      "R323: another one goes before it",
      ["1 primary>draining gone", "2 report_lsn maintained priority-90", "3 report_lsn"],
      "R323: 3 prepare_promotion",
      TWO,
    ],
  ]);
});

describe("a switchover", () => {
  const PLANNED: Extra = { request: { planned: true } };
  const OF_THREE: Extra = { ...PLANNED, sync: BOTH };
  const TO_3: Extra = { ...OF_THREE, request: { planned: true, target: 3 } };
  stories([
    [
      "R330: the primary is told to stop, and nobody else anything",
      ["1 primary", "2 secondary"],
      "R330: 1 draining",
      PLANNED,
    ],
    [
      "R330: with priority 0 only by name",
      ["1 primary", "2 secondary priority-0"],
      "nothing",
      PLANNED,
    ],
    [
      "R330: by name",
      ["1 primary", "2 secondary", "3 secondary priority-0"],
      "R330: 1 draining",
      TO_3,
    ],
    [
      "R330: not while the one to take over is far behind",
      ["1 primary", "2 secondary behind-99999999"],
      "nothing",
      PLANNED,
    ],
    [
      "R330: nor while it doesn't stream",
      ["1 primary", "2 secondary not-streaming"],
      "nothing",
      PLANNED,
    ],
    [
      "R330: nor when it is to be left alone itself",
      ["1 primary", "2 secondary maintained"],
      "R131: 2 catchingup",
      PLANNED,
    ],
    [
      "R300: it's no failover: a primary that goes on alone does so",
      ["1 wait_primary", "2 catchingup behind-99999999"],
      "nothing",
      { ...PLANNED, sync: NOBODY },
    ],
    [
      "R322: nobody disconnects while the primary stops",
      ["1 primary>draining", "2 secondary", "3 secondary"],
      "nothing",
      OF_THREE,
    ],
    [
      "R331: it has stopped: the preferred one takes over",
      ["1 draining ended-0", "2 secondary", "3 secondary priority-70"],
      "R331: 3 prepare_promotion",
      OF_THREE,
    ],
    [
      "R331: or the one that was named",
      ["1 draining ended-0", "2 secondary", "3 secondary"],
      "R331: 3 prepare_promotion",
      TO_3,
    ],
    [
      "R322: it did not stop in good order: an election",
      ["1 draining down", "2 secondary", "3 secondary"],
      "R322: 2 report_lsn",
      OF_THREE,
    ],
    [
      "R322: it is gone meanwhile: an election",
      ["1 primary>draining gone", "2 secondary", "3 secondary"],
      "R322: 2 report_lsn",
      OF_THREE,
    ],
    [
      "R303: who has all that the primary had is promoted, whoever else has not disconnected",
      ["1 draining ended-0", "2 report_lsn", "3 prepare_promotion"],
      "R303: 1 demote_timeout, 3 stop_replication",
      OF_THREE,
    ],
    [
      "R332: who lacks something is not: the primary goes on",
      ["1 draining ended-9", "2 secondary>report_lsn", "3 prepare_promotion"],
      "R332: 1 wait_primary; sync nobody for 1",
      OF_THREE,
    ],
    [
      "R302: nobody is left to take over",
      ["1 primary>draining", "2 secondary gone", "3 secondary"],
      "R302: 1 wait_primary",
      { ...OF_THREE, request: { planned: true, target: 2 } },
    ],
    [
      "R332: it takes too long",
      ["1 primary>draining told-30000", "2 secondary"],
      "R332: 1 wait_primary",
      PLANNED,
    ],
    [
      "R332: not when the primary can't be started",
      ["1 draining ended-9 start-failed", "2 secondary>report_lsn", "3 prepare_promotion"],
      "nothing",
      OF_THREE,
    ],
    [
      "R333: the heir lacks something, and the primary is gone: an election",
      ["1 draining gone", "2 secondary>report_lsn", "3 prepare_promotion behind-9"],
      "R333: 3 report_lsn",
      OF_THREE,
    ],
  ]);

  test("the event says how long the primary took to stop", () => {
    const view = group(["1 draining ended-0", "2 secondary"], PLANNED);
    expect(decideGroup(view)?.note).toBe("the old primary took 40 ms to stop");
  });
});

describe("timers that the primary has not heard of yet", () => {
  stories([
    [
      "R305: it is waited for by those that it knows",
      ["1 primary>demote_timeout gone fence-9000", "2 stop_replication promised-4000"],
      "nothing",
    ],
    [
      "R305: an asynchronous one has fenced itself by those",
      ["1 primary>demote_timeout unreachable fence-9000", "2 stop_replication promised-8999"],
      "nothing",
      { sync: setOf([2], 0), settings: { durability: "performance" } },
    ],
    [
      "R305: and is replaced then",
      ["1 primary>demote_timeout unreachable fence-9000", "2 stop_replication promised-9000"],
      "R305: 1 demoted, 2 wait_primary; sync nobody for 2",
      { sync: setOf([2], 0), settings: { durability: "performance" } },
    ],
  ]);
});
