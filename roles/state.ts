#!/usr/bin/env -S bun --no-env-file
/** state: what the monitor knows of a formation. Reads only. */
import { defineCommand } from "citty";
import { locateMonitor, parseCount, whereArgs } from "../lib/config.ts";
import { canTakeWrites, STATE_TRAITS } from "../lib/fsm.ts";
import {
  explainGroup,
  forksOf,
  type GroupStory,
  STORY_HEADER,
  storyCells,
} from "../lib/group/explain.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import type { StateRow } from "../lib/shapes.ts";
import { answer, commonArgs, main } from "../lib/sys/cli.ts";
import { renderTable } from "../lib/sys/table.ts";

const askArgs = { ...commonArgs, ...whereArgs };

/** What a client can do there; `!`: the last health check failed, `?`: there was none. */
function connection(row: StateRow): string {
  const traits = STATE_TRAITS[row.current_group_state];
  const mode = !row.pg_is_running
    ? "none"
    : canTakeWrites(row.current_group_state)
      ? "read-write"
      : traits.postgres === "up"
        ? "read-only"
        : "none";
  return `${mode}${row.health === 0 ? " !" : row.health < 0 ? " ?" : ""}`;
}

const show = defineCommand({
  meta: {
    name: "show",
    description: "The nodes of a formation, with reported and assigned states",
  },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const rows = await monitor.state(at.formation);
    if (args.json) return answer(JSON.stringify(rows, undefined, 2));
    const several = rows.some(({ group_id }) => group_id !== rows[0]?.group_id);
    answer(
      renderTable(
        [
          "Name",
          "Node",
          "Host:Port",
          "TLI: LSN",
          "Connection",
          "Sync",
          "Reported State",
          "Assigned State",
        ],
        rows.map((row) => [
          row.nodename,
          several ? `${row.group_id}/${row.node_id}` : String(row.node_id),
          `${row.nodehost}:${row.nodeport}`,
          `${row.reported_tli}: ${row.reported_lsn}`,
          connection(row),
          row.reported_repstate || "-",
          row.current_group_state,
          row.assigned_group_state,
        ]),
      ),
    );
  },
});

const events = defineCommand({
  meta: {
    name: "events",
    description: "The last events: states reported, goals assigned, and the rule behind each",
  },
  args: { ...askArgs, count: { type: "string", default: "10", description: "How many" } },
  async run({ args }) {
    const at = locateMonitor(args);
    const count = parseCount("count", args.count, 1_000_000, 1);
    await using monitor = openMonitor(at.monitor);
    const rows = await monitor.events(at.formation, count);
    if (args.json) return answer(JSON.stringify(rows, undefined, 2));
    answer(
      renderTable(
        ["Time", "Node", "Reported / Assigned", "Rule", "Comment"],
        rows.map((row) => [
          row.eventtime.toISOString().replace("T", " ").slice(0, 23),
          row.nodename,
          `${row.reportedstate} / ${row.goalstate}`,
          row.rule ?? "-",
          row.description,
        ]),
        ["Comment"],
      ),
    );
  },
});

const explain = defineCommand({
  meta: {
    name: "explain",
    description:
      "What each node waits for, what is in the way, what helps, and what a crash would cost now",
  },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const stories: GroupStory[] = [];
    for (const group of await monitor.groups(at.formation)) {
      stories.push(explainGroup(await monitor.groupView(at.formation, group)));
    }
    if (args.json) return answer(JSON.stringify(stories, undefined, 2));
    const texts = stories.map(({ groupId, primary, ifPrimaryDied, blocked, nodes }) => [
      `Group ${groupId}: the primary is ${primary ?? "nobody"}`,
      `If it died now: ${ifPrimaryDied}`,
      ...(blocked === null ? [] : [blocked]),
      renderTable(STORY_HEADER, nodes.map(storyCells), ["Waits for", "What helps"]),
    ]);
    answer(texts.map((lines) => lines.join("\n")).join("\n\n"));
  },
});

const timeline = defineCommand({
  meta: {
    name: "timeline",
    description: "The timelines of each group, and the nodes whose WAL is not part of them",
  },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const found = [];
    for (const groupId of await monitor.groups(at.formation)) {
      const view = await monitor.groupView(at.formation, groupId);
      const timelines = await monitor.timelines(at.formation, groupId);
      found.push({ groupId, disputed: view.disputed, timelines, forks: forksOf(view) });
    }
    if (args.json) return answer(JSON.stringify(found, undefined, 2));
    const texts = found.map(({ groupId, disputed, timelines, forks }) => [
      `Group ${groupId}`,
      renderTable(
        ["Timeline", "Left", "At", "Node", "Since"],
        timelines.map((row) => [
          String(row.timeline),
          ...(row.parent === 0 ? ["-", "-"] : [String(row.parent), row.forkLsn]),
          `${row.nodeId} ${row.nodeName}`,
          row.promotedAt.toISOString().replace("T", " ").slice(0, 19),
        ]),
      ),
      ...forks.map(({ text }) => text),
      ...(disputed
        ? ["Disputed: roles/formation.ts accept-timeline NODE says which one holds"]
        : []),
    ]);
    answer(texts.map((lines) => lines.join("\n")).join("\n\n"));
  },
});

await main(
  defineCommand({
    meta: { name: "state", description: "What the monitor knows of a formation" },
    subCommands: { show, events, explain, timeline },
  }),
);
