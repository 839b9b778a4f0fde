#!/usr/bin/env -S bun --no-env-file
/** monitor: the witness of a formation, with a PostgreSQL of its own. */
import { existsSync } from "node:fs";
import { defineCommand } from "citty";
import {
  enterPgdata,
  httpArg,
  httpSetting,
  loadMonitorConfig,
  nodePaths,
  parseCount,
  parsePort,
  parseSecurity,
  readPasswordFile,
  requireTls,
  securityArgs,
  showSettings,
  tlsArgs,
} from "../lib/config.ts";
import { lockNode, stopRole } from "../lib/keeper/setup.ts";
import {
  changeMonitorTls,
  changePassword,
  createMonitor,
  monitorUri,
  passwordFile,
  removeMonitor,
  runMonitor,
} from "../lib/monitor/instance.ts";
import { MONITOR_SETTINGS, setMonitorSetting } from "../lib/monitor/own_settings.ts";
import { recoverMonitor } from "../lib/monitor/recover.ts";
import { isLoopback } from "../lib/pg/addresses.ts";
import { findBinaries } from "../lib/pg/binaries.ts";
import { livePostmaster } from "../lib/pg/server.ts";
import type { MonitorConfig } from "../lib/shapes.ts";
import { answer, commonArgs, exit, logArgs, main } from "../lib/sys/cli.ts";
import { runLean } from "../lib/sys/lean.ts";
import { lockHolder } from "../lib/sys/lock.ts";
import { logger } from "../lib/sys/log.ts";
import { signals } from "../lib/sys/signals.ts";

const log = logger("monitor");
const pgdataArg = {
  pgdata: { type: "string", description: "The monitor's data directory (or PGDATA)" },
} as const;

const passwordOf = (file: string | undefined): string | undefined =>
  file === undefined ? undefined : readPasswordFile(file);

async function run(config: MonitorConfig): Promise<void> {
  using _lock = lockNode(nodePaths(config.pgdata));
  await runMonitor(config, signals());
}

const create = defineCommand({
  meta: {
    name: "create",
    description: "Make the monitor's PostgreSQL, start it, and print its URI",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    nodename: {
      type: "string",
      default: "localhost",
      description: "The name that keepers and clients reach it at",
    },
    pgport: { type: "string", description: "Its port (5432)" },
    ...securityArgs,
    pgctl: { type: "string", description: "The pg_ctl to use" },
    ...httpArg,
    passwordFile: {
      type: "string",
      description: "A file with autoctl_node's password, or - for standard input (a generated one)",
    },
    run: { type: "boolean", description: "Go on with run" },
  },
  async run({ args }) {
    const http = httpSetting(args);
    const pgdata = enterPgdata(args.pgdata);
    const password = passwordOf(args.passwordFile);
    const paths = nodePaths(pgdata);
    const binaries = await findBinaries(args.pgctl === undefined ? {} : { pgctl: args.pgctl });
    const config: MonitorConfig = {
      version: 1,
      pgdata,
      pgport: parsePort(args.pgport),
      pgctl: `${binaries.bindir}/pg_ctl`,
      nodename: args.nodename,
      ...parseSecurity(
        args,
        paths.directory,
        !isLoopback(args.nodename) && !existsSync(paths.monitorConfig),
      ),
      ...http,
    };
    const done = await createMonitor(config, password);
    log.info(
      done === "existed" ? "The monitor exists already, and is ready" : "The monitor is ready",
    );
    if (config.auth !== "trust" || !isLoopback(config.nodename))
      log.info(`The password of autoctl_node is in ${passwordFile(config)}, for PGPASSFILE`);
    const settled = loadMonitorConfig(pgdata);
    answer(monitorUri(settled));
    if (args.run) await run(settled);
  },
});

const recover = defineCommand({
  meta: {
    name: "recover",
    description:
      "Go on from what the keepers know: for a monitor that was lost, or restored from an old backup",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    nodename: { type: "string", description: "As for create (what it was, else localhost)" },
    pgport: { type: "string", description: "As for create (what it was, else 5432)" },
    ...securityArgs,
    pgctl: { type: "string", description: "The pg_ctl to use" },
    without: {
      type: "string",
      description: "Names of nodes not to wait for, separated by commas; what they say is ignored",
    },
    passwordFile: {
      type: "string",
      description:
        "A file with the password of autoctl_node that the keepers know, or - (what is left here)",
    },
    timeout: {
      type: "string",
      default: "60",
      description: "How long to wait for the keepers, in seconds",
    },
    run: { type: "boolean", description: "Go on with run" },
  },
  async run({ args }) {
    const pgdata = enterPgdata(args.pgdata);
    const known = existsSync(nodePaths(pgdata).monitorConfig)
      ? loadMonitorConfig(pgdata)
      : undefined;
    const binaries = await findBinaries({ pgctl: args.pgctl ?? known?.pgctl });
    const nodename = args.nodename ?? known?.nodename ?? "localhost";
    const config: MonitorConfig = {
      ...(known ?? parseSecurity(args, nodePaths(pgdata).directory, !isLoopback(nodename))),
      version: 1,
      pgdata,
      pgport: args.pgport === undefined && known ? known.pgport : parsePort(args.pgport),
      pgctl: `${binaries.bindir}/pg_ctl`,
      nodename,
    };
    const { nodes } = await recoverMonitor(config, {
      password: passwordOf(args.passwordFile),
      without: args.without?.split(",").filter((name) => name !== "") ?? [],
      timeoutMs: 1000 * parseCount("timeout", args.timeout, 86_400, 1),
      signal: signals().stop,
    });
    log.info(`The monitor is recovered, and knows ${nodes.length} nodes`);
    answer(monitorUri(config));
    if (args.run) await run(config);
  },
});

const runCommand = defineCommand({
  meta: { name: "run", description: "Keep the monitor running in the foreground" },
  args: { ...pgdataArg, ...logArgs, ...httpArg },
  run({ args }) {
    runLean({ busy: true });
    const http = httpSetting(args);
    return run({ ...loadMonitorConfig(enterPgdata(args.pgdata)), ...http });
  },
});

const status = defineCommand({
  meta: {
    name: "status",
    description: "Say what runs; exit 3 when the monitor's process or its PostgreSQL does not",
  },
  args: { ...pgdataArg, ...commonArgs },
  run({ args }) {
    const config = loadMonitorConfig(enterPgdata(args.pgdata));
    const found = {
      pgdata: config.pgdata,
      uri: monitorUri(config),
      monitor: { pid: lockHolder(nodePaths(config.pgdata).lock) },
      postgres: { pid: livePostmaster(config.pgdata)?.pid, port: config.pgport },
    };
    const word = (pid: number | undefined) =>
      pid === undefined ? "not running" : `running with pid ${pid}`;
    answer(
      args.json
        ? JSON.stringify(found)
        : `monitor:    ${word(found.monitor.pid)}\nPostgreSQL: ${word(found.postgres.pid)}, port ${config.pgport}\nURI:        ${found.uri}`,
    );
    if (found.monitor.pid === undefined || found.postgres.pid === undefined) exit(3);
  },
});

const stop = defineCommand({
  meta: { name: "stop", description: "Stop the monitor and its PostgreSQL" },
  args: { ...pgdataArg, ...logArgs },
  async run({ args }) {
    log.info(`The monitor ${await stopRole(loadMonitorConfig(enterPgdata(args.pgdata)).pgdata)}`);
  },
});

const rotatePassword = defineCommand({
  meta: {
    name: "rotate-password",
    description:
      "Give autoctl_node another password at once: tell keepers and operators, who ask for it when they connect",
  },
  args: {
    ...pgdataArg,
    ...logArgs,
    passwordFile: {
      type: "string",
      description: "A file with the password, or - for standard input (a generated one)",
    },
  },
  async run({ args }) {
    const config = loadMonitorConfig(enterPgdata(args.pgdata));
    await changePassword(config, passwordOf(args.passwordFile));
    log.info(`The password of autoctl_node is in ${passwordFile(config)}, for PGPASSFILE`);
  },
});

const get = defineCommand({
  meta: { name: "get", description: "Show the monitor's settings, or one of them" },
  args: {
    ...pgdataArg,
    ...commonArgs,
    setting: { type: "positional", required: false, description: "Its name; left out: all" },
  },
  run({ args }) {
    const settings = loadMonitorConfig(enterPgdata(args.pgdata));
    answer(showSettings(MONITOR_SETTINGS, settings, args.setting, args.json ?? false));
  },
});

const set = defineCommand({
  meta: { name: "set", description: "Change a setting of the monitor, which must be stopped" },
  args: {
    ...pgdataArg,
    ...logArgs,
    setting: { type: "positional", required: true, description: "Its name, as config get has it" },
    value: { type: "positional", required: true, description: "Its new value" },
  },
  async run({ args }) {
    const effect = await setMonitorSetting(enterPgdata(args.pgdata), args.setting, args.value);
    answer(`${args.setting} is ${args.value}: ${effect}`);
  },
});

const config = defineCommand({
  meta: { name: "config", description: "The monitor's own settings" },
  subCommands: { get, set },
});

const drop = defineCommand({
  meta: { name: "drop", description: "Stop the monitor and remove its data directory" },
  args: { ...pgdataArg, ...logArgs },
  async run({ args }) {
    const config = loadMonitorConfig(enterPgdata(args.pgdata));
    await stopRole(config.pgdata);
    await removeMonitor(config);
    log.info(`The monitor at "${config.pgdata}" is removed`);
  },
});

const enableSsl = defineCommand({
  meta: { name: "ssl", description: "Turn TLS on, or take another certificate, without a restart" },
  args: { ...pgdataArg, ...logArgs, ...tlsArgs },
  async run({ args }) {
    const { pgdata } = loadMonitorConfig(enterPgdata(args.pgdata));
    await changeMonitorTls(pgdata, requireTls(args, nodePaths(pgdata).directory));
    log.info("TLS is on");
    answer(monitorUri(loadMonitorConfig(pgdata)));
  },
});

const disableSsl = defineCommand({
  meta: { name: "ssl", description: "Turn TLS off without a restart: the nodes' first" },
  args: { ...pgdataArg, ...logArgs },
  async run({ args }) {
    const { pgdata } = loadMonitorConfig(enterPgdata(args.pgdata));
    await changeMonitorTls(pgdata, undefined);
    log.info("TLS is off");
    answer(monitorUri(loadMonitorConfig(pgdata)));
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
    meta: { name: "monitor", description: "The monitor: knows every node, and decides" },
    subCommands: {
      create,
      run: runCommand,
      recover,
      status,
      stop,
      config,
      "rotate-password": rotatePassword,
      enable,
      disable,
      drop,
    },
  }),
);
