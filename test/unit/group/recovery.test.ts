/** What the keepers know, and the monitor that is made of it. */
import { expect, test } from "bun:test";
import {
  type Memory,
  missingNodes,
  planRecovery,
  RecoveryConflict,
  type Testimony,
} from "../../../lib/group/recovery.ts";

const NOW = "2000-01-01 00:00:00+00";

const set = (version: number, primaryId: number, ...members: number[]) => ({
  version,
  primaryId,
  members,
  number: 1,
});

/** Three nodes, 1 is the primary, as the monitor knew them at event 90. */
const MEMORY: Memory = {
  version: 90,
  formations: [{ formationid: "default", durability: "protection" }],
  roster: [1, 2, 3].map((nodeId) => ({
    formation: "default",
    groupId: 0,
    nodeId,
    name: `node_${nodeId}`,
    identity: `id-${nodeId}`,
  })),
  removed: [{ nodeid: 7, identity: "id-7" }],
  group: { syncversion: 4, syncprimary: 1, syncmembers: [2, 3], syncnumber: 1 },
  nodes: [1, 2, 3].map((nodeid) => ({
    nodeid,
    identity: `id-${nodeid}`,
    nodename: `node_${nodeid}`,
    nodehost: "host",
    nodeport: 5000 + nodeid,
    sysidentifier: "7000000000000000001",
    goalstate: nodeid === 1 ? "primary" : "secondary",
    goalversion: 11,
    candidatepriority: 70,
  })),
  timelines: [
    { timeline: 1, parent: 0, forklsn: "0/0", nodeid: 1, nodename: "node_1" },
    { timeline: 2, parent: 1, forklsn: "0/3000000", nodeid: 1, nodename: "node_1" },
  ],
};

function says(nodeId: number, change: Partial<Testimony> = {}): Testimony {
  const isPrimary = nodeId === 1;
  const state = isPrimary ? "primary" : "secondary";
  return {
    identity: `id-${nodeId}`,
    formation: "default",
    groupId: 0,
    nodeId,
    name: `node_${nodeId}`,
    host: "host",
    port: 5000 + nodeId,
    dbname: undefined,
    candidatePriority: 50,
    replicationQuorum: true,
    systemIdentifier: "7000000000000000001",
    state,
    goal: state,
    goalVersion: 12,
    syncVersion: isPrimary ? 4 : 0,
    reportNo: 5n,
    pgIsRunning: true,
    inRecovery: !isPrimary,
    streaming: !isPrimary,
    timeline: 2,
    lsn: 0x5000000n,
    promotion: isPrimary ? { timeline: 2, forkLsn: "0/3000000" } : undefined,
    ancestry: [{ timeline: 1, forkLsn: 0x3000000n }],
    inForce: isPrimary ? set(4, 1, 2, 3) : undefined,
    written: isPrimary ? set(4, 1, 2, 3) : undefined,
    fenceMs: 3700,
    rejoins: false,
    memory: MEMORY,
    ...change,
  };
}

const goals = (said: Testimony[]): Record<number, unknown> =>
  Object.fromEntries(
    planRecovery(said, NOW).nodes.map(({ nodeid, goalstate }) => [Number(nodeid), goalstate]),
  );

function refusal(said: Testimony[]): string {
  try {
    planRecovery(said, NOW);
    return "";
  } catch (error) {
    if (error instanceof RecoveryConflict) return error.message;
    throw error;
  }
}

test("everything is as it was, with versions that nobody has seen", () => {
  const plan = planRecovery([says(1), says(2), says(3)], NOW);
  expect(plan).toMatchObject({
    formations: MEMORY.formations,
    timelines: MEMORY.timelines,
    removed: MEMORY.removed,
    lastEvent: 90,
    lastNodeId: 7,
    notes: [],
  });
  expect(plan.groups).toMatchObject([
    { syncprimary: 1, syncmembers: [2, 3], syncnumber: 1, syncinforce: set(4, 1, 2, 3) },
  ]);
  expect(plan.nodes).toMatchObject(
    [1, 2, 3].map((nodeid) => ({
      nodeid,
      goalstate: nodeid === 1 ? "primary" : "secondary",
      candidatepriority: 70,
      sysidentifier: "7000000000000000001",
      reportedlsn: "0/5000000",
      reportno: "5",
    })),
  );
  for (const { goalversion } of plan.nodes) expect(Number(goalversion)).toBeGreaterThan(1000);
  expect(Number(plan.groups[0]?.["syncversion"])).toBeGreaterThan(1000);
});

test("who has not called is missing, by the newest that anybody has kept", () => {
  const newer = { ...MEMORY, version: 91, roster: MEMORY.roster.slice(0, 2) };
  expect(missingNodes([says(1), says(2)])).toEqual(["node_3"]);
  expect(missingNodes([says(1), says(2, { memory: newer })])).toEqual([]);
});

test("a node that was removed doesn't count, unless an operator brings it back", () => {
  const gone = { identity: "id-7", name: "node_7", port: 5007 };
  const said = [says(1), says(2), says(3)];
  expect(goals([...said, says(7, gone)])).not.toHaveProperty("7");
  expect(goals([...said, says(7, { ...gone, rejoins: true })])).toHaveProperty("7", "secondary");
});

test("a node that is left out stays one of the group, as its peers knew it", () => {
  const plan = planRecovery([says(1), says(2)], NOW);
  expect(plan.nodes[2]).toMatchObject({ nodeid: 3, goalstate: "secondary", reportno: 0 });
});

test("without the primary nobody knows what is in force: nothing is taken from it", () => {
  const plan = planRecovery([says(2), says(3)], NOW);
  expect(plan.groups[0]).toMatchObject({ syncprimary: 1, syncinforce: null });
  expect(goals([says(2), says(3)])).toEqual({ 1: "primary", 2: "secondary", 3: "secondary" });
});

test("names that were written and not shown to be in force count beside those that were", () => {
  const primary = says(1, { written: set(5, 1, 2) });
  expect(planRecovery([primary, says(2), says(3)], NOW).groups[0]).toMatchObject({
    syncmembers: [2],
    syncinforce: set(4, 1, 2, 3),
    syncpending: [set(5, 1, 2)],
  });
});

test("a failover that only the candidate had heard of is taken back", () => {
  const candidate = says(2, { state: "prepare_promotion", goal: "stop_replication" });
  expect(goals([says(1), candidate, says(3)])).toMatchObject({ 1: "primary", 2: "catchingup" });
  const promoted = says(2, { state: "stop_replication", goal: "stop_replication" });
  expect(goals([says(1), promoted, says(3)])).toMatchObject({ 1: "primary", 2: "demoted" });
});

test("a failover in which nobody takes writes yet goes on", () => {
  const old = says(1, { state: "demoted", goal: "demoted", pgIsRunning: false, timeline: 0 });
  const candidate = says(2, { state: "stop_replication", goal: "stop_replication" });
  const said = [old, candidate, says(3, { state: "join_secondary", goal: "join_secondary" })];
  expect(goals(said)).toEqual({ 1: "demoted", 2: "stop_replication", 3: "join_secondary" });
  expect(planRecovery(said, NOW).groups[0]).toMatchObject({ syncprimary: 1 });
  expect(planRecovery(said, NOW).nodes[1]).toMatchObject({ promisedsince: NOW });
});

const NEW_PRIMARY: Partial<Testimony> = {
  state: "wait_primary",
  goal: "primary",
  inRecovery: false,
  timeline: 3,
  promotion: { timeline: 3, forkLsn: "0/4000000" },
  ancestry: [
    { timeline: 1, forkLsn: 0x3000000n },
    { timeline: 2, forkLsn: 0x4000000n },
  ],
};

test("the old primary, fenced or crashed, has not heard of the new one: it rejoins", () => {
  for (const state of ["demote_timeout", "primary"] as const) {
    const old = says(1, { state, pgIsRunning: false, inRecovery: undefined });
    const said = [old, says(2, NEW_PRIMARY), says(3)];
    expect(goals(said)).toEqual({ 1: "demoted", 2: "primary", 3: "secondary" });
    expect(planRecovery(said, NOW)).toMatchObject({
      groups: [{ syncprimary: 2, syncinforce: null }],
      timelines: [
        ...MEMORY.timelines,
        { timeline: 3, parent: 2, forklsn: "0/4000000", nodeid: 2, nodename: "node_2" },
      ],
    });
  }
});

test("a lone primary whose standbys come back waits for them again", () => {
  const alone = says(1, { state: "single", goal: "single" });
  const memory = { ...MEMORY, roster: [], removed: [], nodes: [] };
  expect(goals([{ ...alone, memory }, says(2, { memory })])).toMatchObject({ 1: "wait_primary" });
});

test("what no keeper has kept gets defaults, and is said", () => {
  const plan = planRecovery([says(1, { memory: undefined, dbname: "app" })], NOW);
  expect(plan.formations).toEqual([{ formationid: "default", dbname: "app" }]);
  expect(plan.notes).toEqual([
    'Of node 1 "node_1" only its own settings are known: candidate priority 50, replication quorum true',
    'No keeper knows the settings of formation "default": it has the defaults, see roles/formation.ts get',
  ]);
});

test("what contradicts itself is refused, in a sentence", () => {
  const others = [says(2), says(3)];
  expect(refusal([says(1), says(2, NEW_PRIMARY), says(3)])).toBe(
    'node 1 "node_1" and node 2 "node_2" both take writes',
  );
  expect(refusal([says(1), says(2, { identity: "id-9", nodeId: 1 })])).toBe(
    'node 1 "node_1" at host:5001 and node 1 "node_2" at host:5002 have the same number',
  );
  expect(refusal([says(1), says(2, { systemIdentifier: "8" }), says(3)])).toBe(
    'node 2 "node_2" has system identifier 8, node 1 "node_1" has 7000000000000000001: they are different clusters',
  );
  const opening = says(2, { state: "stop_replication", goal: "wait_primary" });
  expect(refusal([says(1), opening, says(3)])).toBe(
    'node 1 "node_1" takes writes, but node 2 "node_2" was to take its place',
  );
  const crashed = says(2, { ...NEW_PRIMARY, pgIsRunning: false });
  expect(refusal([says(1), crashed, says(3)])).toBe(
    'node 1 "node_1" takes writes, but node 2 "node_2" was to take its place, on timeline 3',
  );
  const kept = { timeline: 3, parent: 2, forklsn: "0/4", nodeid: 2, nodename: "node_2" };
  const memory = { ...MEMORY, version: 99, timelines: [...MEMORY.timelines, kept] };
  expect(refusal([says(1, { memory }), ...others])).toBe(
    'node 1 "node_1" is the primary on timeline 2, but the group\'s history went on to timeline 3 with node 2 "node_2"',
  );
  const fork = { ...MEMORY.timelines[1], forklsn: "0/2000000", nodeid: 2, nodename: "node_2" };
  const forked = { ...MEMORY, version: 99, timelines: [fork] };
  expect(refusal([says(1, { memory: forked }), ...others])).toContain("history went on");
  const down = { pgIsRunning: false, timeline: 0, promotion: undefined };
  expect(refusal([says(1, down), says(2, { ...NEW_PRIMARY, ...down }), says(3)])).toBe(
    'node 1 "node_1" and node 2 "node_2" both hold themselves for the primary, and neither runs',
  );
});
