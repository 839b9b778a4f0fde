/** Several hosts on one machine: each service of a cluster in a network namespace of its own. */
import { test } from "bun:test";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "./cluster.ts";
import { Network } from "./network.ts";
import { giveTo, isRoot } from "./owner.ts";
import { signal } from "./processes.ts";
import { nothingLost, onShared, type Scene } from "./scenario.ts";
import type { Service } from "./service.ts";
import { waitFor } from "./wait.ts";

/** @returns why there can be no such networks here; undefined where there can */
export function findObstacle(): string | undefined {
  if (!isRoot) return "network namespaces need root";
  const missing = ["ip", "nft", "nsenter"].filter((program) => Bun.which(program) === null);
  if (missing.length > 0)
    return `${missing.join(" and ")} missing (iproute2, nftables, util-linux)`;
  try {
    using network = new Network();
    network.host("probe");
    return undefined;
  } catch (error) {
    return `no network namespaces here: ${error}`;
  }
}

/**
 * A cluster whose services have a host each.
 *
 * Nodes on other hosts log in by password: the monitor's file of it is handed out to all.
 */
export class NetnsCluster extends Cluster {
  readonly network: Network;

  protected constructor(label: string, network: Network) {
    super(label, { auth: "scram-sha-256", placeOf: (host) => network.host(host) });
    this.network = network;
  }

  /** Monitor, primary and secondaries, all running: node1, node2, … */
  static async ofHosts(
    label: string,
    count: number,
    network = new Network(),
  ): Promise<NetnsCluster> {
    const cluster = new NetnsCluster(label, network);
    await cluster.setUp(count);
    return cluster;
  }

  /** Starts monitor and nodes; where that fails, the story is told and nothing stays. */
  protected async setUp(count: number): Promise<void> {
    try {
      await this.startMonitor();
      for (let number = 1; number <= count; number += 1) await this.startNode(`node${number}`);
      await this.healthy(30_000);
    } catch (error) {
      const story = await this.story();
      await this[Symbol.asyncDispose]().catch(() => {});
      throw new Error(`setting up ${count} hosts failed\n${story}`, { cause: error });
    }
  }

  override async startMonitor(): Promise<void> {
    await super.startMonitor();
    const own = join(this.env["XDG_DATA_HOME"] ?? "", "pg_auto_failover", this.monitor.pgdata);
    const line = readFileSync(join(own, "autoctl_node.pgpass"), "utf8").trim();
    this.monitorLogin = { password: line.split(":").at(-1) ?? "" };
    writeFileSync(this.passwords, `${line}\n`);
    chmodSync(this.passwords, 0o600);
    giveTo(this.owner, this.passwords);
  }

  override async startNode(label: string, flags: readonly string[] = []): Promise<Service> {
    const node = this.addNode(label, flags);
    await node.create();
    if (this.nodes.length === 1) await this.#openDoors(node);
    node.start();
    return node;
  }

  /** Lets the test in by lines of its own, which get to the other nodes with their base backups. */
  async #openDoors(node: Service): Promise<void> {
    const file = join(node.pgdata, "pg_hba.conf");
    const end = "# pg_auto_failover: end\n";
    const { name } = this.owner;
    const ours = `local all ${name} trust\nhost all all ${this.network.testAddress}/32 trust\n`;
    writeFileSync(file, readFileSync(file, "utf8").replace(end, `${end}${ours}`));
    signal(node.requirePostmaster(), "SIGHUP");
    await waitFor("the first node to let the test in", 5000, async () => {
      await node.ask("select 1");
      return true;
    });
  }

  /** Stops all that runs on a node's host, in one go, as a pause of a virtual machine would. */
  freezeHost(node: Service): void {
    const all = this.network.processesOn(node.label);
    for (const pid of all) signal(pid, "SIGSTOP");
    const missed = this.network.processesOn(node.label).filter((pid) => !all.includes(pid));
    for (const pid of missed) signal(pid, "SIGSTOP");
  }

  thawHost(node: Service): void {
    for (const pid of this.network.processesOn(node.label)) signal(pid, "SIGCONT");
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    this.network.heal();
    try {
      await super[Symbol.asyncDispose]();
    } finally {
      this.network[Symbol.dispose]();
    }
  }
}

export type NetnsScene = Scene & { cluster: NetnsCluster; network: Network };

/**
 * Scenarios that share one cluster with a host for each service: each begins with a healthy group and
 * a writer, and ends with all links whole and a healthy group that holds every acknowledged row.
 *
 * @returns a function like bun's `test`
 */
export function netnsScenariosOf(label: string, count: number) {
  const obstacle = findObstacle();
  if (obstacle !== undefined) console.error(`${label} is skipped: ${obstacle}`);
  const declare = (obstacle === undefined ? test : test.skip) as typeof test;
  const scenario = onShared(() => NetnsCluster.ofHosts(label, count), declare);
  return (name: string, body: (scene: NetnsScene) => Promise<void>): void =>
    scenario(name, 90_000, (cluster) => play(cluster, body));
}

async function play(
  cluster: NetnsCluster,
  body: (scene: NetnsScene) => Promise<void>,
): Promise<void> {
  const primary = await cluster.healthy(30_000);
  const standbys = cluster.nodes.filter((node) => node !== primary);
  const secondary = cluster.other(primary);
  await using writer = await cluster.writer();
  const { network } = cluster;
  const scene = { cluster, network, primary, secondary, standbys, writer };
  try {
    await body(scene);
  } finally {
    network.heal();
  }
  await nothingLost(cluster, scene.writer);
}
