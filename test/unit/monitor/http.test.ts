/** http: what the monitor shows to people, probes and scrapes. */
import { expect, test } from "bun:test";
import { monitorReply, type Overview } from "../../../lib/monitor/http.ts";
import type { GroupRow } from "../../../lib/shapes.ts";
import { group } from "../group/words.ts";

const NOW_MS = 1_000_000;

function overview(change: Partial<GroupRow> = {}): Overview {
  const view = group(["1 primary", "2 secondary>catchingup behind-100"]);
  const nodes = view.nodes.map((node) => ({ ...node, reportNo: 1n, decidedReport: 1n }));
  const row = { ...view, nodes, clockMs: 0, blocked: undefined, ...change } as GroupRow;
  return { isServing: true, groups: new Map([["default/0", { row, readAtMs: NOW_MS - 400 }]]) };
}

const body = (of: Overview, path: string): string => monitorReply(of, path, NOW_MS)?.body ?? "";

test("/state.json: each node, with ages as of now", () => {
  const { serving, groups } = JSON.parse(body(overview(), "/state.json"));
  expect({ serving, groups }).toMatchObject({
    serving: true,
    groups: [
      {
        formation: "default",
        group: 0,
        blocked: null,
        nodes: [
          {
            name: "node_1",
            state: "primary",
            goal: "primary",
            lsn: "0/40000000",
            reportAgeMs: 500,
          },
          { id: 2, state: "secondary", goal: "catchingup", health: "good", postgres: true },
        ],
      },
    ],
  });
});

test("/: names are text, whatever they are made of; nothing is fetched from elsewhere", () => {
  const name = `<script>alert("1")</script>&`;
  const nodes = overview().groups.get("default/0")?.row.nodes ?? [];
  const page = body(
    overview({
      formation: name,
      blocked: `it waits for ${name}`,
      nodes: nodes.map((node) => ({ ...node, name, host: name })),
    }),
    "/",
  );
  expect(page).not.toContain("<script");
  expect(page.match(/&lt;script&gt;alert\(&quot;1&quot;\)&lt;\/script&gt;&amp;/g)).toHaveLength(6);
  expect(page).not.toMatch(/src=|href=|url\(/);
});

test("/metrics: a split brain, a blocked group and a silent node can be told", () => {
  const page = body(overview({ blocked: "node_2 is missing" }), "/metrics");
  expect(page).toContain('pg_auto_failover_group_primaries{formation="default",group="0"} 1\n');
  expect(page).toContain('pg_auto_failover_group_blocked{formation="default",group="0"} 1\n');
  const second = 'formation="default",group="0",node="node_2"';
  expect(page).toContain(`pg_auto_failover_node_report_age_seconds{${second}} 0.5\n`);
  expect(page).toContain(`pg_auto_failover_node_goal{${second},state="catchingup"} 1\n`);
  expect(page).toContain(`pg_auto_failover_node_goal{${second},state="secondary"} 0\n`);
});

test("/health: only while groups are served; other paths are none", () => {
  expect(monitorReply(overview(), "/health", NOW_MS)?.status).toBe(200);
  expect(monitorReply({ ...overview(), isServing: false }, "/health", NOW_MS)?.status).toBe(503);
  expect(monitorReply(overview(), "/primary", NOW_MS)).toBeUndefined();
});
