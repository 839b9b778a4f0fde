/** What keepers and the monitor do for others on real servers: hooks, and answers over HTTP. */
import { expect, test } from "bun:test";
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { silentListener } from "../helpers/listener.ts";
import { giveTo } from "../helpers/owner.ts";
import { freePort } from "../helpers/ports.ts";
import { processesUnder, signal } from "../helpers/processes.ts";
import { nothingLost, onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";

const SETTLE_MS = 30_000;
const HOOK_TIMEOUT_MS = 1000;

const monitorPort = freePort();
const ports: Readonly<Record<string, number>> = { node1: freePort(), node2: freePort() };

const onTwo = onShared(async () => {
  const cluster = new Cluster("services");
  const hooks = cluster.directory("hooks");
  await cluster.monitor.create(["--http", String(monitorPort)]);
  cluster.monitor.start();
  for (const [label, port] of Object.entries(ports)) {
    const flags = ["--http", String(port), "--hooks-dir", hooks, "--hook-timeout", "1"];
    await cluster.startNode(label, flags);
  }
  return cluster;
}, test);

function hook(cluster: Cluster, name: string, script: string): void {
  const path = join(cluster.base, "hooks", name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  giveTo(cluster.owner, path);
}

const get = (port: number | undefined, path: string): Promise<Response> =>
  fetch(`http://127.0.0.1:${port}${path}`, { signal: AbortSignal.timeout(1000) });

/** The status of a path of a node's keeper; 0: it doesn't answer. */
const status = (node: Service, path: string): Promise<number> =>
  get(ports[node.label], path).then(
    (response) => response.status,
    () => 0,
  );

type Told = { node: { name: string }; from: string; to: string; role: string };

/** What hooks were told of a node since a mark, in order. */
const told = (file: string, name: string): Told[] =>
  (existsSync(file) ? readFileSync(file, "utf8") : "")
    .trim()
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Told)
    .filter(({ node }) => node.name === name);

onTwo("primary, secondary and monitor say what they are", 60_000, async (cluster) => {
  const primary = await cluster.healthy(SETTLE_MS);
  const secondary = cluster.other(primary);
  const statuses = (node: Service) =>
    Promise.all(
      ["/primary", "/replica", "/replica?lag=1MB", "/read-only", "/health"].map((path) =>
        status(node, path),
      ),
    );
  await cluster.waitFor(
    "a streaming standby without lag",
    5000,
    async () => (await status(secondary, "/replica?lag=0")) === 200,
  );
  expect(await statuses(primary)).toEqual([200, 503, 503, 200, 200]);
  expect(await statuses(secondary)).toEqual([503, 200, 200, 200, 200]);
  expect(await (await get(ports["node1"], "/primary")).json()).toMatchObject({
    state: "primary",
    role: "primary",
    timeline: 1,
  });
  const metrics = await (await get(ports["node2"], "/metrics")).text();
  expect(metrics).toMatch(/^pg_auto_failover_node_state\{.*state="secondary"\} 1$/m);
  expect(metrics).toMatch(/^pg_auto_failover_replay_lag_bytes\{.*\} 0$/m);
  expect(metrics).toMatch(/^pg_auto_failover_reports_total\{.*\} [1-9]\d*$/m);

  expect(await (await get(monitorPort, "/state.json")).json()).toMatchObject({
    serving: true,
    groups: [{ nodes: [{ state: "primary" }, { state: "secondary", health: "good" }] }],
  });
  expect(await (await get(monitorPort, "/")).text()).toContain(`localhost:${secondary.port}`);
  expect((await get(monitorPort, "/health")).status).toBe(200);
});

onTwo(
  "hooks that never end hold up no failover, and are told of each step",
  60_000,
  async (cluster) => {
    const file = join(cluster.base, "told");
    hook(cluster, "10-records", `cat >> ${file}`);
    hook(cluster, "20-sleeps", "sleep 600");
    hook(cluster, "30-ignores", "trap '' TERM; while :; do sleep 0.05; done");
    const primary = await cluster.healthy(SETTLE_MS);
    const secondary = cluster.other(primary);
    const name = await cluster.nameOf(secondary);
    const eventId = await cluster.lastEventId();
    await using writer = await cluster.writer();
    const timeMs = nowMs();
    primary.killPostgres();
    expect(await cluster.healthy(SETTLE_MS)).toBe(secondary);
    await writer.waitForWrites(20, 5000);
    expect(writer.longestGapMs(timeMs)).toBeLessThan(2000);

    rmSync(join(cluster.base, "hooks", "30-ignores"));
    const path = ["prepare_promotion", "stop_replication", "wait_primary", "primary"];
    await cluster.waitFor("each step to be told", 20_000, () => told(file, name).length === 4);
    expect(told(file, name).map(({ from, to }) => [from, to])).toEqual(
      path.map((to, index) => [path[index - 1] ?? "secondary", to]),
    );
    expect(told(file, name).map(({ role }) => role)).toEqual([
      "standby",
      "standby",
      "primary",
      "primary",
    ]);
    await cluster.waitFor("the events", 5000, async () => {
      const said = (await cluster.events(eventId)).map(({ description }) => description);
      return (
        said.some((text) => text.includes(`was killed after ${HOOK_TIMEOUT_MS} ms`)) &&
        said.some((text) =>
          text.endsWith('10-records" for "stop_replication" → "wait_primary" is done'),
        )
      );
    });
    rmSync(join(cluster.base, "hooks", "20-sleeps"));
    await nothingLost(cluster, writer);
  },
);

onTwo(
  "a keeper that is stopped tells its hooks first, and waits for none of them for ever",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const secondary = cluster.other(primary);
    const file = join(cluster.base, "told_of_stop");
    const name = await cluster.nameOf(primary);
    hook(cluster, "10-records", `cat >> ${file}`);
    hook(cluster, "20-sleeps", `grep -q '"name":"${name}"' && sleep 600`);
    expect((await primary.command("stop")).code).toBe(0);
    expect(told(file, name).at(-1)).toMatchObject({ role: "none" });
    expect(processesUnder(join(cluster.base, "hooks"))).toEqual([]);
    await cluster.waitForStates({ [secondary.label]: "wait_primary" }, SETTLE_MS);

    // somebody else sits on its port by now
    const port = ports[primary.label] ?? 0;
    const taken = silentListener(port);
    primary.start();
    await cluster.waitFor("the group to be whole", SETTLE_MS, () => cluster.healthy(SETTLE_MS));
    await primary.waitForLog(/HTTP is not served/, 5000);
    taken[Symbol.dispose]();
    await cluster.waitFor(
      "its answer",
      5000,
      async () => (await status(primary, "/replica")) === 200,
    );
    rmSync(join(cluster.base, "hooks", "20-sleeps"));
  },
);

/** Looks every few milliseconds at what is answered. */
function watch(node: Service, path: string) {
  const seen: { atMs: number; status: number; server: boolean }[] = [];
  let over = false;
  const running = (async () => {
    while (!over) {
      const answered = await status(node, path);
      seen.push({ atMs: nowMs(), status: answered, server: node.postmaster() !== undefined });
      await Bun.sleep(10);
    }
  })();
  return {
    seen,
    async [Symbol.asyncDispose]() {
      over = true;
      await running;
    },
  };
}

onTwo(
  "a primary that nobody hears stops answering when its fence closes, before it has stopped",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const secondary = cluster.other(primary);
    await using watching = watch(primary, "/primary");
    await cluster.waitFor("an answer", 5000, () => watching.seen.at(-1)?.status === 200);
    const frozen = [cluster.monitor, secondary].flatMap((service) => {
      const { pid } = service.process ?? { pid: 0 };
      signal(pid, "SIGSTOP");
      return [pid, ...service.freezePostgres({ children: true })];
    });
    const timeMs = nowMs();
    await cluster.waitFor("the fence", 10_000, () => watching.seen.at(-1)?.server === false);
    for (const pid of frozen) signal(pid, "SIGCONT");
    const since = watching.seen.filter(({ atMs }) => atMs >= timeMs);
    const first = since.find(({ status: answered }) => answered === 503);
    expect(first?.server).toBe(true);
    expect((first?.atMs ?? 0) - timeMs).toBeWithin(1500, 5000);
    const after = since.filter(({ atMs }) => atMs >= (first?.atMs ?? 0));
    expect(after.map(({ status: answered }) => answered)).not.toContain(200);
    await cluster.healthy(SETTLE_MS);
  },
);

onTwo(
  "a keeper that was frozen with its server while another took over never says that it's the primary",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(SETTLE_MS);
    const secondary = cluster.other(primary);
    const { pid } = primary.process ?? { pid: 0 };
    const frozen = [pid, ...primary.freezePostgres({ children: true })];
    signal(pid, "SIGSTOP");
    await cluster.waitFor(
      "the other's answer",
      15_000,
      async () => (await status(secondary, "/primary")) === 200,
    );
    await using watching = watch(primary, "/primary");
    for (const each of frozen) signal(each, "SIGCONT");
    expect(await cluster.healthy(SETTLE_MS)).toBe(secondary);
    await cluster.waitFor(
      "its answer as a standby",
      5000,
      async () => (await status(primary, "/replica")) === 200,
    );
    expect(watching.seen.map(({ status: answered }) => answered)).toContain(503);
    expect(watching.seen.map(({ status: answered }) => answered)).not.toContain(200);
  },
);
