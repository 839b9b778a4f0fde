/**
 * Scenarios that share one cluster, of two nodes unless said otherwise: each begins with a healthy group and a writer, and
 * ends with a healthy group that holds every acknowledged row. One that fails prints the story of
 * the cluster and leaves a new one to the next.
 */
import { afterAll, expect, test } from "bun:test";
import { Cluster } from "./cluster.ts";
import { signal } from "./processes.ts";
import type { Service } from "./service.ts";
import type { Writer } from "./writer.ts";

export type Scene = {
  cluster: Cluster;
  primary: Service;
  /** The first of the others, and all of them. */
  secondary: Service;
  standbys: Service[];
  writer: Writer;
};

/** Longest time that a group may take to be whole again after what a scenario did to it. */
const SETTLE_MS = 30_000;

/**
 * @param label names the cluster's temporary directory
 * @param flags of each node's `create`
 * @returns a function like bun's `test`, whose body gets the healthy cluster
 */
export function scenariosOf(label: string, flags: readonly (readonly string[])[] = [[], []]) {
  const scenario = onShared(() => Cluster.of(label, flags), test);
  return (name: string, timeoutMs: number, body: (scene: Scene) => Promise<void>): void =>
    scenario(name, timeoutMs, (cluster) => play(cluster, body));
}

/** A body that fails prints the story of its cluster, after its name where it has one. */
export async function telling(
  cluster: Cluster,
  body: () => Promise<void>,
  name?: string,
): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (name !== undefined) console.error(name);
    console.error(await cluster.story());
    throw error;
  }
}

/** Tests that build on one another, on a cluster that stays. @returns a function like bun's `test` */
export function stepsOf(cluster: Cluster) {
  return (name: string, timeoutMs: number, body: () => Promise<void>): void =>
    test(name, () => telling(cluster, body, name), timeoutMs);
}

/**
 * Tests that share what the first of them makes, until one fails.
 *
 * @param declare bun's `test`, or what skips instead
 */
export function onShared<T extends Cluster>(make: () => Promise<T>, declare: typeof test) {
  let shared: T | undefined;
  afterAll(async () => {
    await shared?.[Symbol.asyncDispose]();
  }, 40_000);
  return (name: string, timeoutMs: number, body: (cluster: T) => Promise<void>): void => {
    declare(
      name,
      async () => {
        shared ??= await make();
        const cluster = shared;
        try {
          await telling(cluster, () => body(cluster), name);
        } catch (error) {
          shared = undefined;
          await cluster[Symbol.asyncDispose]().catch((leak) => console.error(String(leak)));
          throw error;
        }
      },
      timeoutMs,
    );
  };
}

/**
 * From here on the primary sends this standby nothing, and nobody has noticed yet.
 *
 * @returns what ends that: the process that sends goes on, or dies
 */
export async function freezeSender(
  { cluster, primary }: Scene,
  standby: Service,
): Promise<(how: "SIGCONT" | "SIGKILL") => void> {
  const state = (await cluster.states()).find(({ port }) => port === standby.port);
  const name = `pgautofailover_standby_${state?.nodeId}`;
  const text = "select pid from pg_stat_replication where application_name = $1";
  const [row] = await primary.ask(text, [name]);
  const pid = Number(row?.["pid"]);
  signal(pid, "SIGSTOP");
  return (how) => signal(pid, how);
}

async function play(cluster: Cluster, body: (scene: Scene) => Promise<void>): Promise<void> {
  const primary = await cluster.healthy(SETTLE_MS);
  const secondary = cluster.other(primary);
  await using writer = await cluster.writer();
  const standbys = cluster.nodes.filter((node) => node !== primary);
  await body({ cluster, primary, secondary, standbys, writer });
  await nothingLost(cluster, writer);
}

/** Waits for a healthy group, stops the writer, and compares both nodes with what it knows. */
export async function nothingLost(
  cluster: Cluster,
  writer: Writer,
  nodes: readonly Service[] = cluster.nodes,
): Promise<void> {
  const primary = await cluster.healthy(SETTLE_MS, nodes);
  if (!writer.stopped) await writer.waitForWrites(5, 5000);
  await writer.stop();
  const report = await writer.compareWith(primary.address);
  expect(report).toMatchObject({ lost: [], unexpected: [] });
  for (const node of nodes) {
    if (node === primary) continue;
    await cluster.waitFor(`every row on ${node.label}`, 5000, async () => {
      const { lost } = await writer.compareWith(node.address);
      return lost.length === 0;
    });
  }
}
