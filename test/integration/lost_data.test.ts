/** A node's data directory is gone, or another cluster's, while the keeper's own directory still knows what it was. */
import { expect } from "bun:test";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

const scenario = scenariosOf("lostdata");

const IDENTIFIER = "select system_identifier::text as id from pg_control_system()";
const COPIED = /The data directory is empty.*copied anew/;

scenario("a standby comes back without its data: it's copied anew", 40_000, async (scene) => {
  const { cluster, primary, secondary } = scene;
  await secondary.die();
  empty(secondary);
  const mark = secondary.mark();
  secondary.start();
  await secondary.waitForLog(COPIED, 10_000, mark);
  await secondary.waitForLog(/Copying the primary with pg_basebackup/, 10_000, mark);
  expect(await cluster.healthy(20_000)).toBe(primary);
});

scenario("a standby's directory goes while it runs: it's copied anew", 40_000, async (scene) => {
  const { cluster, primary, secondary } = scene;
  const mark = secondary.mark();
  const keeper = secondary.process?.pid;
  const server = secondary.requirePostmaster();
  rmSync(secondary.pgdata, { recursive: true, maxRetries: 5 });
  process.kill(server, "SIGKILL");
  await secondary.waitForLog(COPIED, 10_000, mark);
  expect(await cluster.healthy(20_000)).toBe(primary);
  expect(secondary.process).toMatchObject({ pid: keeper, running: true });
});

scenario(
  "a primary comes back without its data: it refuses, and goes on once that is back",
  60_000,
  async ({ cluster, primary, secondary }) => {
    await primary.die();
    const aside = `${primary.pgdata}.aside`;
    renameSync(primary.pgdata, aside);
    await cluster.waitForStates({ [secondary.label]: "wait_primary" }, 20_000);
    const mark = primary.mark();
    primary.start();
    await cluster.waitFor("the old primary's turn", 20_000, async () =>
      (await cluster.states()).some(
        ({ port, reported, goal }) =>
          port === primary.port && reported === "demoted" && goal === "catchingup",
      ),
    );
    const [said] = await primary.waitForLog(/the data directory holds no cluster.*/, 10_000, mark);
    expect(said).toMatch(/this node was the primary: mount .*keeper\.ts drop, then create/);
    expect(existsSync(primary.pgdata)).toBe(false);
    expect(primary.log(mark)).not.toContain("Copying the primary");

    renameSync(aside, primary.pgdata);
    const data = primary.dataDirectoryIdentity();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(primary.dataDirectoryIdentity()).toBe(data);
  },
);

scenario(
  "a node has another cluster's data: nothing starts, and nothing of it changes",
  60_000,
  async ({ cluster, primary, secondary }) => {
    await secondary.die();
    const aside = `${secondary.pgdata}.aside`;
    renameSync(secondary.pgdata, aside);
    execFileSync("cp", ["-a", cluster.monitor.pgdata, secondary.pgdata]);
    rmSync(join(secondary.pgdata, "postmaster.pid"));
    const before = filesOf(secondary);
    const mark = secondary.mark();
    secondary.start();
    const [own, there] = [await primary.ask(IDENTIFIER), await cluster.askMonitor(IDENTIFIER)];
    const refused = /the data directory belongs to another cluster.*/;
    for (let time = 0, from = mark; time < 3; time += 1) {
      const [said] = await secondary.waitForLog(refused, 10_000, from);
      expect(said).toContain(`own=${own[0]?.["id"]} found=${there[0]?.["id"]}`);
      from = secondary.mark();
    }
    expect(secondary.postmaster()).toBeUndefined();
    const told = (await cluster.states()).find(({ port }) => port === secondary.port);
    expect(told?.running).toBe(false);
    expect(filesOf(secondary)).toEqual(before);

    rmSync(secondary.pgdata, { recursive: true });
    renameSync(aside, secondary.pgdata);
    const data = secondary.dataDirectoryIdentity();
    expect(await cluster.healthy(30_000)).toBe(primary);
    expect(secondary.dataDirectoryIdentity()).toBe(data);
  },
);

function empty({ pgdata }: Service): void {
  for (const name of readdirSync(pgdata)) rmSync(join(pgdata, name), { recursive: true });
}

/** What stands at the top of PGDATA, and what its control file says. */
const filesOf = ({ pgdata }: Service): unknown => [
  readdirSync(pgdata).toSorted(),
  readFileSync(join(pgdata, "global/pg_control")).toString("base64"),
];
