/** What only the monitor's process does in its database: read a group under its lock, write goals and events. */
import { canTakeWrites, type NodeState } from "../fsm.ts";
import { blockedReason } from "../group/explain.ts";
import {
  decideGroup,
  type GroupDecision,
  isDisputed,
  nextDeadlineMs,
  primaryOf,
} from "../group/facts.ts";
import { nextTimeline, primaryAhead } from "../group/history.ts";
import { formatLsn } from "../group/lsn.ts";
import { pendingAfter } from "../group/quorum.ts";
import type { GroupView, Health, SyncSet } from "../group/view.ts";
import { type GroupRow, parseGroupRow } from "../shapes.ts";
import type { Db, Query } from "../sys/sql.ts";

export type GroupKey = { readonly formation: string; readonly groupId: number };

/**
 * A row as the rules may judge it: nobody is judged on a silence from before `watchedMs` ago, when
 * the monitor (re)started or lost its sense of time, nor on a probe from before.
 */
function viewOf(row: GroupRow, watchedMs: number): GroupView {
  return {
    ...row,
    nodes: row.nodes.map((node) => ({
      ...node,
      reportAgeMs: Math.min(node.reportAgeMs, watchedMs),
      stalledMs: Math.min(node.stalledMs, watchedMs),
      notSentToMs: Math.min(node.notSentToMs, watchedMs),
      promisedMs: node.promisedMs === undefined ? undefined : Math.min(node.promisedMs, watchedMs),
      goalAgeMs: Math.min(node.goalAgeMs, watchedMs),
      healthAgeMs:
        node.healthAgeMs !== undefined && node.healthAgeMs < watchedMs
          ? node.healthAgeMs
          : undefined,
    })),
  };
}

/** Why nothing is decided before `monitor.ts recover`; undefined: the database knows what it must. */
export async function recoveryReason(db: Pick<Db, "query">): Promise<string | undefined> {
  const [row] = await db.query<{ why: string }>("select why from pgautofailover.recovery");
  return row?.why;
}

export async function groups(db: Db): Promise<GroupKey[]> {
  return db.query<{ formation: string; groupId: number }>(
    `select formationid as formation, groupid as "groupId" from pgautofailover."group" order by 1, 2`,
  );
}

async function readView(
  query: Query,
  { formation, groupId }: GroupKey,
  view: "group_view" | "locked_view",
): Promise<GroupRow | undefined> {
  const text = `select pgautofailover.${view}($1, $2) as value`;
  const [row] = await query(text, [formation, groupId]);
  return row?.["value"] ? parseGroupRow(row["value"]) : undefined;
}

export const readGroup = ({ query }: Pick<Db, "query">, key: GroupKey) =>
  readView(query, key, "group_view");

const STATE_TEXT = (from: NodeState, to: NodeState) => `goal "${from}" → "${to}"`;

async function writeSet(query: Query, row: GroupRow, sync: SyncSet): Promise<void> {
  await query(
    `update pgautofailover."group" set syncversion = $3, syncprimary = $4, syncmembers = $5::text::bigint[],
       syncnumber = $6, syncpending = $7::text::jsonb
     where formationid = $1 and groupid = $2`,
    [
      row.formation,
      row.groupId,
      sync.version,
      sync.primaryId,
      `{${sync.members.join()}}`,
      sync.number,
      JSON.stringify(pendingAfter(row, sync)),
    ],
  );
}

/** The group's history goes on with the timeline of the node that opens for writes. */
async function writeTimeline(query: Query, row: GroupRow, nodeId: number): Promise<void> {
  const node = row.nodes.find((each) => each.nodeId === nodeId);
  const next = node && nextTimeline(node, row);
  if (node === undefined || next === undefined) return;
  await query(
    `insert into pgautofailover.timeline_history (formationid, groupid, timeline, parent, forklsn, nodeid, nodename)
     values ($1, $2, $3, $4, $5::text::pg_lsn, $6, $7)`,
    [
      row.formation,
      row.groupId,
      next.timeline,
      next.parent,
      formatLsn(next.forkLsn),
      nodeId,
      node.name,
    ],
  );
}

/** From these goals to taking writes: the failover, or its undoing, is decided. */
const UNDECIDED: readonly NodeState[] = ["stop_replication", "draining", "demote_timeout"];

/** Nothing here waits for an answer before the next statement goes out. */
async function write(query: Query, row: GroupRow, decision: GroupDecision): Promise<void> {
  const { rule, selfId, goals, sync, fetchFrom, note } = decision;
  const sent: Promise<unknown>[] = [];
  const send = (text: string, params: readonly unknown[]) => sent.push(query(text, params));
  if (sync) sent.push(writeSet(query, row, sync));
  for (const [nodeId, goal] of goals) {
    const from = row.nodes.find((node) => node.nodeId === nodeId)?.goal ?? "init";
    const text = `${STATE_TEXT(from, goal)}: ${rule.why}${note === undefined ? "" : ` (${note})`}`;
    send(
      `with assigned as (
         update pgautofailover.node n set goalstate = $2, goalversion = n.goalversion + 1,
           goaltime = clock_timestamp(), statechangetime = clock_timestamp(),
           passedover = n.passedover and $2 not in ('catchingup', 'wait_primary'), shutdown = null,
           maintenance = case when $2 = 'draining' then n.maintenance or coalesce((g.request->>'maintenance')::bigint, 0) = n.nodeid
             else n.maintenance and $2 not in ('prepare_promotion', 'single', 'wait_primary', 'primary', 'apply_settings') end,
           fetchfrom = case when $2 = 'fast_forward' then $5::bigint end
         from pgautofailover."group" g
         where n.nodeid = $1 and g.formationid = n.formationid and g.groupid = n.groupid returning n.*)
       select pgautofailover.log_event(assigned, $3, $4) from assigned`,
      [nodeId, goal, rule.id, text, fetchFrom ?? null],
    );
    if (from === "stop_replication" && canTakeWrites(goal)) {
      sent.push(writeTimeline(query, row, nodeId));
    }
    if (UNDECIDED.includes(from) && canTakeWrites(goal)) {
      send(
        `update pgautofailover."group" set request = null where formationid = $1 and groupid = $2`,
        [row.formation, row.groupId],
      );
    }
  }
  if (rule.passOver) {
    send("update pgautofailover.node set passedover = true where nodeid = $1", [selfId]);
  }
  if (rule.forget) {
    send(
      `with gone as (delete from pgautofailover.node n where n.nodeid = $1 returning n.*)
       select pgautofailover.log_event(gone, $2, $3) from gone`,
      [selfId, rule.id, rule.why],
    );
  }
  await Promise.all(sent);
}

const logEvent = (query: Query, nodeId: number, text: string): Promise<unknown> =>
  query(
    "select pgautofailover.log_event(n, null, $2) from pgautofailover.node n where n.nodeid = $1",
    [nodeId, text],
  );

/** What the group says of itself beside goals: a dispute, and why it's blocked. */
async function writeCondition(query: Query, row: GroupRow, view: GroupView): Promise<void> {
  const primary = primaryOf(view.nodes);
  const disputed = row.disputed || isDisputed(view);
  const blocked = blockedReason({ ...view, disputed });
  if (blocked === row.blocked && disputed === row.disputed) return;
  await query(
    `update pgautofailover."group" set blocked = $3, disputed = $4 where formationid = $1 and groupid = $2`,
    [row.formation, row.groupId, blocked ?? null, disputed],
  );
  const about = primary ?? row.nodes[0];
  if (about === undefined || blocked === row.blocked) return;
  await logEvent(query, about.nodeId, blocked ?? "Nothing is in the way of a failover any more");
}

/** Of a node's latest report. */
export type Seen = { readonly ageMs: number; readonly lsn: bigint };

/** What reports alone change, of all nodes at once, by node id; and the database's clock. */
export async function latestReports(
  db: Db,
): Promise<{ readonly clockMs: number; readonly seen: ReadonlyMap<number, Seen> }> {
  const [row] = await db.query<{ clock: number; seen: string | null }>(
    `select extract(epoch from at)::float8 * 1000 as clock, seen from (select clock_timestamp() as at) now_,
       lateral (select string_agg(format('%s %s %s', nodeid, (extract(epoch from at - reporttime) * 1000)::int,
         reportedlsn - '0/0'::pg_lsn), ',') as seen from pgautofailover.node) nodes`,
    [],
    { prepare: true },
  );
  const entries = (row?.seen ?? "").split(",").map((text): [number, Seen] => {
    const [nodeId, ageMs, lsn] = text.split(" ");
    return [Number(nodeId), { ageMs: Math.max(0, Number(ageMs)), lsn: BigInt(lsn ?? 0) }];
  });
  return { clockMs: Number(row?.clock), seen: new Map(entries) };
}

const older = (ageMs: number, byMs: number): number => (ageMs > 0 ? ageMs + byMs : 0);

/** A row as it would be read now, if nothing has happened but reports that change nothing. */
export function refreshed(
  row: GroupRow,
  sinceMs: number,
  seen: ReadonlyMap<number, Seen>,
): GroupRow {
  return {
    ...row,
    clockMs: row.clockMs + sinceMs,
    nodes: row.nodes.map((node) => ({
      ...node,
      reportAgeMs: seen.get(node.nodeId)?.ageMs ?? node.reportAgeMs + sinceMs,
      lsn: seen.get(node.nodeId)?.lsn ?? node.lsn,
      healthAgeMs: node.healthAgeMs === undefined ? undefined : node.healthAgeMs + sinceMs,
      stalledMs: older(node.stalledMs, sinceMs),
      notSentToMs: older(node.notSentToMs, sinceMs),
      promisedMs: node.promisedMs === undefined ? undefined : node.promisedMs + sinceMs,
      goalAgeMs: node.goalAgeMs + sinceMs,
    })),
  };
}

/** @param judgedMs see `decideAndWrite` @returns when a threshold is crossed if nobody says anything, in ms from then */
export const nextLookMs = (row: GroupRow, judgedMs: number): number =>
  nextDeadlineMs(viewOf(row, judgedMs));

export type Outcome = {
  readonly decisions: readonly GroupDecision[];
  readonly row: GroupRow;
  /** For how long the monitor has watched the group, as far as it judges by that. */
  readonly judgedMs: number;
};

const ASKING: readonly NodeState[] = ["primary", "apply_settings"];

/** Rules fire one after the other until none changes anything; more than this is a loop. */
const decisionsMax = (row: GroupRow): number => 8 + 4 * row.nodes.length;

/**
 * Reads the group under its lock, lets the rules decide, writes goals, set and events in the same
 * transaction, and wakes the group's keepers.
 *
 * @param judged for how long, in milliseconds, the monitor has watched this group with its senses about it: the rules
 *   judge nobody on more
 */
export async function decideAndWrite(
  db: Db,
  key: GroupKey,
  watchedMs: number,
  judged: (row: GroupRow) => number = () => watchedMs,
): Promise<Outcome | undefined> {
  return db.transaction(
    async (run) => {
      const query: Query = (text, params) => run(text, params, { prepare: true });
      const decisions: GroupDecision[] = [];
      let row = await readView(query, key, "locked_view");
      if (row === undefined) return undefined;
      const judgedMs = Math.min(watchedMs, judged(row));
      const ahead = primaryAhead(viewOf(row, watchedMs));
      if (ahead) {
        await writeTimeline(query, row, ahead.nodeId);
        if (row.history.length > 0) {
          const text = `The primary is on timeline ${ahead.timeline}, which the monitor has not assigned: it is the group's from here on`;
          await logEvent(query, ahead.nodeId, text);
        }
        row = (await readGroup({ query }, key)) ?? row;
      }
      for (
        let decision = decideGroup(viewOf(row, judgedMs));
        decision;
        decision = decideGroup(viewOf(row, judgedMs))
      ) {
        if (decisions.length === decisionsMax(row))
          throw new Error(`the rules don't settle: ${decision.rule.id}`);
        decisions.push(decision);
        const written = write(query, row, decision);
        [row] = await Promise.all([readView(query, key, "group_view"), written]);
        if (row === undefined) return undefined;
      }
      // a monitor that has just got its senses back says nothing of whom it can't judge
      const isSensible = judgedMs >= Math.min(watchedMs, row.policy.nodeTimeoutMs);
      if (isSensible) await writeCondition(query, row, viewOf(row, judgedMs));
      // The keeper of a crashed primary waits to hear that its report has been considered.
      const waiting = row.nodes.filter(
        (node) =>
          ASKING.includes(node.reported) && !node.pgRunning && node.decidedReport < node.reportNo,
      );
      const told = waiting.map((node) =>
        query("update pgautofailover.node set decidedreport = $2 where nodeid = $1", [
          node.nodeId,
          String(node.reportNo),
        ]),
      );
      if (decisions.length > 0 || waiting.length > 0) {
        told.push(
          query(
            "select pgautofailover.notify_state(n) from pgautofailover.node n where n.formationid = $1 and n.groupid = $2",
            [key.formation, key.groupId],
          ),
        );
      }
      told.push(
        query("select pgautofailover.refresh_answer_tokens($1, $2)", [key.formation, key.groupId]),
      );
      await Promise.all(told);
      return { decisions, row, judgedMs };
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
    { prepare: true },
  );
}
