#!/usr/bin/env -S bun --no-env-file
/** state: what the monitor knows of a formation. Reads only. */
import { defineCommand } from "citty";
import { locateMonitor, parseCount, whereArgs } from "../lib/config.ts";
import { GROUP_RULES, KEEPER_TRANSITIONS } from "../lib/fsm.ts";
import { explainGroup, forksOf, STORY_HEADER, storyCells } from "../lib/group/explain.ts";
import { fsmDiagram, fsmMarkdown } from "../lib/group/print.ts";
import { type MonitorClient, openMonitor } from "../lib/monitor/client.ts";
import { failoverJson, readFailovers } from "../lib/monitor/failovers.ts";
import { followEvents } from "../lib/monitor/look.ts";
import { parseMeasure } from "../lib/monitor/settings.ts";
import * as tables from "../lib/monitor/tables.ts";
import { watchChanges, watchOnTerminal } from "../lib/monitor/watch.ts";
import type { EventRow } from "../lib/shapes.ts";
import { answer, commonArgs, main } from "../lib/sys/cli.ts";
import { logger } from "../lib/sys/log.ts";
import { signals } from "../lib/sys/signals.ts";
import { renderTable } from "../lib/sys/table.ts";

const askArgs = { ...commonArgs, ...whereArgs };
const json = (value: unknown): void => answer(JSON.stringify(value, undefined, 2));

/** Finding nothing is an answer where there is such a formation. @throws {AppError} there isn't */
async function foundIn(
  monitor: MonitorClient,
  formation: string,
  rows: readonly unknown[],
): Promise<void> {
  if (rows.length === 0) await monitor.formationSettings(formation);
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
    await foundIn(monitor, at.formation, rows);
    if (args.json) return json(rows);
    answer(
      renderTable(
        tables.STATE_HEADER,
        rows.map((row) => tables.stateCells(row, rows)),
      ),
    );
  },
});

const watch = defineCommand({
  meta: {
    name: "watch",
    description: "The same on the whole terminal, live, with the last events; q ends it",
  },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    if (!args.json) return await watchOnTerminal(monitor, at.formation);
    await watchChanges(monitor, at.formation, signals().stop, (state) =>
      answer(JSON.stringify(state)),
    );
  },
});

const events = defineCommand({
  meta: {
    name: "events",
    description: "The last events: states reported, goals assigned, and the rule behind each",
  },
  args: {
    ...askArgs,
    count: { type: "string", description: "How many (10; with --since all)" },
    since: { type: "string", description: "Not older than this, such as 90s, 10min or 2h" },
    follow: { type: "boolean", description: "And each new one, until Ctrl-C" },
  },
  async run({ args }) {
    const at = locateMonitor(args);
    const { count = args.since === undefined ? "10" : "1000000" } = args;
    const last = parseCount("count", count, 1_000_000, 1);
    const sinceMs = args.since && parseMeasure("--since", "ms", args.since);
    await using monitor = openMonitor(at.monitor);
    // where to go on from, should none be recent enough
    const before = args.follow && sinceMs ? await monitor.events(at.formation, 1) : [];
    const rows = sinceMs
      ? (await monitor.eventsAfter(at.formation, 0, sinceMs)).slice(-last)
      : await monitor.events(at.formation, last);
    await foundIn(monitor, at.formation, rows);
    if (args.follow) return await follow(monitor, at.formation, rows, before, args.json);
    if (args.json) return json(rows);
    answer(renderTable(tables.EVENT_HEADER, rows.map(tables.eventCells), ["Comment"]));
  },
});

async function follow(
  monitor: MonitorClient,
  formation: string,
  rows: readonly EventRow[],
  before: readonly EventRow[],
  asJson: boolean | undefined,
): Promise<void> {
  const onEvent = (row: EventRow) => answer(asJson ? JSON.stringify(row) : tables.eventLine(row));
  rows.forEach(onEvent);
  const known = rows.length > 0 ? rows : before;
  await followEvents(monitor, formation, known, signals().stop, {
    onEvent,
    onAway: (reason) =>
      logger("state").warn("the monitor is away, events come when it is back", { reason }),
  });
}

const failovers = defineCommand({
  meta: {
    name: "failovers",
    description: "The last failovers: from whom to whom, and how long each phase took",
  },
  args: { ...askArgs, count: { type: "string", default: "10", description: "How many" } },
  async run({ args }) {
    const at = locateMonitor(args);
    const count = parseCount("count", args.count, 1000, 1);
    await using monitor = openMonitor(at.monitor);
    const found = await readFailovers(monitor, at.formation, count);
    await foundIn(monitor, at.formation, found);
    if (args.json) return json(found.map(failoverJson));
    answer(renderTable(tables.FAILOVER_HEADER, found.map(tables.failoverCells), ["Note"]));
  },
});

/** Each group of a formation, as the rules see it. */
async function groupViews(monitor: MonitorClient, formation: string) {
  const groups = await monitor.groups(formation);
  return Promise.all(groups.map((group) => monitor.groupView(formation, group)));
}

const settings = defineCommand({
  meta: { name: "settings", description: "The settings of a formation and of its nodes" },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const values = await monitor.formationSettings(at.formation);
    const nodes = await monitor.state(at.formation);
    const names = (await groupViews(monitor, at.formation)).map(tables.standbyNamesOf);
    const rows = tables.settings(at.formation, values, names, nodes);
    if (args.json) return json(rows);
    answer(renderTable(tables.SETTINGS_HEADER, rows.map(tables.settingCells)));
  },
});

const standbyNames = defineCommand({
  meta: {
    name: "standby-names",
    description: "The primary's synchronous_standby_names: desired, assigned, and in force",
  },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const names = (await groupViews(monitor, at.formation)).map(tables.standbyNamesOf);
    if (args.json) return json(names);
    answer(
      renderTable(tables.STANDBY_NAMES_HEADER, names.flatMap(tables.standbyNamesCells), [
        "synchronous_standby_names",
      ]),
    );
  },
});

const fsm = defineCommand({
  meta: { name: "fsm", description: "The monitor's rules and the keeper's transitions" },
  args: {
    ...commonArgs,
    format: {
      type: "enum",
      options: ["markdown", "mermaid"],
      default: "markdown",
      description: "Tables and diagram, or the diagram alone",
    },
  },
  run({ args }) {
    if (args.json) return json({ rules: GROUP_RULES, transitions: KEEPER_TRANSITIONS });
    answer(args.format === "mermaid" ? fsmDiagram() : fsmMarkdown());
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
    const stories = (await groupViews(monitor, at.formation)).map(explainGroup);
    if (args.json) return json(stories);
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
    if (args.json) return json(found);
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
    subCommands: {
      ...{ show, watch, events, explain, failovers, timeline },
      ...{ settings, "standby-names": standbyNames, fsm },
    },
  }),
);
