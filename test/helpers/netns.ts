/**
 * Several hosts on one machine: each service of a cluster in a network namespace of its own, all
 * plugged into a bridge in one more namespace (the switch), where links are cut. The test's own
 * process is plugged in as well and reaches everybody all the time, as an application would.
 *
 * Needs root, `ip` (Debian: iproute2) and `nft` (nftables).
 */
import { test } from "bun:test";
import { chmodSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Cluster } from "./cluster.ts";
import { giveTo, isRoot } from "./owner.ts";
import { signal } from "./processes.ts";
import { nothingLost, onShared, type Scene } from "./scenario.ts";
import type { Place, Service } from "./service.ts";
import { waitFor } from "./wait.ts";

/** @throws {Error} it ended with another code than 0 */
function run(command: readonly string[], input = ""): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { stdin: Buffer.from(input) });
  if (exitCode === 0) return stdout.toString();
  throw new Error(`${command.join(" ")} ended with ${exitCode}: ${stderr.toString().trim()}`);
}

const ip = (...args: string[]): string => run(["ip", ...args]);

/** The whole rule of the switch: what goes from the one port to the other is lost. ARP isn't, or one way would be both. */
const SWITCH_RULES = `table bridge pgaf {
  set cut { type ifname . ifname; }
  chain forward { type filter hook forward priority 0; policy accept;
    ether type ip iifname . oifname @cut drop
  }
}
`;

let networks = 0;

/** A switch and the hosts that are plugged into it, by their labels. */
export class Network implements Disposable {
  /** Begins the names of all that it makes; the pid tells whose they are. */
  readonly #name: string;
  /** The first three numbers of every address. */
  readonly #subnet: string;
  readonly #places = new Map<string, Place>();
  readonly #cuts = new Set<string>();
  readonly #removeOnExit = () => this[Symbol.dispose]();

  constructor() {
    removeLeftovers();
    networks += 1;
    this.#name = `pgaf${process.pid}n${networks}`;
    this.#subnet = freeSubnet();
    process.once("exit", this.#removeOnExit);
    try {
      this.#makeSwitch();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  #makeSwitch(): void {
    const sw = this.#namespace("switch");
    ip("netns", "add", sw);
    ip("-n", sw, "link", "add", "bridge", "type", "bridge");
    ip("-n", sw, "link", "set", "bridge", "up");
    run(["ip", "netns", "exec", sw, "nft", "-f", "-"], SWITCH_RULES);
    ip("link", "add", this.#name, "type", "veth", "peer", "name", "test", "netns", sw);
    this.#plugIn("test");
    ip("addr", "add", `${this.testAddress}/24`, "dev", this.#name);
    ip("link", "set", this.#name, "up");
  }

  /** Where the test's own connections come from. */
  get testAddress(): string {
    return `${this.#subnet}.254`;
  }

  /** The host with this label, made when it is asked for first. */
  host(label: string): Place {
    const known = this.#places.get(label);
    if (known) return known;
    const namespace = this.#namespace(label);
    const address = `${this.#subnet}.${this.#places.size + 1}`;
    const place = { host: address, prefix: ["nsenter", `--net=/run/netns/${namespace}`] };
    this.#places.set(label, place);
    ip("netns", "add", namespace);
    const end = ["peer", "name", "eth0", "netns", namespace];
    ip("link", "add", label, "netns", this.#namespace("switch"), "type", "veth", ...end);
    this.#plugIn(label);
    ip("-n", namespace, "link", "set", "lo", "up");
    ip("-n", namespace, "addr", "add", `${address}/24`, "dev", "eth0");
    ip("-n", namespace, "link", "set", "eth0", "up");
    return place;
  }

  /** The processes that run on a host. */
  processesOn(label: string): number[] {
    return processesIn(this.#namespace(label));
  }

  /** Nothing gets from these hosts to those any more; what those send still arrives. */
  cutOneWay(from: readonly string[], to: readonly string[]): void {
    for (const pair of pairs(from, to)) this.#cuts.add(pair);
    this.#applyCuts();
  }

  /** Nothing gets from either side to the other any more. */
  cut(left: readonly string[], right: readonly string[]): void {
    this.cutOneWay(left, right);
    this.cutOneWay(right, left);
  }

  /** Nobody but the test reaches this host any more, nor it anybody. */
  isolate(label: string): void {
    const others = [...this.#places.keys()].filter((other) => other !== label);
    this.cut([label], others);
  }

  /** These hosts and those reach each other again; without names, everybody everybody. */
  heal(left?: readonly string[], right: readonly string[] = []): void {
    if (left === undefined) this.#cuts.clear();
    else for (const pair of [...pairs(left, right), ...pairs(right, left)]) this.#cuts.delete(pair);
    this.#applyCuts();
  }

  /**
   * Removes all that it has made. Also when the test's process ends before its time.
   *
   * @throws {Error} a process still ran on one of the hosts
   */
  [Symbol.dispose](): void {
    process.removeListener("exit", this.#removeOnExit);
    const alive = [...this.#places.keys()].filter((label) => this.processesOn(label).length > 0);
    remove(this.#name);
    if (alive.length > 0) throw new Error(`processes left on ${alive.join(", ")}`);
  }

  #namespace(label: string): string {
    return `${this.#name}-${label}`;
  }

  #plugIn(port: string): void {
    ip("-n", this.#namespace("switch"), "link", "set", port, "master", "bridge", "up");
  }

  #applyCuts(): void {
    const add = `add element bridge pgaf cut { ${[...this.#cuts].join(", ")} }\n`;
    const script = `flush set bridge pgaf cut\n${this.#cuts.size > 0 ? add : ""}`;
    run(["ip", "netns", "exec", this.#namespace("switch"), "nft", "-f", "-"], script);
  }
}

const pairs = (from: readonly string[], to: readonly string[]): string[] =>
  from.flatMap((one) => to.map((other) => `"${one}" . "${other}"`));

const namespaces = (): string[] =>
  ip("netns", "list")
    .split("\n")
    .map((line) => line.split(" ")[0] ?? "");

const processesIn = (namespace: string): number[] =>
  ip("netns", "pids", namespace).split("\n").filter(Boolean).map(Number);

function remove(name: string): void {
  if (existsSync(`/sys/class/net/${name}`)) ip("link", "del", name);
  for (const namespace of namespaces()) {
    if (namespace.startsWith(`${name}-`)) ip("netns", "del", namespace);
  }
}

/** What a test left whose process was killed: its servers, and then its hosts. */
function removeLeftovers(): void {
  const left = namespaces().flatMap((namespace) => {
    const [, name = "", pid] = /^(pgaf(\d+)n\d+)-/.exec(namespace) ?? [];
    return name === "" || existsSync(`/proc/${pid}`) ? [] : [{ namespace, name }];
  });
  for (const { namespace } of left) {
    for (const pid of processesIn(namespace)) signal(pid, "SIGKILL");
  }
  for (const name of new Set(left.map((each) => each.name))) remove(name);
}

/** A network of 254 addresses that nothing here uses; each process begins elsewhere. */
function freeSubnet(): string {
  const used = ip("-o", "-4", "addr");
  for (let tries = 0; tries < 100; tries += 1) {
    const number = (process.pid * 7 + networks + tries) % (64 * 256);
    const subnet = `10.${192 + Math.floor(number / 256)}.${number % 256}`;
    if (!used.includes(` ${subnet}.`) && ip("route", "show", "root", `${subnet}.0/24`) === "") {
      return subnet;
    }
  }
  throw new Error("no free network of 254 addresses");
}

/** @returns why there can be no such networks here; undefined where there can */
function findObstacle(): string | undefined {
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

  private constructor(label: string, network: Network) {
    super(label, { auth: "scram-sha-256", placeOf: (host) => network.host(host) });
    this.network = network;
  }

  /** Monitor, primary and secondaries, all running: node1, node2, … */
  static async ofHosts(label: string, count: number): Promise<NetnsCluster> {
    const cluster = new NetnsCluster(label, new Network());
    try {
      await cluster.startMonitor();
      for (let number = 1; number <= count; number += 1) await cluster.startNode(`node${number}`);
      await cluster.healthy(30_000);
      return cluster;
    } catch (error) {
      const story = await cluster.story();
      await cluster[Symbol.asyncDispose]().catch(() => {});
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
