/** Events in a few words, and the failovers that they tell. */
import { expect, test } from "bun:test";
import type { NodeState } from "../../../lib/fsm.ts";
import { failoversOf, type GroupEvent, phasesOf } from "../../../lib/group/failovers.ts";

const DOWN = "reports that PostgreSQL is not running";
const UP = "reports that PostgreSQL is running again";

/**
 * One event a line: milliseconds, node, then `says STATE`, `RULE STATE` with what stands in brackets, `down`, `up`,
 * `asked`, or `blocked`.
 */
function eventsOf(text: string): GroupEvent[] {
  const lines = text.trim().split("\n");
  return lines.map((line) => {
    const [, at, node, word = "", state, more] =
      /^(\d+) (\d) (\w+)(?: (\w+))?(?: (\(.*\)))?$/.exec(line.trim()) ?? [];
    const remark: Readonly<Record<string, string>> = {
      says: `New state is reported by node ${node} "node_${node}" (h:1): "${state}"`,
      down: `Node ${node} "node_${node}" (h:1) ${DOWN}`,
      up: `Node ${node} "node_${node}" (h:1) ${UP}`,
      asked: "A failover of group 0 was asked for",
      blocked: "Blocked: node 2 can't be asked",
    };
    const isRule = /^R\d+$/.test(word);
    if (!isRule && remark[word] === undefined) throw new Error(`no such event: ${line}`);
    return {
      atMs: Number(at),
      nodeId: Number(node),
      nodeName: `node_${node}`,
      reported: (word === "says" ? state : "primary") as NodeState,
      goal: (isRule ? state : "primary") as NodeState,
      rule: isRule ? word : null,
      description: remark[word] ?? `goal "x" → "${state}": why${more ? ` ${more}` : ""}`,
    };
  });
}

const told = (text: string) => failoversOf(eventsOf(text));

const PAIR = `
  100 1 down
  110 2 R301 prepare_promotion
  110 1 R301 draining
  125 1 says draining
  150 2 says prepare_promotion
  151 2 R303 stop_replication
  151 1 R303 demote_timeout
  170 1 says demote_timeout
  210 2 says stop_replication
  215 2 R304 wait_primary
  215 1 R304 demoted
  260 2 says wait_primary
  300 1 R311 catchingup
  900 1 says catchingup
  950 2 R114 primary
  960 2 says primary`;

test("a pair: each phase from the reports of both, the outage from the notice to the open writes", () => {
  const [failover, ...more] = told(PAIR);
  expect(more).toEqual([]);
  expect(failover).toEqual({
    ...{ kind: "failover", status: "done", from: "node_1", to: "node_2" },
    ...{ noticedMs: 100, decidedMs: 110, closedMs: null, disconnectedMs: 150, promotedMs: 210 },
    ...{ openMs: 260, redundantMs: 960, lostBytes: null, notes: [] },
  });
  expect(failover && phasesOf(failover)).toEqual({
    ...{ decide: 10, disconnect: 40, promote: 60, open: 50, outage: 160, redundancy: 700 },
  });
});

test("asked for: it took writes until it was told to give way", () => {
  const asked = PAIR.replace("100 1 down", "70 1 asked").replaceAll("R301", "R300");
  const [failover] = told(asked);
  expect(failover).toMatchObject({ kind: "asked for", noticedMs: 70, status: "done" });
  expect(failover && phasesOf(failover)).toMatchObject({ decide: 40, outage: 150 });
});

test("a switchover: it took writes until it had written everything out, and stopped", () => {
  const [failover] = told(`
    70 1 asked
    100 1 R330 draining
    900 1 says draining
    910 2 R331 prepare_promotion (the old primary took 40 ms to stop)
    950 2 says prepare_promotion
    1000 2 says stop_replication
    1020 2 says wait_primary`);
  expect(failover).toMatchObject({ status: "done", closedMs: 870, openMs: 1020 });
  expect(failover && phasesOf(failover)).toMatchObject({ decide: 30, outage: 150 });
});

test("a primary that fell silent: nothing was noticed before the decision", () => {
  const [failover] = told(PAIR.replace("100 1 down", "100 2 says secondary"));
  expect(failover).toMatchObject({ noticedMs: null, decidedMs: 110 });
  expect(failover && phasesOf(failover)).toMatchObject({ decide: null, outage: 150 });
});

test("a crash that the primary got over by itself is no notice of a later failover", () => {
  const later = PAIR.replace("100 1 down", "10 1 down\n20 1 up");
  expect(told(later)).toMatchObject([{ noticedMs: null }]);
  expect(told("10 1 down\n20 1 up")).toEqual([]);
});

test("a fenced primary has been without writes since", () => {
  expect(told(PAIR.replace("100 1 down", "50 1 says demote_timeout"))).toMatchObject([
    { noticedMs: 50 },
  ]);
});

test("an election: the candidate is known once it is chosen, and the bytes given up are told", () => {
  const [failover] = told(`
    100 1 R321 draining
    110 2 R322 report_lsn
    110 3 R322 report_lsn
    200 2 says report_lsn
    220 3 says report_lsn
    221 3 R324 fast_forward
    300 3 says fast_forward
    301 3 R325 prepare_promotion (the old primary's last known position is 512 bytes ahead: commits in them are lost)
    310 3 says prepare_promotion
    311 3 R303 stop_replication
    400 3 says stop_replication
    410 3 R305 wait_primary
    450 3 says wait_primary`);
  expect(failover).toEqual({
    ...{ kind: "failover", status: "done", from: "node_1", to: "node_3" },
    ...{ noticedMs: null, decidedMs: 100, closedMs: null, disconnectedMs: 310, promotedMs: 400 },
    ...{ openMs: 450, redundantMs: null, lostBytes: 512, notes: [] },
  });
});

test("a candidate that is given up: the phases are those of the one that takes its place", () => {
  const [failover] = told(`
    100 1 R321 draining
    200 2 R323 prepare_promotion
    210 2 says prepare_promotion
    300 2 R327 report_lsn
    310 3 R323 prepare_promotion
    320 3 says prepare_promotion
    321 3 R303 stop_replication
    400 3 says stop_replication`);
  expect(failover).toMatchObject({
    ...{ status: "under way", to: "node_3", disconnectedMs: 320, promotedMs: 400, openMs: null },
    notes: ["node_2 was given up"],
  });
});

test("called off: the old primary goes on, which ends the outage", () => {
  const [failover] = told(`
    100 1 down
    110 1 R321 draining
    120 1 says draining
    130 1 blocked
    140 1 blocked
    500 1 R302 wait_primary
    600 1 says wait_primary
    700 1 says primary`);
  expect(failover).toMatchObject({
    ...{ status: "called off", to: null, openMs: 600, redundantMs: 700 },
    notes: ["Blocked: node 2 can't be asked"],
  });
  expect(failover && phasesOf(failover)).toMatchObject({ outage: 500, redundancy: 100 });
});

test("back and forth: each failover by itself, and a decision that was not seen is left out", () => {
  const back = PAIR.replaceAll(
    /^ +(\d+) ([12])/gm,
    (_, at, node) => `${Number(at) + 2000} ${3 - node}`,
  );
  const beheaded = PAIR.split("\n").slice(4).join("\n");
  expect(
    told(
      `${beheaded}\n${back.trim()}\n${PAIR.replaceAll(/^ +(\d+)/gm, (_, at) => `${Number(at) + 4000}`).trim()}`,
    ),
  ).toMatchObject([
    { from: "node_2", to: "node_1", decidedMs: 2110, redundantMs: 2960 },
    { from: "node_1", to: "node_2", decidedMs: 4110, redundantMs: 4960 },
  ]);
});
