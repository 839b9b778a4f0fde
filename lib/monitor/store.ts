/** What only the monitor's process does in its database: read a group under its lock, write goals and events. */
import type { NodeState } from "../fsm.ts";
import { decideGroup, type GroupDecision, nextDeadlineMs } from "../group/facts.ts";
import type { GroupView, Health } from "../group/view.ts";
import { type GroupRow, parseGroupRow } from "../shapes.ts";
import type { Db } from "../sys/sql.ts";

export type GroupKey = { readonly formation: string; readonly groupId: number };

const READ_GROUP = `
select jsonb_build_object(
  'formation', g.formationid, 'groupId', g.groupid,
  'clockMs', extract(epoch from now_.at) * 1000,
  'sync', pgautofailover.assigned_set(g), 'policy', pgautofailover.policy(f),
  'nodes', (select coalesce(jsonb_agg(jsonb_build_object(
      'nodeId', n.nodeid, 'name', n.nodename, 'host', n.nodehost, 'port', n.nodeport,
      'reported', n.reportedstate, 'goal', n.goalstate, 'pgRunning', n.reportedpgisrunning,
      'startFailures', n.startfailures,
      'reportAgeMs', greatest(0, extract(epoch from now_.at - n.reporttime) * 1000),
      'health', n.health,
      'healthAgeMs', greatest(0, extract(epoch from now_.at - n.healthchecktime) * 1000),
      'timeline', n.reportedtli, 'lsn', (n.reportedlsn - '0/0'::pg_lsn)::text,
      'streaming', n.streaming,
      'stalledMs', coalesce(greatest(0, extract(epoch from now_.at - n.stalledsince) * 1000), 0),
      'candidatePriority', n.candidatepriority, 'replicationQuorum', n.replicationquorum,
      'syncInForce', n.syncinforce, 'reportNo', n.reportno::text, 'decidedReport', n.decidedreport::text)
      order by n.nodeid), '[]')
    from pgautofailover.node n where n.formationid = g.formationid and n.groupid = g.groupid)) as value
from pgautofailover."group" g join pgautofailover.formation f using (formationid), (select clock_timestamp() as at) now_
where g.formationid = $1 and g.groupid = $2`;

/**
 * A row as the rules may judge it: nobody is judged on a silence from before `watchedMs` ago, when
 * the monitor (re)started or lost its sense of time, nor on a probe from before.
 */
function viewOf(row: GroupRow, watchedMs: number): GroupView {
  return {
    formation: row.formation,
    groupId: row.groupId,
    sync: row.sync,
    policy: row.policy,
    nodes: row.nodes.map((node) => ({
      ...node,
      reportAgeMs: Math.min(node.reportAgeMs, watchedMs),
      stalledMs: Math.min(node.stalledMs, watchedMs),
      healthAgeMs:
        node.healthAgeMs !== undefined && node.healthAgeMs < watchedMs
          ? node.healthAgeMs
          : undefined,
    })),
  };
}

export async function groups(db: Db): Promise<GroupKey[]> {
  return db.query<{ formation: string; groupId: number }>(
    `select formationid as formation, groupid as "groupId" from pgautofailover."group" order by 1, 2`,
  );
}

export async function readGroup(
  db: Pick<Db, "query">,
  key: GroupKey,
): Promise<GroupRow | undefined> {
  const [row] = await db.query(READ_GROUP, [key.formation, key.groupId]);
  return row && parseGroupRow(row["value"]);
}

const STATE_TEXT = (from: NodeState, to: NodeState) => `goal "${from}" → "${to}"`;

async function write(query: Db["query"], row: GroupRow, decision: GroupDecision): Promise<void> {
  const { rule, selfId, goals, sync } = decision;
  if (sync) {
    await query(
      `update pgautofailover."group" set syncversion = $3, syncprimary = $4, syncmembers = $5::text::bigint[], syncnumber = $6
       where formationid = $1 and groupid = $2`,
      [
        row.formation,
        row.groupId,
        sync.version,
        sync.primaryId,
        `{${sync.members.join()}}`,
        sync.number,
      ],
    );
  }
  for (const [nodeId, goal] of goals) {
    const from = row.nodes.find((node) => node.nodeId === nodeId)?.goal ?? "init";
    await query(
      `with assigned as (
         update pgautofailover.node n set goalstate = $2, goalversion = n.goalversion + 1, statechangetime = clock_timestamp()
         where n.nodeid = $1 returning n.*)
       select pgautofailover.log_event(assigned, $3, $4) from assigned`,
      [nodeId, goal, rule.id, `${STATE_TEXT(from, goal)}: ${rule.why}`],
    );
  }
  if (rule.forget) {
    await query(
      `with gone as (delete from pgautofailover.node n where n.nodeid = $1 returning n.*)
       select pgautofailover.log_event(gone, $2, $3) from gone`,
      [selfId, rule.id, rule.why],
    );
  }
}

export type Outcome = {
  readonly decisions: readonly GroupDecision[];
  readonly row: GroupRow;
  /** When to look again even if nobody says anything. */
  readonly nextMs: number;
};

/** Rules fire one after the other until none changes anything; more than this is a loop. */
const DECISIONS_MAX = 8;

/**
 * Reads the group under its lock, lets the rules decide, writes goals, set and events in the same
 * transaction, and wakes the group's keepers.
 */
export async function decideAndWrite(
  db: Db,
  key: GroupKey,
  watchedMs: number,
): Promise<Outcome | undefined> {
  return db.transaction(
    async (query) => {
      await query("select pgautofailover.lock_group($1, $2)", [key.formation, key.groupId]);
      const decisions: GroupDecision[] = [];
      let row = await readGroup({ query }, key);
      if (row === undefined) return undefined;
      for (
        let decision = decideGroup(viewOf(row, watchedMs));
        decision;
        decision = decideGroup(viewOf(row, watchedMs))
      ) {
        if (decisions.length === DECISIONS_MAX)
          throw new Error(`the rules don't settle: ${decision.rule.id}`);
        await write(query, row, decision);
        decisions.push(decision);
        row = await readGroup({ query }, key);
        if (row === undefined) return undefined;
      }
      // The keeper of a crashed primary waits to hear that its report has been considered.
      const waiting = row.nodes.filter(
        (node) =>
          node.reported === "primary" && !node.pgRunning && node.decidedReport < node.reportNo,
      );
      for (const node of waiting) {
        await query("update pgautofailover.node set decidedreport = $2 where nodeid = $1", [
          node.nodeId,
          String(node.reportNo),
        ]);
      }
      if (decisions.length > 0 || waiting.length > 0) {
        await query(
          "select pgautofailover.notify_state(n) from pgautofailover.node n where n.formationid = $1 and n.groupid = $2",
          [key.formation, key.groupId],
        );
      }
      return { decisions, row, nextMs: nextDeadlineMs(viewOf(row, watchedMs)) };
    },
    { timeoutMs: 5000 },
  );
}

/** Records a probe; the moment is the one at which it was begun, on the database's clock. */
export async function recordHealth(
  db: Db,
  nodeId: number,
  health: Health,
  tookMs: number,
): Promise<void> {
  const value = health === "good" ? 1 : health === "bad" ? 0 : -1;
  await db.query(
    `with quiet as materialized (select set_config('synchronous_commit', 'off', true))
     update pgautofailover.node n set health = $2, healthchecktime = clock_timestamp() - $3 * interval '1 ms'
     from quiet where n.nodeid = $1`,
    [nodeId, value, tookMs],
  );
}
