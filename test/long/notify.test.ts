/** A service manager beside monitor and keeper: sd_notify, the watchdog, and a restart that leaves PostgreSQL alone. */
import { afterAll, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { REPOSITORY } from "../helpers/command.ts";
import { NotifySocket } from "../helpers/notify_socket.ts";
import { childrenOf, signal } from "../helpers/processes.ts";
import { onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs, waitFor } from "../helpers/wait.ts";

const isLinux = process.platform === "linux";
if (!isLinux) console.warn("skipped: sd_notify is of Linux alone");

/** The keeper and the monitor feed the watchdog every third of it. */
const WATCHDOG_US = 3_000_000;
const FED_MS = 1500;

const sockets = new Map<string, NotifySocket>();
afterAll(() => {
  for (const socket of sockets.values()) socket[Symbol.dispose]();
});

/** Starts a service as systemd does, until it's ready; with `preload` a file that changes its modules. */
async function startUnder(
  cluster: Cluster,
  service: Service,
  preload?: string,
): Promise<NotifySocket> {
  sockets.get(service.label)?.[Symbol.dispose]();
  const socket = new NotifySocket(join(cluster.base, `${service.label}.notify`));
  sockets.set(service.label, socket);
  const env = service.env;
  service.env = {
    ...env,
    NOTIFY_SOCKET: socket.address,
    WATCHDOG_USEC: String(WATCHDOG_US),
    ...(preload && { BUN_OPTIONS: `--preload=${preload}` }),
  };
  service.start();
  service.env = env;
  await waitFor(`${service.label} to be ready`, 10_000, () => socket.count("READY=1") > 0);
  return socket;
}

const socketOf = ({ label }: Service): NotifySocket => {
  const found = sockets.get(label);
  if (!found) throw new Error(`${label} runs under no manager`);
  return found;
};

/** The longest time without a sign of life, from now on, for as long as asked. */
async function longestSilence(socket: NotifySocket, forMs: number): Promise<number> {
  const endMs = nowMs() + forMs;
  let [count, atMs, longest] = [socket.count("WATCHDOG=1"), nowMs(), 0];
  await waitFor("the end of the time that is watched", forMs + 5000, () => {
    const now = nowMs();
    longest = Math.max(longest, now - atMs);
    if (socket.count("WATCHDOG=1") > count) [count, atMs] = [socket.count("WATCHDOG=1"), now];
    return now >= endMs;
  });
  return longest;
}

/** Of a process that has ended meanwhile, as autovacuum's do: nothing. */
function environmentOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/environ`, "utf8");
  } catch {
    return "";
  }
}

const onTwo = onShared(
  async () => {
    const cluster = new Cluster("notify");
    await cluster.monitor.create();
    await startUnder(cluster, cluster.monitor);
    for (const label of ["node1", "node2"]) {
      const node = cluster.addNode(label);
      await node.create();
      await startUnder(cluster, node);
    }
    await cluster.healthy(30_000);
    return cluster;
  },
  isLinux ? test : test.skip,
);

onTwo(
  "they say that they are ready, what they do, and that they are alive",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(30_000);
    for (const service of [cluster.monitor, ...cluster.nodes]) {
      expect(socketOf(service).count("READY=1")).toBe(1);
      await waitFor("a sign of life", FED_MS, () => socketOf(service).count("WATCHDOG=1") > 0);
      const postmaster = service.requirePostmaster();
      for (const pid of [postmaster, ...childrenOf(postmaster)])
        expect(environmentOf(pid)).not.toContain("NOTIFY_SOCKET");
    }
    const name = await cluster.nameOf(primary);
    await waitFor("the primary's status", 5000, () =>
      socketOf(primary).messages.includes(
        `STATUS=Node "${name}" is "primary"; PostgreSQL is up; the monitor answers`,
      ),
    );
    expect(socketOf(cluster.monitor).messages).toContain(`STATUS=Serving at ${cluster.monitorUri}`);
    const { length } = socketOf(primary).messages;
    primary.process?.signal("SIGHUP");
    const reload = await waitFor("a reload", 5000, () => {
      const since = socketOf(primary).messages.slice(length);
      const words = since
        .map((text) => text.split("\n")[0])
        .filter((text) => /READY|LOAD/.test(text ?? ""));
      return words.length === 2 && words;
    });
    expect(reload).toEqual(["RELOADING=1", "READY=1"]);
  },
);

onTwo(
  "a PostgreSQL that hangs is no reason to restart who looks after it",
  60_000,
  async (cluster) => {
    const primary = await cluster.healthy(30_000);
    const frozen = [primary, cluster.monitor].flatMap((service) =>
      service.freezePostgres({ children: true }),
    );
    try {
      const silences = [primary, cluster.monitor].map((one) => longestSilence(socketOf(one), 8000));
      for (const silence of await Promise.all(silences)) expect(silence).toBeLessThan(FED_MS * 2);
    } finally {
      for (const pid of frozen) signal(pid, "SIGCONT");
    }
    await cluster.healthy(30_000);
  },
);

onTwo(
  "SIGQUIT leaves PostgreSQL running, the monitor's too, and the next run adopts it",
  60_000,
  async (cluster) => {
    await cluster.healthy(30_000);
    for (const service of [cluster.monitor, ...cluster.nodes]) {
      const postmaster = service.requirePostmaster();
      const socket = socketOf(service);
      service.process?.signal("SIGQUIT");
      expect(await service.process?.ended(10_000)).toBe(0);
      expect(socket.messages.at(-1)).toBe("STOPPING=1");
      expect(service.postmaster()).toBe(postmaster);
      await startUnder(cluster, service);
      expect(service.postmaster()).toBe(postmaster);
    }
    await cluster.healthy(30_000);
  },
);

onTwo(
  "a keeper whose look at PostgreSQL never ends gives no more signs of life",
  90_000,
  async (cluster) => {
    const primary = await cluster.healthy(30_000);
    const secondary = cluster.other(primary);
    const preload = join(cluster.base, "hang.ts");
    const module = join(REPOSITORY, "lib/pg/ping.ts");
    writeFileSync(
      preload,
      `Bun.plugin({ name: "hang", setup(build) {
       build.onLoad({ filter: /lib.pg.ping\\.ts$/ }, ({ path }) => path === ${JSON.stringify(module)}
         ? { contents: "export const ping = () => new Promise(() => {});", loader: "ts" } : undefined);
     } });`,
    );
    secondary.process?.signal("SIGQUIT");
    await secondary.process?.ended(10_000);
    const mark = secondary.mark();
    const socket = await startUnder(cluster, secondary, preload);
    await waitFor("signs of life", 10_000, () => socket.count("WATCHDOG=1") > 2);
    await secondary.waitForLog(/Stuck: the look at PostgreSQL/, 40_000, mark);
    const fed = socket.count("WATCHDOG=1");
    expect(await longestSilence(socket, 2 * FED_MS)).toBeGreaterThan(FED_MS * 1.5);
    expect(socket.count("WATCHDOG=1")).toBe(fed);
    // what systemd does then
    await secondary.kill();
    await startUnder(cluster, secondary);
    await cluster.healthy(30_000);
  },
);

onTwo("SIGTERM stops PostgreSQL, the monitor's last", 60_000, async (cluster) => {
  await cluster.healthy(30_000);
  for (const service of [...cluster.nodes, cluster.monitor]) {
    expect(await service.terminate(40_000)).toBe(0);
    expect(service.postmaster()).toBeUndefined();
    expect(socketOf(service).count("STOPPING=1")).toBe(1);
  }
});
