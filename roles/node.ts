#!/usr/bin/env -S bun --no-env-file
/** node: the settings of one node, its promotion, maintenance and removal. */
import { defineCommand } from "citty";
import { enterPgdata, locateMonitor, whereArgs } from "../lib/config.ts";
import { changeMetadata } from "../lib/keeper/address.ts";
import { dropNode, statusOf } from "../lib/keeper/setup.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import { waitForMaintenance } from "../lib/monitor/failover.ts";
import { removeNodeNamed } from "../lib/monitor/removal.ts";
import { NODE_SETTINGS, nodeChange, parseMeasure } from "../lib/monitor/settings.ts";
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

type Located = {
  readonly monitor: string;
  readonly formation: string;
  readonly name: string;
  /** Its directory, when it is named by that: this is its machine. */
  readonly pgdata: string | undefined;
};

/** The node that the flags name: by its directory here, or by its name from anywhere. */
function locateNode(args: Which): Located {
  if (args.name !== undefined)
    return { ...locateMonitor(args), name: args.name, pgdata: undefined };
  if (args.monitor !== undefined || !(args.pgdata ?? process.env["PGDATA"])) {
    throw new AppError("usage", "no node given", {
      hint: "Name it with --pgdata DIR on its machine, or with --monitor URI --name NAME from anywhere.",
    });
  }
  const pgdata = enterPgdata(args.pgdata);
  const { name } = statusOf(pgdata).keeper;
  if (name !== undefined) return { ...locateMonitor({ ...args, pgdata }), name, pgdata };
  throw new AppError("state", "the node is not registered yet", {
    detail: { pgdata },
    hint: "Run its roles/keeper.ts create again.",
  });
}

/** @throws {AppError} usage: it was named from elsewhere */
function requireHere({ name, pgdata }: Located, what: string): string {
  if (pgdata !== undefined) return pgdata;
  throw new AppError("usage", `${what} only on the node's own machine`, {
    detail: { name },
    hint: "Run it there with --pgdata DIR instead of --name.",
  });
}

const get = defineCommand({
  meta: { name: "get", description: "The settings of a node" },
  args: whichArgs,
  async run({ args }) {
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    const row = await monitor.node(at.formation, at.name);
    const values = NODE_SETTINGS.map(({ name, column }) => [name, row[column]] as const);
    if (args.json) return answer(JSON.stringify(Object.fromEntries(values), undefined, 2));
    const rows = NODE_SETTINGS.map(({ name, column, what }) => [name, String(row[column]), what]);
    answer(renderTable(["Setting", "Value", "Meaning"], rows, ["Meaning"]));
  },
});

const set = defineCommand({
  meta: {
    name: "set",
    description:
      "Change a setting: candidate-priority 0 to 100, replication-quorum true or false, name; host and port on its machine, while it's stopped",
  },
  args: {
    ...whichArgs,
    setting: { type: "positional", required: true, description: "get lists them" },
    value: { type: "positional", required: true, description: "Its new value" },
  },
  async run({ args }) {
    const { setting, value } = args;
    const change = nodeChange(setting, value);
    const at = locateNode(args);
    const { formation, name } = at;
    await using monitor = openMonitor(at.monitor);
    if ("candidatePriority" in change)
      await monitor.setCandidatePriority(formation, name, change.candidatePriority);
    else if ("replicationQuorum" in change)
      await monitor.setReplicationQuorum(formation, name, change.replicationQuorum);
    else if (setting === "name" && at.pgdata === undefined)
      await monitor.updateNode((await monitor.node(formation, name)).node_id, change.metadata);
    else await changeMetadata(requireHere(at, `${setting} is changed`), change.metadata);
    answer(
      args.json
        ? JSON.stringify({ formation, name, setting, value })
        : `${setting} of node "${name}" is ${value}`,
    );
  },
});

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
      throw new AppError("usage", "maintenance is on or off", {
        detail: { state: args.state },
        hint: "Write maintenance on, or maintenance off.",
      });
    }
    const on = args.state === "on";
    const timeoutMs = parseMeasure("--timeout", "ms", args.timeout);
    const at = locateNode(args);
    await using monitor = openMonitor(at.monitor);
    const { node_id: nodeId, group_id: groupId } = await monitor.node(at.formation, at.name);
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

const drop = defineCommand({
  meta: {
    name: "drop",
    description: "Take a node out of its group; its keeper stops PostgreSQL, and the data stays",
  },
  args: {
    ...whichArgs,
    force: {
      type: "boolean",
      description: "At once, for a node that is gone; with --pgdata: also when the monitor is",
    },
    destroy: { type: "boolean", description: "Remove its data directory too; with --pgdata only" },
    wait: { type: "boolean", default: true, description: "Until PostgreSQL is stopped" },
    timeout: { type: "string", default: "60s", description: "How long to wait at most" },
  },
  async run({ args }) {
    const waitMs = args.wait ? parseMeasure("--timeout", "ms", args.timeout) : undefined;
    const at = locateNode(args);
    const { formation, name } = at;
    const force = args.force ?? false;
    if (args.destroy) requireHere(at, "a data directory can be removed");
    let gone = true;
    if (at.pgdata !== undefined) {
      await dropNode(at.pgdata, { destroy: args.destroy ?? false, force });
    } else {
      await using monitor = openMonitor(at.monitor);
      gone = await removeNodeNamed(monitor, formation, name, { force, waitMs });
    }
    answer(
      args.json
        ? JSON.stringify({ formation, name, removed: gone })
        : `Node "${name}" ${gone ? "is removed from its group" : "is told to stop; it's removed when it has"}`,
    );
  },
});

await main(
  defineCommand({
    meta: {
      name: "node",
      description: "The settings of one node, its promotion, maintenance and removal",
    },
    subCommands: { get, set, promote, maintenance, drop },
  }),
);
