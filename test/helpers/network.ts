/**
 * Hosts on one machine: a network namespace each, all plugged into a bridge in one more namespace (the
 * switch), where links are cut. The test's own process is plugged in as well and reaches everybody all
 * the time, as an application would.
 *
 * Needs root, `ip` (Debian: iproute2) and `nft` (nftables).
 */
import { existsSync } from "node:fs";
import { signal } from "./processes.ts";
import type { Place } from "./service.ts";

/** @throws {Error} it ended with another code than 0 */
export function run(command: readonly string[], input = ""): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { stdin: Buffer.from(input) });
  if (exitCode === 0) return stdout.toString();
  throw new Error(`${command.join(" ")} ended with ${exitCode}: ${stderr.toString().trim()}`);
}

const ip = (...args: string[]): string => run(["ip", ...args]);

/** The whole rule of the switch: what goes from the one port to the other is lost. ARP isn't, or one way would be both. */
const SWITCH_RULES = `table bridge pgaf {
  set cut { type ifname . ifname; }
  map lossy { type ifname : verdict; }
${[1, 5, 20, 50].map((percent) => `  chain lose${percent} { numgen random mod 100 < ${percent} drop\n  }\n`).join("")}
  chain forward { type filter hook forward priority 0; policy accept;
    ether type ip iifname . oifname @cut drop
    ether type ip iifname vmap @lossy
  }
}
`;

let networks = 0;

/** A switch and the hosts that are plugged into it, by their labels. */
export class Network implements Disposable {
  /** Begins the names of all that it makes; the pid tells whose they are. */
  readonly name: string;
  /** The first three numbers of every address. */
  readonly #subnet: string;
  readonly #places = new Map<string, Place>();
  readonly #cuts = new Set<string>();
  readonly #lossy = new Map<string, number>();
  /** Who runs on its hosts ends with the test's process. */
  readonly #removeOnExit = () => {
    for (const label of this.labels)
      for (const pid of this.processesOn(label)) signal(pid, "SIGKILL");
    remove(this.name);
  };

  constructor() {
    removeLeftovers();
    networks += 1;
    this.name = `pgaf${process.pid}n${networks}`;
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
    const sw = this.namespace("switch");
    ip("netns", "add", sw);
    ip("-n", sw, "link", "add", "bridge", "type", "bridge");
    ip("-n", sw, "link", "set", "bridge", "up");
    this.#nft(SWITCH_RULES);
    ip("link", "add", this.name, "type", "veth", "peer", "name", "test", "netns", sw);
    this.#plugIn("test");
    ip("addr", "add", `${this.testAddress}/24`, "dev", this.name);
    ip("link", "set", this.name, "up");
  }

  /** Where the test's own connections come from. */
  get testAddress(): string {
    return `${this.#subnet}.254`;
  }

  /** Of all hosts made so far. */
  get labels(): string[] {
    return [...this.#places.keys()];
  }

  /** The host with this label, made when it is asked for first. */
  host(label: string): Place {
    const known = this.#places.get(label);
    if (known) return known;
    const namespace = this.namespace(label);
    const address = `${this.#subnet}.${this.#places.size + 1}`;
    const place = { host: address, prefix: ["nsenter", `--net=/run/netns/${namespace}`] };
    this.#places.set(label, place);
    ip("netns", "add", namespace);
    const end = ["peer", "name", "eth0", "netns", namespace];
    ip("link", "add", label, "netns", this.namespace("switch"), "type", "veth", ...end);
    this.#plugIn(label);
    ip("-n", namespace, "link", "set", "lo", "up");
    ip("-n", namespace, "addr", "add", `${address}/24`, "dev", "eth0");
    ip("-n", namespace, "link", "set", "eth0", "up");
    return place;
  }

  /** The processes that run on a host. */
  processesOn(label: string): number[] {
    return processesIn(this.namespace(label));
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

  /** Loses one in so many packets that a host sends; 0: none. */
  lose(label: string, percent: 0 | 1 | 5 | 20 | 50): void {
    if (percent === 0) this.#lossy.delete(label);
    else this.#lossy.set(label, percent);
    const all = [...this.#lossy].map(([port, loss]) => `"${port}" : jump lose${loss}`).join(", ");
    const add = all && `add element bridge pgaf lossy { ${all} }\n`;
    this.#nft(`flush map bridge pgaf lossy\n${add}`);
  }

  /** What is sent to a host queues up to `latencyMs` behind a narrow line; 0: the line is wide again. */
  delay(label: string, latencyMs: number): void {
    const device = ["dev", label, "root"];
    const tc = ["tc", "-n", this.namespace("switch"), "qdisc"];
    if (latencyMs === 0) Bun.spawnSync([...tc, "del", ...device]);
    else
      run([
        ...[...tc, "replace", ...device, "tbf", "rate", "1mbit", "burst", "2kb"],
        ...["latency", `${latencyMs}ms`],
      ]);
  }

  /** No more cuts, losses and delays. */
  quiet(): void {
    this.heal();
    for (const label of this.#lossy.keys()) this.lose(label, 0);
    for (const label of this.#places.keys()) this.delay(label, 0);
  }

  /**
   * Removes all that it has made. Also when the test's process ends before its time.
   *
   * @throws {Error} a process still ran on one of the hosts
   */
  [Symbol.dispose](): void {
    process.removeListener("exit", this.#removeOnExit);
    const alive = [...this.#places.keys()].filter((label) => this.processesOn(label).length > 0);
    remove(this.name);
    if (alive.length > 0) throw new Error(`processes left on ${alive.join(", ")}`);
  }

  /** The network namespace of the host with this label. */
  namespace(label: string): string {
    return `${this.name}-${label}`;
  }

  /** A port of the switch without power: its host reaches nobody any more, nor anybody it. */
  setPort(label: string, state: "up" | "down"): void {
    ip("-n", this.namespace("switch"), "link", "set", label, state);
  }

  /** As of a host that boots: its kernel has not asked for anybody's hardware address yet. */
  forgetNeighbours(label: string): void {
    ip("-n", this.namespace(label), "neigh", "flush", "all");
  }

  #plugIn(port: string): void {
    ip("-n", this.namespace("switch"), "link", "set", port, "master", "bridge", "up");
  }

  #applyCuts(): void {
    const add = `add element bridge pgaf cut { ${[...this.#cuts].join(", ")} }\n`;
    this.#nft(`flush set bridge pgaf cut\n${this.#cuts.size > 0 ? add : ""}`);
  }

  #nft(script: string): void {
    run(["ip", "netns", "exec", this.namespace("switch"), "nft", "-f", "-"], script);
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
    if (namespace.startsWith(`${name}-`)) removeNamespace(namespace);
  }
}

/** Another test's process may remove the same leftover at the same moment. */
function removeNamespace(namespace: string): void {
  try {
    ip("netns", "del", namespace);
  } catch (error) {
    if (namespaces().includes(namespace)) throw error;
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
