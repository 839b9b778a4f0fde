/** The monitor loses its memory; the keepers give it back. */
import { expect, test } from "bun:test";
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { type Outcome, runRole } from "../helpers/command.ts";
import { giveTo } from "../helpers/owner.ts";
import { killUnder } from "../helpers/processes.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { ask, type Row } from "../helpers/sql.ts";
import { nowMs, within } from "../helpers/wait.ts";

const scenario = scenariosOf("recover", [[], [], []]);

/** The shortest timer by which anything could stop is 2.5 s. */
const NO_OUTAGE_MS = 2000;

scenario(
  "the monitor's directory is deleted: one command, and the formation is managed as before",
  90_000,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    await cluster.setPriority(standbys[1] as Service, 70);
    await cluster.setFormation("number_sync_standbys", "1");
    await remembered(cluster);
    const known = await whatIsKnown(cluster);
    const quiet = await undisturbed(scene, async () => {
      await loseMonitor(cluster);
      const outcome = await recover(cluster);
      expect(outcome).toMatchObject({ code: 0 });
      cluster.monitor.start();
      await cluster.healthy(20_000);
      await writer.waitForWrites(50, 5000);
    });
    expect(quiet).toEqual([]);
    expect(await whatIsKnown(cluster)).toEqual(known);

    const again = await recover(cluster);
    expect(again).toMatchObject({ code: 7 });
    expect(again.stderr).toContain("no keeper knows more than this monitor");

    await cluster.judges(15_000);
    primary.killPostgres();
    await cluster.waitFor("the failover to the preferred standby", 20_000, async () => {
      const after = await cluster.healthy(20_000);
      return after === standbys[1];
    });
  },
);

scenario(
  "restored from an old backup, the monitor decides nothing until it's recovered",
  90_000,
  async (scene) => {
    const { cluster, primary, writer } = scene;
    const backup = `${cluster.monitor.pgdata}.backup`;
    await cluster.monitor.terminate(20_000);
    await copy(cluster.monitor.pgdata, backup);
    cluster.monitor.start();
    await cluster.healthy(20_000);
    await cluster.judges(15_000);
    primary.killPostgres();
    const after = await cluster.waitFor("another primary", 20_000, async () => {
      const found = await cluster.healthy(20_000);
      return found !== primary && found;
    });
    await writer.waitForWrites(20, 5000);
    await remembered(cluster);
    const known = await whatIsKnown(cluster);

    const standbys = cluster.nodes.filter((node) => node !== after);
    const quiet = await undisturbed({ ...scene, primary: after, standbys }, async () => {
      await killMonitor(cluster);
      await rm(cluster.monitor.pgdata, { recursive: true });
      await copy(backup, cluster.monitor.pgdata);
      const { logStart } = cluster.monitor.start();
      await cluster.monitor.waitForLog(/restored from the past/, 10_000, logStart);
      const since = nowMs();
      // longer than node_timeout: whatever it would do on its old rows, it would have done
      await cluster.waitFor("6 s to go by", 10_000, () => nowMs() - since > 6000);
      expect(await cluster.writableNodes()).toEqual([after]);
      expect(await recover(cluster)).toMatchObject({ code: 0 });
      expect(await cluster.healthy(20_000)).toBe(after);
    });
    expect(quiet).toEqual([]);
    expect(await whatIsKnown(cluster)).toEqual(known);
  },
);

scenario("a node that doesn't call is named, and can be left out", 90_000, async (scene) => {
  const { cluster, secondary } = scene;
  await remembered(cluster);
  await loseMonitor(cluster);
  await secondary.die();
  const name = `node_${cluster.nodes.indexOf(secondary) + 1}`;
  const refused = await recover(cluster, ["--timeout", "5"]);
  expect(refused).toMatchObject({ code: 8 });
  expect(refused.stderr).toContain(`nodes have not called: ${name}`);
  expect(await recover(cluster, ["--without", name])).toMatchObject({ code: 0 });
  cluster.monitor.start();
  const others = cluster.nodes.filter((node) => node !== secondary);
  await cluster.healthy(20_000, others);
  // it comes back as the node that it was
  secondary.start();
  await cluster.healthy(20_000);
});

scenario("two primaries: recover refuses, and nothing is decided", 90_000, async (scene) => {
  const { cluster, primary, secondary, writer } = scene;
  await loseMonitor(cluster);
  // an old primary that has been brought back by hand, behind everybody's back
  await secondary.kill();
  const state = join(ownFiles(cluster, secondary), "state.json");
  const before = await Bun.file(state).text();
  const claim = JSON.parse(before);
  const taking = { state: "wait_primary", goal: "wait_primary", syncMembers: [] };
  await Bun.write(state, JSON.stringify({ ...claim, ...taking }));
  await secondary.ask("select pg_promote()", [], 10_000);
  secondary.start();
  const refused = await recover(cluster, ["--timeout", "30"]);
  expect(refused).toMatchObject({ code: 7 });
  expect(refused.stderr).toMatch(/node_\d\\" and node \d \\"node_\d\\" both take writes/);
  expect(refused.stderr).toContain("Until then nothing is decided");
  await secondary.kill();
  await Bun.write(state, before);
  secondary.start();
  await writer.waitForWrites(10, 10_000);
  expect(await recover(cluster)).toMatchObject({ code: 0 });
  cluster.monitor.start();
  expect(await cluster.healthy(30_000)).toBe(primary);
});

scenario(
  "a standby without a monitor is restarted in place, and comes back by drop and create",
  90_000,
  async ({ cluster, primary, standbys }) => {
    const [node, other] = standbys as [Service, Service];
    expect(await monitorCommand(node, "disable")).toMatchObject({ code: 0 });
    await cluster.waitForStates({ [primary.label]: "primary", [other.label]: "secondary" }, 20_000);
    await node.newPostmaster(node.killPostgres(), 10_000);
    expect(await node.command("drop")).toMatchObject({ code: 0 });
    await node.process?.ended(5000);
    await node.create();
    node.start();
  },
);

scenario(
  "a primary that has left a monitor by force still stops itself when no standby replies",
  90_000,
  async ({ cluster, primary, standbys }) => {
    await killMonitor(cluster);
    expect(await monitorCommand(primary, "disable")).toMatchObject({ code: 6 });
    expect(await monitorCommand(primary, "disable", "--force")).toMatchObject({ code: 0 });
    const mark = primary.mark();
    await Promise.all(standbys.map((node) => node.die()));
    await primary.waitForLog(/this primary stops itself/, 10_000, mark);
    await cluster.waitFor("its end", 10_000, () => primary.postmaster() === undefined);
    // a keeper that starts without a monitor starts nothing
    await primary.kill();
    const { logStart } = primary.start();
    await primary.waitForLog(/last known state is "demote_timeout"/, 10_000, logStart);

    cluster.monitor.start();
    for (const node of standbys) node.start();
    await cluster.waitFor("the monitor to know the primary", 15_000, async () => {
      const { code } = await monitorCommand(primary, "enable", uriOf(cluster.monitor));
      return code === 0;
    });
    await cluster.healthy(30_000);
  },
);

scenario("the formation moves to another monitor, node by node", 90_000, async (scene) => {
  const { cluster, primary, standbys, writer } = scene;
  await remembered(cluster);
  const known = await whatIsKnown(cluster);
  const quiet = await undisturbed(scene, async () => {
    const { monitor, recovered } = await recoveringMonitor(cluster, "monitor2");
    for (const node of [primary, ...standbys]) {
      expect(await monitorCommand(node, "enable", uriOf(monitor))).toMatchObject({ code: 0 });
    }
    expect(await recovered).toMatchObject({ code: 0 });
    await cluster.turnTo(monitor);
    monitor.start();
    await cluster.healthy(20_000);
    await writer.waitForWrites(50, 5000);
  });
  expect(quiet).toEqual([]);
  expect(await whatIsKnown(cluster)).toEqual(known);
  await cluster.judges(15_000);
  primary.killPostgres();
  await cluster.waitFor("a failover", 20_000, async () => {
    const after = await cluster.healthy(20_000);
    return after !== primary;
  });
});

scenario(
  "nodes leave their monitor, the primary last, and another one takes them in",
  90_000,
  async (scene) => {
    const { cluster, primary, standbys } = scene;
    const refused = await monitorCommand(primary, "disable");
    expect(refused).toMatchObject({ code: 7 });
    expect(refused.stderr).toContain("A primary goes last");
    const quiet = await undisturbed(
      { ...scene, primary: standbys[0] as Service, standbys: standbys.slice(1) },
      async () => {
        for (const node of standbys) {
          expect(await monitorCommand(node, "disable")).toMatchObject({ code: 0 });
        }
        await cluster.waitForStates({ [primary.label]: "single" }, 10_000);
        const postmaster = primary.requirePostmaster();
        expect(await monitorCommand(primary, "disable")).toMatchObject({ code: 0 });
        expect(await cluster.states()).toEqual([]);
        // longer than any timer: nobody stops, nobody takes over
        const since = nowMs();
        await cluster.waitFor("6 s to go by", 10_000, () => nowMs() - since > 6000);
        expect(primary.postmaster()).toBe(postmaster);
        expect(await cluster.writableNodes()).toEqual([primary]);

        const unknown = await monitorCommand(primary, "enable", uriOf(cluster.monitor));
        expect(unknown).toMatchObject({ code: 7 });
        const { monitor, recovered } = await recoveringMonitor(cluster, "monitor3");
        for (const node of [primary, ...standbys]) {
          expect(await monitorCommand(node, "enable", uriOf(monitor))).toMatchObject({ code: 0 });
        }
        expect(await recovered).toMatchObject({ code: 0 });
        await cluster.turnTo(monitor);
        monitor.start();
        expect(await cluster.healthy(20_000)).toBe(primary);
      },
    );
    expect(quiet).toEqual([]);
  },
);

const ASKS_FOR_PASSWORDS = ["--auth", "scram-sha-256"];

test("a new monitor takes the password that the keepers know; without keepers it is one like any other", async () => {
  await using cluster = new Cluster("recover-auth", { auth: "scram-sha-256" });
  const { monitor } = cluster;
  await monitor.create();
  const line = readFileSync(join(ownFiles(cluster, monitor), "autoctl_node.pgpass"), "utf8");
  await killMonitor(cluster);
  await rm(monitor.pgdata, { recursive: true });
  const outcome = await recover(cluster, ["--timeout", "1", ...ASKS_FOR_PASSWORDS]);
  expect(outcome).toMatchObject({ code: 8 });
  expect(outcome.stderr).toContain("no keeper has called");
  const password = line.trim().split(":").at(-1) ?? "";
  const login = { user: "autoctl_node", database: "pg_auto_failover", password };
  expect(await ask(monitor.address, login, "select from pgautofailover.recovery")).toEqual([]);
}, 40_000);

test("a password that is given: create, create again, recover, and another one at once", async () => {
  await using cluster = new Cluster("recover-given", { auth: "scram-sha-256" });
  const { monitor } = cluster;
  const given = (password: string): string[] => {
    const path = join(cluster.base, "given");
    writeFileSync(path, `${password}\n`, { mode: 0o600 });
    giveTo(cluster.owner, path);
    return ["--password-file", path];
  };
  const file = join(ownFiles(cluster, monitor), "autoctl_node.pgpass");
  const uri = `${uriOf(monitor)}?passfile=${encodeURIComponent(file)}`;
  const answers = (env: Record<string, string> = {}): string => {
    const asked = Bun.spawnSync(["psql", "-XAwtc", "select 'in'", uri], {
      env: { ...cluster.env, ...env },
    });
    return `${asked.stdout}${asked.stderr}`;
  };
  const first = String.raw`it's a "long":one\ `;
  await monitor.create(given(first));
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(answers()).toBe("in\n");
  expect(await monitor.tryCreate(given(first))).toMatchObject({ code: 0 });
  const refused = await monitor.tryCreate(given("another"));
  expect(refused).toMatchObject({ code: 7 });
  expect(refused.stderr).not.toContain("another\n");
  expect(answers()).toBe("in\n");

  // only the file that was handed out is there, and the new monitor's own is made of it
  await loseMonitor(cluster);
  const flags = ["--timeout", "1", ...ASKS_FOR_PASSWORDS];
  expect(await recover(cluster, [...flags, ...given(first)])).toMatchObject({ code: 8 });
  expect(answers()).toBe("in\n");
  expect(await recover(cluster, [...flags, ...given("b")])).toMatchObject({ code: 7 });

  expect(await monitor.command("rotate-password", given("c:d"))).toMatchObject({ code: 0 });
  expect(readFileSync(file, "utf8")).toEndWith(":c\\:d\n");
  expect(answers()).toBe("in\n");
  expect(answers({ PGPASSWORD: first })).toContain("password authentication failed");
  expect(await monitor.command("rotate-password")).toMatchObject({ code: 0 });
  expect(answers({ PGPASSWORD: "c:d" })).toContain("password authentication failed");
  expect(answers()).toBe("in\n");
  chmodSync(join(cluster.base, "given"), 0o644);
  const open = ["--password-file", join(cluster.base, "given")];
  expect(await monitor.command("rotate-password", open)).toMatchObject({ code: 5 });
}, 60_000);

/** A monitor that waits for the keepers; `recovered` is the end of its command. */
async function recoveringMonitor(cluster: Cluster, label: string) {
  const monitor = cluster.anotherMonitor(label);
  const recovered = recover({ monitor });
  await cluster.waitFor("the new monitor to wait for the keepers", 20_000, async () => {
    const login = { user: "autoctl_node", database: "pg_auto_failover" };
    const rows = await ask(monitor.address, login, "select from pgautofailover.recovery", [], 1000);
    return rows.length > 0;
  });
  return { monitor, recovered };
}

const uriOf = ({ place, port }: Service): string =>
  `postgres://autoctl_node@${place.host}:${port}/pg_auto_failover`;

const monitorCommand = (node: Service, ...[verb, ...words]: string[]): Promise<Outcome> =>
  runRole("keeper", ["monitor", verb ?? "", "--pgdata", node.pgdata, ...words], { env: node.env });

/** As an operator would, with the flags that the monitor was once created with. */
function recover(
  { monitor }: Pick<Cluster, "monitor">,
  flags: readonly string[] = [],
): Promise<Outcome> {
  const where = ["--nodename", monitor.place.host, "--pgport", String(monitor.port)];
  return monitor.command("recover", [...where, ...flags], { timeoutMs: 60_000 });
}

const ownFiles = (cluster: Cluster, service: Service): string =>
  join(cluster.base, "data", "pg_auto_failover", service.pgdata);

async function killMonitor(cluster: Cluster): Promise<void> {
  await cluster.monitor.kill();
  const killed = killUnder(cluster.monitor.pgdata);
  // PostgreSQL takes the socket's lock file of a process for one that is held as long as there is a trace of it
  await cluster.waitFor("the monitor's end", 5000, () =>
    killed.every(({ pid }) => !existsSync(`/proc/${pid}`)),
  );
}

/** Nothing of it is left. */
async function loseMonitor(cluster: Cluster): Promise<void> {
  await killMonitor(cluster);
  for (const path of [cluster.monitor.pgdata, ownFiles(cluster, cluster.monitor)]) {
    await rm(path, { recursive: true });
  }
}

/** Beside the writer, which lives in this process. */
async function copy(from: string, to: string): Promise<void> {
  const child = Bun.spawn(["cp", "-a", from, to]);
  expect(await within(20_000, `a copy of ${from}`, child.exited)).toBe(0);
}

/** What the monitor knows by an operator's word or for ever, but for what each report says anew. */
const whatIsKnown = (cluster: Cluster): Promise<Row[]> =>
  cluster.askMonitor(
    `select to_jsonb(f)::text as row from pgautofailover.formation f
     union all select to_jsonb(h)::text from pgautofailover.timeline_history h
     union all select format('%s %s %s:%s %s %s %s %s', nodeid, nodename, nodehost, nodeport, identity, sysidentifier,
       candidatepriority, replicationquorum) from pgautofailover.node
     order by 1`,
  );

/** Waits until each keeper has kept what the monitor knows now. */
async function remembered(cluster: Cluster): Promise<void> {
  await cluster.waitFor("every keeper to have kept what the monitor knows", 10_000, async () => {
    const version = await cluster.lastEventId();
    return cluster.nodes.every((node) => {
      const path = join(ownFiles(cluster, node), "memory.json");
      return existsSync(path) && JSON.parse(readFileSync(path, "utf8")).version === version;
    });
  });
}

/** Runs `body`, and says what a node or a client has noticed of it. */
async function undisturbed(
  { primary, standbys, writer }: Scene,
  body: () => Promise<void>,
): Promise<string[]> {
  const before = [primary, ...standbys].map((node) => ({
    node,
    mark: node.mark(),
    postmaster: node.postmaster(),
  }));
  const timeMs = nowMs();
  writer.errors.splice(0);
  await body();
  return [
    ...before.flatMap(({ node, mark, postmaster }) => [
      ...node.path(mark).map((state) => `${node.label} went through ${state}`),
      ...(node.postmaster() === postmaster ? [] : [`${node.label} has another postmaster`]),
    ]),
    ...writer.errors,
    ...(writer.longestGapMs(timeMs) < NO_OUTAGE_MS ? [] : ["writes stood still"]),
  ];
}
