#!/usr/bin/env -S bun --no-env-file
/** formation: made, dropped and listed; its settings, and what an operator asks of its groups. */
import { defineCommand } from "citty";
import { groupArg, locateMonitor, parseCount, readPasswordFile, whereArgs } from "../lib/config.ts";
import { lossOf } from "../lib/group/explain.ts";
import { DURABILITIES } from "../lib/group/view.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import { failOver, failoverText, failoverValues } from "../lib/monitor/failover.ts";
import {
  FORMATION_SETTINGS,
  formationChange,
  PRESET_NAMES,
  parseMeasure,
  presetOf,
} from "../lib/monitor/settings.ts";
import type { GroupRow } from "../lib/shapes.ts";
import { answer, commonArgs, confirm, main } from "../lib/sys/cli.ts";
import { renderTable } from "../lib/sys/table.ts";

const askArgs = { ...commonArgs, ...whereArgs };
const { formation: _, ...monitorArgs } = askArgs;
const nameArg = {
  type: "positional",
  required: true,
  description: "The formation's name",
} as const;

const create = defineCommand({
  meta: {
    name: "create",
    description: "Make a formation; its nodes are made with keeper.ts create",
  },
  args: {
    ...monitorArgs,
    name: nameArg,
    dbname: { type: "string", default: "postgres", description: "The clients' database" },
    numberSyncStandbys: {
      type: "string",
      default: "0",
      description: "How many standbys each commit waits for; 0 is 1",
    },
    durability: {
      type: "enum",
      options: [...DURABILITIES],
      default: "availability",
      description: "protection, availability or performance",
    },
  },
  async run({ args }) {
    const { name, dbname } = args;
    const numberSyncStandbys = parseCount("number-sync-standbys", args.numberSyncStandbys, 100);
    const { durability } = args;
    await using monitor = openMonitor(locateMonitor(args).monitor);
    await monitor.createFormation(name, { dbname, numberSyncStandbys, durability });
    answer(
      args.json
        ? JSON.stringify({ formation: name, dbname, numberSyncStandbys, durability })
        : `Formation "${name}" is there: make its nodes with roles/keeper.ts create --formation`,
    );
  },
});

const drop = defineCommand({
  meta: { name: "drop", description: "Remove a formation that has no nodes" },
  args: { ...monitorArgs, name: nameArg },
  async run({ args }) {
    await using monitor = openMonitor(locateMonitor(args).monitor);
    await monitor.dropFormation(args.name);
    answer(
      args.json ? JSON.stringify({ formation: args.name }) : `Formation "${args.name}" is removed`,
    );
  },
});

const list = defineCommand({
  meta: { name: "list", description: "The monitor's formations" },
  args: monitorArgs,
  async run({ args }) {
    await using monitor = openMonitor(locateMonitor(args).monitor);
    const found = await monitor.formations();
    if (args.json) return answer(JSON.stringify(found, undefined, 2));
    const titles = ["Formation", "Database", "Durability", "Sync Standbys", "Groups", "Nodes"];
    answer(
      renderTable(
        titles,
        found.map((row) => Object.values(row).map(String)),
      ),
    );
  },
});

const get = defineCommand({
  meta: { name: "get", description: "The settings of a formation; times are in milliseconds" },
  args: askArgs,
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const row = await monitor.formationSettings(at.formation);
    const values = FORMATION_SETTINGS.map(({ name, column }) => [name, row[column]] as const);
    const preset = presetOf(row);
    if (args.json) {
      const told = { preset: preset ?? null, ...Object.fromEntries(values) };
      return answer(JSON.stringify(told, undefined, 2));
    }
    answer(
      renderTable(
        ["Setting", "Value", "Unit", "Meaning"],
        [
          ["preset", preset ?? "-", "", `timers that go together: ${PRESET_NAMES}`],
          ...FORMATION_SETTINGS.map(({ name, column, unit = "", what }) => [
            name,
            String(row[column]),
            unit,
            what,
          ]),
        ],
        ["Meaning"],
      ),
    );
  },
});

const set = defineCommand({
  meta: {
    name: "set",
    description:
      "Change a setting; times in milliseconds or as 2.5s, sizes in bytes or as 16MB. get lists them",
  },
  args: {
    ...askArgs,
    setting: {
      type: "positional",
      required: true,
      description: "Such as durability or node-timeout, or preset (its timers are set together)",
    },
    value: { type: "positional", required: true, description: "Its new value" },
  },
  async run({ args }) {
    const { name, value, unit, columns } = formationChange(args.setting, args.value);
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    await monitor.setFormation(at.formation, columns);
    answer(
      args.json
        ? JSON.stringify({ formation: at.formation, setting: name, value })
        : `${name} of formation "${at.formation}" is ${value} ${unit}`.trimEnd(),
    );
  },
});

const failover = defineCommand({
  meta: {
    name: "failover",
    description: "Have a standby take over from the primary, which is demoted",
  },
  args: {
    ...askArgs,
    group: groupArg,
    allowDataLoss: {
      type: "boolean",
      description: "Also when acknowledged commits may be lost by it",
    },
    yes: { type: "boolean", description: "Don't ask what may be lost" },
    wait: { type: "boolean", description: "Until the new primary takes writes" },
    timeout: { type: "string", default: "60s", description: "How long to wait at most" },
  },
  async run({ args }) {
    const timeoutMs = parseMeasure("--timeout", "ms", args.timeout);
    const at = locateMonitor(args);
    const { formation, group } = at;
    await using monitor = openMonitor(at.monitor);
    const ask = async (before: GroupRow): Promise<void> => {
      if (args.allowDataLoss && !args.yes) {
        const bytes = String(lossOf(before) ?? 0n);
        await confirm(
          `at least ${bytes} bytes of WAL may be lost for good; type that number`,
          bytes,
        );
      }
      await monitor.failover(formation, group, args.allowDataLoss ?? false);
    };
    if (args.wait) {
      const done = await failOver(monitor, at, ask, timeoutMs);
      return answer(args.json ? JSON.stringify(failoverValues(done)) : failoverText(done));
    }
    await ask(await monitor.groupView(formation, group));
    answer(
      args.json
        ? JSON.stringify({ formation, group, asked: true })
        : `Asked for: group ${group} of formation "${formation}" fails over as soon as a standby can take over`,
    );
  },
});

const switchover = defineCommand({
  meta: {
    name: "switchover",
    description:
      "Have the healthy primary hand over to a standby, and wait for it; it goes on if that fails",
  },
  args: {
    ...askArgs,
    group: groupArg,
    to: { type: "string", description: "The node to hand over to (whom the monitor prefers)" },
    timeout: { type: "string", default: "60s", description: "How long to wait at most" },
  },
  async run({ args }) {
    const timeoutMs = parseMeasure("--timeout", "ms", args.timeout);
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const ask = () => monitor.switchover(at.formation, at.group, args.to);
    const done = await failOver(monitor, at, ask, timeoutMs);
    answer(args.json ? JSON.stringify(failoverValues(done)) : failoverText(done));
  },
});

const acceptTimeline = defineCommand({
  meta: {
    name: "accept-timeline",
    description: "Say that the timeline that a node is on is the group's, where that is disputed",
  },
  args: {
    ...askArgs,
    group: groupArg,
    node: { type: "positional", required: true, description: "The node's name" },
  },
  async run({ args }) {
    const at = locateMonitor(args);
    const { group } = at;
    await using monitor = openMonitor(at.monitor);
    await monitor.acceptTimeline(at.formation, group, args.node);
    const last = (await monitor.timelines(at.formation, group)).at(-1);
    answer(
      args.json
        ? JSON.stringify(last)
        : `Group ${group} goes on with timeline ${last?.timeline} of node "${args.node}"`,
    );
  },
});

const rotatePassword = defineCommand({
  meta: {
    name: "rotate-password",
    description: "Give a group another replication password; what streams goes on",
  },
  args: {
    ...askArgs,
    group: groupArg,
    passwordFile: {
      type: "string",
      description: "A file with the password, or - for standard input (a generated one)",
    },
  },
  async run({ args }) {
    const password =
      args.passwordFile === undefined ? undefined : readPasswordFile(args.passwordFile);
    const { monitor: uri, formation, group } = locateMonitor(args);
    await using monitor = openMonitor(uri);
    await monitor.setReplicationPassword(formation, group, password);
    answer(
      args.json
        ? JSON.stringify({ formation, group, rotated: true })
        : `The nodes of group ${group} take up another replication password with their next reports`,
    );
  },
});

await main(
  defineCommand({
    meta: { name: "formation", description: "Formations, their settings and their failovers" },
    subCommands: {
      create,
      drop,
      list,
      get,
      set,
      switchover,
      failover,
      "accept-timeline": acceptTimeline,
      "rotate-password": rotatePassword,
    },
  }),
);
