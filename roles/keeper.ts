#!/usr/bin/env -S bun --no-env-file
/** keeper: the agent beside one PostgreSQL. */
import { existsSync } from "node:fs";
import { defineCommand } from "citty";
import {
  enterPgdata,
  type KeeperServices,
  keeperServiceArgs,
  keeperServices,
  loadKeeperConfig,
  nodePaths,
  parseCount,
  parsePort,
  parseSecurity,
  readPasswordFile,
  requireMonitorUri,
  requireTls,
  securityArgs,
  showSettings,
  tlsArgs,
} from "../lib/config.ts";
import { disableMonitor, enableMonitor } from "../lib/keeper/membership.ts";
import { changeTls } from "../lib/keeper/security.ts";
import { KEEPER_SETTINGS, setKeeperSetting } from "../lib/keeper/settings.ts";
import {
  createNode,
  dropNode,
  runNode,
  signalRole,
  statusOf,
  stopRole,
} from "../lib/keeper/setup.ts";
import { defaultNodename, isLoopback } from "../lib/pg/addresses.ts";
import { findBinaries } from "../lib/pg/binaries.ts";
import type { KeeperConfig } from "../lib/shapes.ts";
import { answer, commonArgs, exit, logArgs, main } from "../lib/sys/cli.ts";
import { AppError, EXIT_CODES, scrub } from "../lib/sys/errors.ts";
import { runLean } from "../lib/sys/lean.ts";
import { logger } from "../lib/sys/log.ts";
import { signals } from "../lib/sys/signals.ts";

const log = logger("keeper");
const pgdataArg = {
  pgdata: { type: "string", description: "The node's data directory (or PGDATA)" },
} as const;

async function runForeground(pgdata: string, services: KeeperServices = {}): Promise<void> {
  if ((await runNode(pgdata, services, signals())) === "dropped") {
    log.warn("This node is not part of its group any more");
    exit(EXIT_CODES.dropped);
  }
}

function nodenameOrDefault(flag: string | undefined): string {
  if (flag !== undefined) return flag;
  const found = defaultNodename();
  log.info(`No --nodename given: using the local address ${found}`);
  return found;
}

const create = defineCommand({
  meta: {
    name: "create",
    description: "Register a node, and make it the first of its group or a standby",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    monitor: { type: "string", description: "The monitor's URI (or PG_AUTOCTL_MONITOR)" },
    nodename: {
      type: "string",
      description:
        "The name or address that other nodes and clients reach this one at (a local address)",
    },
    pgport: { type: "string", description: "PostgreSQL's port (5432)" },
    pgctl: { type: "string", description: "The pg_ctl to use" },
    name: { type: "string", description: "The node's name (node_ID)" },
    formation: { type: "string", default: "default", description: "The formation to join" },
    group: { type: "string", default: "0", description: "The group to join" },
    dbname: {
      type: "string",
      description: "The clients' database (postgres); the first node decides",
    },
    candidatePriority: {
      type: "string",
      default: "50",
      description: "0 to 100; 0: never promoted",
    },
    replicationQuorum: {
      type: "enum",
      options: ["true", "false"],
      default: "true",
      description: "Whether commits may wait for this node",
    },
    ...securityArgs,
    replicationPasswordFile: {
      type: "string",
      description:
        "The first node's: a file with the group's replication password (a generated one)",
    },
    ...keeperServiceArgs,
    run: { type: "boolean", description: "Go on with run" },
  },
  async run({ args }) {
    const services = keeperServices(args);
    const pgdata = enterPgdata(args.pgdata);
    const monitor = requireMonitorUri(args.monitor);
    const pgport = parsePort(args.pgport);
    const file = args.replicationPasswordFile;
    const password = file === undefined ? undefined : readPasswordFile(file);
    const binaries = await findBinaries(args.pgctl === undefined ? {} : { pgctl: args.pgctl });
    log.info(`Using PostgreSQL ${binaries.version} in ${binaries.bindir}`);
    const nodename = nodenameOrDefault(args.nodename);
    const paths = nodePaths(pgdata);
    const config: KeeperConfig = {
      version: 1,
      pgdata,
      pgport,
      pgctl: `${binaries.bindir}/pg_ctl`,
      nodename,
      formation: args.formation,
      group: parseCount("group", args.group, 1_000_000),
      monitor,
      ...parseSecurity(
        args,
        paths.directory,
        !isLoopback(nodename) && !existsSync(paths.keeperConfig),
      ),
      candidatePriority: parseCount("candidate-priority", args.candidatePriority, 100),
      replicationQuorum: args.replicationQuorum === "true",
      ...services,
      ...(args.name === undefined ? {} : { name: args.name }),
      ...(args.dbname === undefined ? {} : { dbname: args.dbname }),
    };
    const { stop, leave } = signals();
    const made = await createNode(config, { stop, leave }, password);
    const what = `node ${made.nodeId} "${made.name}", state "${made.state}"`;
    log.info(
      made.existed && made.state !== "catchingup"
        ? `The keeper exists already: ${what}`
        : `Keeper has been successfully initialized: ${what}`,
    );
    if (args.run) await runForeground(pgdata);
  },
});

const run = defineCommand({
  meta: { name: "run", description: "Keep the node running in the foreground" },
  args: { ...pgdataArg, ...logArgs, ...keeperServiceArgs },
  run({ args }) {
    runLean({ busy: false });
    const services = keeperServices(args);
    return runForeground(enterPgdata(args.pgdata), services);
  },
});

const status = defineCommand({
  meta: {
    name: "status",
    description: "Say what runs and in which state; exit 3 when keeper or PostgreSQL does not run",
  },
  args: { ...pgdataArg, ...commonArgs },
  run({ args }) {
    const found = statusOf(enterPgdata(args.pgdata));
    const word = (pid: number | undefined) =>
      pid === undefined ? "not running" : `running with pid ${pid}`;
    const { keeper, postgres } = found;
    answer(
      args.json
        ? JSON.stringify(found)
        : `keeper:     ${word(keeper.pid)}\nPostgreSQL: ${word(postgres.pid)}, port ${postgres.port}\nnode:       ${keeper.nodeId ?? "-"} "${keeper.name ?? ""}"\nstate:      ${keeper.state} (goal: ${keeper.goal})`,
    );
    if (keeper.pid === undefined || postgres.pid === undefined) exit(3);
  },
});

const stop = defineCommand({
  meta: {
    name: "stop",
    description: "Stop the keeper and its PostgreSQL; a standby takes over from a primary",
  },
  args: { ...pgdataArg, ...logArgs },
  async run({ args }) {
    log.info(`The node ${await stopRole(statusOf(enterPgdata(args.pgdata)).pgdata)}`);
  },
});

const reload = defineCommand({
  meta: {
    name: "reload",
    description: "Make the keeper, and its PostgreSQL, read their settings again",
  },
  args: { ...pgdataArg, ...logArgs },
  run({ args }) {
    if (signalRole(statusOf(enterPgdata(args.pgdata)).pgdata, "SIGHUP") !== undefined) return;
    throw new AppError("state", "the keeper is not running", {
      hint: "Start it with roles/keeper.ts run --pgdata DIR.",
    });
  },
});

const get = defineCommand({
  meta: { name: "get", description: "Show the node's settings, or one of them" },
  args: {
    ...pgdataArg,
    ...commonArgs,
    setting: { type: "positional", required: false, description: "Its name; left out: all" },
  },
  run({ args }) {
    const config = loadKeeperConfig(enterPgdata(args.pgdata));
    answer(showSettings(KEEPER_SETTINGS, config, args.setting, args.json ?? false));
  },
});

const set = defineCommand({
  meta: {
    name: "set",
    description: "Change a setting of the node; a running keeper takes it up at once where it can",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    setting: { type: "positional", required: true, description: "Its name, as config get has it" },
    value: { type: "positional", required: true, description: "Its new value" },
  },
  async run({ args }) {
    const pgdata = enterPgdata(args.pgdata);
    const effect = await setKeeperSetting(pgdata, args.setting, args.value);
    signalRole(pgdata, "SIGHUP");
    answer(`${args.setting} is ${scrub(args.value)}: ${effect}`);
  },
});

const config = defineCommand({
  meta: { name: "config", description: "The node's own settings" },
  subCommands: { get, set },
});

const enableAt = defineCommand({
  meta: {
    name: "enable",
    description: "Turn to this monitor, which knows the node or waits to be recovered",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    uri: { type: "positional", required: true, description: "The monitor's URI" },
  },
  async run({ args }) {
    const standing = await enableMonitor(enterPgdata(args.pgdata), args.uri);
    log.info(
      standing === "known"
        ? "The keeper turns to that monitor, which knows this node"
        : "The keeper turns to that monitor, which takes the formation over when every keeper has called",
    );
  },
});

const disableAt = defineCommand({
  meta: {
    name: "disable",
    description: "Leave the monitor: PostgreSQL stays as it is, and nothing is automatic any more",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    force: { type: "boolean", description: "Also when the monitor can't be asked: it is gone" },
  },
  async run({ args }) {
    await disableMonitor(enterPgdata(args.pgdata), args.force ?? false);
    log.info("The keeper goes on without a monitor");
  },
});

const monitor = defineCommand({
  meta: { name: "monitor", description: "Which monitor the keeper looks to" },
  subCommands: { enable: enableAt, disable: disableAt },
});

const drop = defineCommand({
  meta: { name: "drop", description: "Take this node out of its group" },
  args: {
    ...pgdataArg,
    ...logArgs,
    destroy: { type: "boolean", description: "Remove its data directory too" },
    force: { type: "boolean", description: "Also when the monitor can't be told" },
  },
  async run({ args }) {
    const { pgdata } = statusOf(enterPgdata(args.pgdata));
    await dropNode(pgdata, { destroy: args.destroy ?? false, force: args.force ?? false });
    log.info(
      `The node at "${pgdata}" is removed from its group${args.destroy ? ", and its data directory" : ""}`,
    );
  },
});

const enableSsl = defineCommand({
  meta: {
    name: "ssl",
    description:
      "Turn TLS on, or take another certificate, without a restart: the monitor first, then the primary",
  },
  args: { ...pgdataArg, ...logArgs, ...tlsArgs },
  async run({ args }) {
    const { pgdata } = statusOf(enterPgdata(args.pgdata));
    await changeTls(pgdata, requireTls(args, nodePaths(pgdata).directory));
    log.info("TLS is on");
  },
});

const disableSsl = defineCommand({
  meta: {
    name: "ssl",
    description: "Turn TLS off without a restart: secondaries first, then the primary",
  },
  args: { ...pgdataArg, ...logArgs },
  async run({ args }) {
    await changeTls(statusOf(enterPgdata(args.pgdata)).pgdata, undefined);
    log.info("TLS is off");
  },
});

const enable = defineCommand({
  meta: { name: "enable", description: "Turn something on" },
  subCommands: { ssl: enableSsl },
});
const disable = defineCommand({
  meta: { name: "disable", description: "Turn something off" },
  subCommands: { ssl: disableSsl },
});

await main(
  defineCommand({
    meta: { name: "keeper", description: "The keeper: runs one PostgreSQL as the monitor decides" },
    subCommands: { create, run, status, stop, reload, config, enable, disable, monitor, drop },
  }),
);
