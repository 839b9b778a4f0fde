/** What the monitor tells of its groups over HTTP: pure, from what its loop has read last. */
import { canTakeWrites, NODE_STATES } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import type { GroupRow, NodeRow } from "../shapes.ts";
import { json, type Reply } from "../sys/http.ts";
import { type Labels, METRICS_TYPE, type Metric, renderMetrics } from "../sys/metrics.ts";

/** What was read last of each group; the loop keeps it up to date. */
export type Overview = {
  /** The loop serves groups: its database is there. */
  isServing: boolean;
  readonly groups: Map<string, { readonly row: GroupRow; readonly readAtMs: number }>;
};

type Group = { readonly row: GroupRow; readonly ageMs: number };

const groupsOf = (overview: Overview, nowMs: number): Group[] =>
  [...overview.groups.values()]
    .map(({ row, readAtMs }) => ({ row, ageMs: nowMs - readAtMs }))
    .sort((a, b) =>
      `${a.row.formation}/${a.row.groupId}` < `${b.row.formation}/${b.row.groupId}` ? -1 : 1,
    );

const HEALTH = { good: 1, bad: 0, unknown: -1 } as const;

function metricsOf(overview: Overview, groups: readonly Group[]): Metric[] {
  const labelsOf = ({ formation, groupId }: GroupRow): Labels => ({ formation, group: groupId });
  const ofNodes = (
    name: string,
    help: string,
    samples: (node: NodeRow, labels: Labels, ageMs: number) => Metric["samples"],
  ): Metric => ({
    name: `pg_auto_failover_${name}`,
    type: "gauge",
    help,
    samples: groups.flatMap(({ row, ageMs }) =>
      row.nodes.flatMap((node) => samples(node, { ...labelsOf(row), node: node.name }, ageMs)),
    ),
  });
  const ofGroups = (
    name: string,
    help: string,
    value: (row: GroupRow) => number | boolean,
  ): Metric => ({
    name: `pg_auto_failover_${name}`,
    type: "gauge",
    help,
    samples: groups.map(({ row }) => [labelsOf(row), value(row)] as const),
  });
  return [
    {
      name: "pg_auto_failover_monitor_up",
      type: "gauge",
      help: "Whether the monitor serves its groups.",
      samples: [[{}, overview.isServing]],
    },
    ofGroups(
      "group_primaries",
      "Nodes that report to take writes: 1, or 0 while nobody does.",
      (row) => row.nodes.filter(({ reported }) => canTakeWrites(reported)).length,
    ),
    ofGroups("group_blocked", "Whether an operator must help.", (row) => row.blocked !== undefined),
    ofGroups(
      "group_sync_standbys",
      "Standbys that a commit is to wait for.",
      ({ sync }) => sync.number,
    ),
    ofNodes("node_state", "Whether this is the state that the node reports.", (node, labels) =>
      NODE_STATES.map((state) => [{ ...labels, state }, node.reported === state] as const),
    ),
    ofNodes("node_goal", "Whether this is the state that the node is to reach.", (node, labels) =>
      NODE_STATES.map((state) => [{ ...labels, state }, node.goal === state] as const),
    ),
    ofNodes(
      "node_health",
      "The monitor's own probe: 1 good, 0 bad, -1 unknown.",
      (node, labels) => [[labels, HEALTH[node.health]]],
    ),
    ofNodes(
      "node_postgres_up",
      "Whether the node reports that PostgreSQL runs.",
      (node, labels) => [[labels, node.pgRunning]],
    ),
    ofNodes("node_report_age_seconds", "Since the node's last report.", (node, labels, ageMs) => [
      [labels, (node.reportAgeMs + ageMs) / 1000],
    ]),
    ofNodes("node_timeline", "The timeline that the node reports.", (node, labels) => [
      [labels, node.timeline],
    ]),
    ofNodes("node_lsn_bytes", "The position that the node reports.", (node, labels) => [
      [labels, node.lsn],
    ]),
  ];
}

const told = ({ row, ageMs }: Group) => ({
  formation: row.formation,
  group: row.groupId,
  blocked: row.blocked ?? null,
  nodes: row.nodes.map((node) => ({
    id: node.nodeId,
    name: node.name,
    host: node.host,
    port: node.port,
    state: node.reported,
    goal: node.goal,
    postgres: node.pgRunning,
    health: node.health,
    timeline: node.timeline,
    lsn: formatLsn(node.lsn),
    reportAgeMs: Math.round(node.reportAgeMs + ageMs),
    candidatePriority: node.candidatePriority,
    replicationQuorum: node.replicationQuorum,
  })),
});

const COLUMNS = [
  "Name",
  "Node",
  "Host:Port",
  "TLI: LSN",
  "PostgreSQL",
  "Health",
  "Last report",
  "Reported State",
  "Assigned State",
];

function page(overview: Overview, groups: readonly Group[]): string {
  const cell = (tag: string, text: string | number): string =>
    `<${tag}>${Bun.escapeHTML(String(text))}</${tag}>`;
  const tables = groups.map(told).map(({ formation, group, blocked, nodes }) => {
    const rows = nodes.map((node) =>
      [
        node.name,
        node.id,
        `${node.host}:${node.port}`,
        `${node.timeline}: ${node.lsn}`,
        node.postgres ? "runs" : "does not run",
        node.health,
        `${(node.reportAgeMs / 1000).toFixed(1)} s ago`,
        node.state,
        node.goal,
      ]
        .map((text) => cell("td", text))
        .join(""),
    );
    return [
      cell("h2", `Formation ${formation}, group ${group}`),
      blocked === null ? "" : cell("p", `Blocked: ${blocked}`),
      `<table><tr>${COLUMNS.map((name) => cell("th", name)).join("")}</tr>`,
      ...rows.map((row) => `<tr>${row}</tr>`),
      "</table>",
    ].join("\n");
  });
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>pg_auto_failover</title>
<style>body{font-family:sans-serif}table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2em .6em;text-align:left}</style>
<h1>pg_auto_failover</h1>
${overview.isServing ? "" : "<p>The monitor's database is not there: what follows may be old.</p>"}
${tables.join("\n") || "<p>No nodes yet.</p>"}
</html>
`;
}

/** @returns undefined: there is no such path */
export function monitorReply(overview: Overview, path: string, nowMs: number): Reply | undefined {
  const groups = groupsOf(overview, nowMs);
  switch (path) {
    case "/":
      return { status: 200, type: "text/html; charset=utf-8", body: page(overview, groups) };
    case "/state.json":
      return json(200, { serving: overview.isServing, groups: groups.map(told) });
    case "/metrics":
      return { status: 200, type: METRICS_TYPE, body: renderMetrics(metricsOf(overview, groups)) };
    case "/health":
      return json(overview.isServing ? 200 : 503, { serving: overview.isServing });
  }
  return undefined;
}
