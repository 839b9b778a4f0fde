#!/usr/bin/env -S bun --no-env-file
/** state: what the monitor knows of a formation. Reads only. */
import { defineCommand } from "citty";
import { locateMonitor, parseCount } from "../lib/config.ts";
import { canTakeWrites, STATE_TRAITS } from "../lib/fsm.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import type { StateRow } from "../lib/shapes.ts";
import { answer, commonArgs, main } from "../lib/sys/cli.ts";
import { renderTable } from "../lib/sys/table.ts";

const whereArgs = {
  ...commonArgs,
  pgdata: { type: "string", description: "A node's data directory on this machine (or PGDATA)" },
  monitor: { type: "string", description: "The monitor's URI (or PG_AUTOCTL_MONITOR)" },
  formation: { type: "string", description: "The formation (the node's, else default)" },
} as const;

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
  args: whereArgs,
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
  args: { ...whereArgs, count: { type: "string", default: "10", description: "How many" } },
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

await main(
  defineCommand({
    meta: { name: "state", description: "What the monitor knows of a formation" },
    subCommands: { show, events },
  }),
);
