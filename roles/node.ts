#!/usr/bin/env -S bun --no-env-file
/** node: the settings of one node, and its promotion. */
import { defineCommand } from "citty";
import { enterPgdata, locateMonitor, parseCount, whereArgs } from "../lib/config.ts";
import { statusOf } from "../lib/keeper/setup.ts";
import { type MonitorClient, openMonitor } from "../lib/monitor/client.ts";
import { waitForMaintenance } from "../lib/monitor/failover.ts";
import { parseMeasure } from "../lib/monitor/settings.ts";
import { answer, commonArgs, main } from "../lib/sys/cli.ts";
import { AppError } from "../lib/sys/errors.ts";
import { renderTable } from "../lib/sys/table.ts";

const whichArgs = {
  ...commonArgs,
  ...whereArgs,
  name: { type: "string", description: "The node's name, with --monitor" },
} as const;

type Which = {
  readonly pgdata?: string | undefined;
  readonly monitor?: string | undefined;
  readonly formation?: string | undefined;
  readonly name?: string | undefined;
};

/** The node that the flags name: by its directory here, or by its name from anywhere. */
function locateNode(args: Which): { monitor: string; formation: string; name: string } {
  if (args.name !== undefined) return { ...locateMonitor(args), name: args.name };
  if (args.monitor !== undefined || !(args.pgdata ?? process.env["PGDATA"])) {
    throw new AppError("usage", "no node given", {
      hint: "Name it with --pgdata DIR on its machine, or with --monitor URI --name NAME from anywhere.",
    });
  }
  const pgdata = enterPgdata(args.pgdata);
  const { name } = statusOf(pgdata).keeper;
  if (name !== undefined) return { ...locateMonitor({ ...args, pgdata }), name };
  throw new AppError("state", "the node is not registered yet", {
    detail: { pgdata },
    hint: "Run its roles/keeper.ts create again.",
  });
}

async function stateOf(monitor: MonitorClient, at: { formation: string; name: string }) {
  const found = (await monitor.state(at.formation)).find(({ nodename }) => nodename === at.name);
  if (found) return found;
  throw new AppError("monitor", `formation "${at.formation}" has no node "${at.name}"`, {
    hint: "roles/state.ts show lists the nodes of the formation.",
  });
}

const get = defineCommand({
  meta: { name: "get", description: "The settings of a node" },
  args: whichArgs,
  async run({ args }) {
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    const row = await stateOf(monitor, at);
    const values = {
      "candidate-priority": row.candidate_priority,
      "replication-quorum": row.replication_quorum,
    };
    answer(
      args.json
        ? JSON.stringify(values, undefined, 2)
        : renderTable(
            ["Setting", "Value", "Meaning"],
            [
              [
                "candidate-priority",
                String(row.candidate_priority),
                "0 to 100: the higher is promoted; 0: never",
              ],
              [
                "replication-quorum",
                String(row.replication_quorum),
                "whether commits may wait for this node",
              ],
            ],
            ["Meaning"],
          ),
    );
  },
});

const set = defineCommand({
  meta: {
    name: "set",
    description: "Change a setting: candidate-priority 0 to 100, replication-quorum true or false",
  },
  args: {
    ...whichArgs,
    setting: {
      type: "positional",
      required: true,
      description: "candidate-priority or replication-quorum",
    },
    value: { type: "positional", required: true, description: "Its new value" },
  },
  async run({ args }) {
    const { setting, value } = args;
    const change = changeOf(setting, value);
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    await change(monitor, at.formation, at.name);
    answer(
      args.json
        ? JSON.stringify({ formation: at.formation, name: at.name, setting, value })
        : `${setting} of node "${at.name}" is ${value}`,
    );
  },
});

type Change = (monitor: MonitorClient, formation: string, name: string) => Promise<void>;

function changeOf(setting: string, value: string): Change {
  if (setting === "candidate-priority") {
    const priority = parseCount(setting, value, 100);
    return (monitor, formation, name) => monitor.setCandidatePriority(formation, name, priority);
  }
  if (setting === "replication-quorum") {
    if (value === "true" || value === "false") {
      return (monitor, formation, name) =>
        monitor.setReplicationQuorum(formation, name, value === "true");
    }
    throw new AppError("usage", "replication-quorum is true or false", {
      detail: { value },
      hint: "Write replication-quorum true, or replication-quorum false.",
    });
  }
  throw new AppError("usage", "a node has no such setting", {
    detail: { setting },
    hint: "One of: candidate-priority, replication-quorum.",
  });
}

const promote = defineCommand({
  meta: {
    name: "promote",
    description: "Have this node take over from the primary, whatever the priorities",
  },
  args: whichArgs,
  async run({ args }) {
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    await monitor.promote(at.formation, at.name, false);
    answer(
      args.json
        ? JSON.stringify({ formation: at.formation, name: at.name, asked: true })
        : `Asked for: node "${at.name}" takes over as soon as it can`,
    );
  },
});

const maintenance = defineCommand({
  meta: {
    name: "maintenance",
    description:
      "on: leave this node alone, its PostgreSQL may be stopped by hand; off: take it back",
  },
  args: {
    ...whichArgs,
    state: { type: "positional", required: true, description: "on or off" },
    allowFailover: { type: "boolean", description: "Also the primary, which hands over first" },
    timeout: { type: "string", default: "60s", description: "How long to wait for it at most" },
  },
  async run({ args }) {
    if (args.state !== "on" && args.state !== "off") {
      throw new AppError("usage", "maintenance is on or off", { detail: { state: args.state } });
    }
    const on = args.state === "on";
    const timeoutMs = parseMeasure("--timeout", "ms", args.timeout);
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    const { node_id: nodeId, group_id: groupId } = await stateOf(monitor, at);
    if (on) await monitor.startMaintenance(nodeId, args.allowFailover ?? false);
    else await monitor.stopMaintenance(nodeId);
    const group = { formation: at.formation, groupId };
    const { name, reported } = await waitForMaintenance(monitor, group, nodeId, on, timeoutMs);
    answer(
      args.json
        ? JSON.stringify({ nodeId, name, state: reported })
        : on
          ? `Node ${nodeId} "${name}" is left alone; nobody starts or stops its PostgreSQL`
          : `Node ${nodeId} "${name}" is a ${reported} again`,
    );
  },
});

await main(
  defineCommand({
    meta: { name: "node", description: "The settings of one node, and its promotion" },
    subCommands: { get, set, promote, maintenance },
  }),
);
