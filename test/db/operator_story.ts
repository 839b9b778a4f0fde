/** A monitor's database on a server of its own, that no process decides on but the test, and commands against it. */
import { expect } from "bun:test";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  cleanEnvironment,
  type Environment,
  type Outcome,
  type RoleName,
  runRole,
} from "../helpers/command.ts";
import { giveTo, type Owner, serverOwner } from "../helpers/owner.ts";
import { type PlainServer, startPlainServer } from "../helpers/plain_server.ts";
import { freePort } from "../helpers/ports.ts";
import { type Monitor, monitorOn, type Scene } from "./monitor_story.ts";

export type Operated = {
  readonly owner: Owner;
  readonly base: string;
  readonly env: Environment;
  readonly server: PlainServer;
  readonly monitor: Monitor;
  readonly uri: string;
};

/** @param label names its temporary directory */
export async function startOperated(label: string): Promise<Operated> {
  const owner = serverOwner();
  const base = mkdtempSync(join(tmpdir(), `pgaf-${label}-`));
  chmodSync(base, 0o755);
  giveTo(owner, base);
  const env = cleanEnvironment({ HOME: base, XDG_DATA_HOME: base });
  const server = await startPlainServer(owner, join(base, "monitor"), freePort());
  const { port } = server;
  const target = {
    ...{ host: "127.0.0.1", port, user: owner.name, database: "postgres" },
    ...{ applicationName: "test", connectTimeoutMs: 1000 },
  };
  const monitor = await monitorOn(target, port);
  const uri = `postgres://autoctl_node@127.0.0.1:${port}/postgres`;
  return { owner, base, env, server, monitor, uri };
}

export async function endOperated(at: Operated | undefined): Promise<void> {
  await at?.monitor.close();
  await at?.server[Symbol.asyncDispose]();
  if (at) rmSync(at.base, { recursive: true, force: true });
}

/** What commands against this monitor say. @param at is asked at each command */
export function commandsAt(at: () => Operated) {
  const role = (name: RoleName, ...args: string[]): Promise<Outcome> =>
    runRole(name, [...args, "--monitor", at().uri], { env: at().env });
  const says = async (name: RoleName, ...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await role(name, ...args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    return stdout.trimEnd();
  };
  const tells = async (name: RoleName, ...args: string[]): Promise<unknown> =>
    JSON.parse(await says(name, ...args, "--json"));
  return { role, says, tells };
}

/** All that a test has made of the database is gone. */
export async function forgetAll({ own }: Scene): Promise<void> {
  await own.query(
    `truncate pgautofailover.node, pgautofailover.event, pgautofailover.timeline_history, pgautofailover."group",
       pgautofailover.formation restart identity cascade`,
  );
  await own.query("insert into pgautofailover.formation (formationid) values ('default')");
}
