/**
 * Servers to try the playbooks on: hosts with systemd and sshd, booted by systemd-nspawn, plugged into
 * a network of their own, without a way out of it. This machine is the controller: `ansible-playbook`
 * runs here and reaches them over SSH, with a key of the lab's own.
 *
 *   bun test/helpers/lab.ts up --name NAME [--hosts monitor1,db1,db2] [--suite bookworm|trixie]
 *   bun test/helpers/lab.ts powerCut --name NAME HOST       (or any other of ACTIONS)
 *   bun test/helpers/lab.ts down --name NAME
 *
 * Needs root on Debian, systemd-container, mmdebstrap, openssh-client, ansible, iproute2 and nftables.
 */
import {
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { cleanEnvironment, lastLines, type Outcome, REPOSITORY, runCommand } from "./command.ts";
import { Machine, removeMachines } from "./machine.ts";
import { Network, run } from "./network.ts";
import { isRoot } from "./owner.ts";
import { listProcesses, signal } from "./processes.ts";
import { waitFor } from "./wait.ts";

export type Suite = "bookworm" | "trixie";

/** Outlives the tests: root file systems, which take a minute to make, and, unless told otherwise, the labs that are up. */
const CACHE = process.env["PGAF_TEST_CACHE"] ?? "/var/cache/pg-auto-failover-test";
const LABS = process.env["PGAF_TEST_LABS"] ?? join(CACHE, "labs");

const BOOT_MS = 60_000;
const PLAY_MS = 600_000;

/** Programs by the Debian packages that bring them. */
const PROGRAMS = {
  "systemd-nspawn": "systemd-container",
  mmdebstrap: "mmdebstrap",
  ssh: "openssh-client",
  "ansible-playbook": "ansible",
  ip: "iproute2",
  nft: "nftables",
};

/** @returns why there can be no lab here; undefined where there can */
export function labObstacle(): string | undefined {
  if (!isRoot) return "booting hosts needs root";
  const sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
  if (!sources.some((file) => existsSync(file))) return "the hosts are made of Debian's packages";
  const missing = Object.entries(PROGRAMS).filter(([program]) => Bun.which(program) === null);
  if (missing.length > 0) return `missing: ${missing.map(([, debian]) => debian).join(", ")}`;
  return undefined;
}

export type LabOptions = {
  /** Those whose names begin with "monitor" are in the inventory's group of that name, others in `nodes`. */
  hosts: readonly string[];
  suite?: Suite;
  /** Variables of the inventory, for all hosts. */
  vars?: Record<string, unknown>;
};

export class Lab implements AsyncDisposable {
  readonly #network: Network;
  readonly #base: string;
  /** Removed with the lab. */
  readonly directory: string;
  readonly #machines = new Map<string, Machine>();
  /** Public keys of hosts. */
  readonly #keys = new Map<string, string>();
  readonly #controllerKey: string;
  readonly #removeOnExit = () => this.#remove();
  /** The inventory: change it as an operator would edit the file. */
  readonly groups = { monitor: [] as string[], nodes: [] as string[] };
  readonly vars: Record<string, unknown>;
  /** The clone whose playbooks run. */
  clone = REPOSITORY;

  private constructor(base: string, options: LabOptions) {
    removeLeftovers();
    this.#base = base;
    this.vars = options.vars ?? {};
    this.#network = new Network();
    this.directory = join(LABS, this.#network.name);
    mkdirSync(this.directory, { recursive: true, mode: 0o700 });
    process.prependOnceListener("exit", this.#removeOnExit);
    this.#controllerKey = this.#makeKey("controller").public;
    this.#makePrefix();
  }

  static async open(options: LabOptions): Promise<Lab> {
    const lab = new Lab(await rootFileSystem(options.suite ?? "bookworm"), options);
    try {
      for (const host of options.hosts) lab.#make(host);
      await Promise.all(options.hosts.map((host) => lab.#booted(host)));
      return lab;
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
  }

  get hosts(): string[] {
    return [...this.#machines.keys()];
  }

  /** Where connections from the controller come from. */
  get controllerAddress(): string {
    return this.#network.testAddress;
  }

  addressOf(host: string): string {
    return this.#network.host(host).host;
  }

  /** The inventory's file, as the groups and variables are now. */
  get inventory(): string {
    const file = this.#file("inventory.yml");
    const group = (names: readonly string[]) => ({
      hosts: Object.fromEntries(
        names.map((name) => [name, { ansible_host: this.addressOf(name) }]),
      ),
    });
    const { monitor, nodes } = this.groups;
    const vars = {
      ansible_user: "root",
      ansible_ssh_common_args: `-F ${this.sshConfig}`,
      ...this.vars,
    };
    const inventory = { all: { children: { monitor: group(monitor), nodes: group(nodes) }, vars } };
    writeFileSync(file, `${JSON.stringify(inventory, undefined, 2)}\n`); // JSON is YAML, too.
    return file;
  }

  /**
   * Begins a command on the controller: hosts are known by their names, and Ansible keeps its files in
   * the lab.
   */
  get prefix(): string {
    return this.#file("run");
  }

  /** Runs a playbook of the repository to its end, whatever that is. */
  playbook(name: string, args: readonly string[] = [], timeoutMs = PLAY_MS): Promise<Outcome> {
    const file = join(this.clone, "ansible", name);
    return this.run(["ansible-playbook", "-i", this.inventory, file, ...args], timeoutMs);
  }

  /** Runs a command on the controller. */
  run(command: readonly string[], timeoutMs = 30_000): Promise<Outcome> {
    const prefix = [this.prefix];
    return runCommand([...command], { env: cleanEnvironment({}), timeoutMs, prefix });
  }

  /** For `ssh -F`: knows the hosts, their keys and ours. */
  get sshConfig(): string {
    return this.#file("ssh_config");
  }

  /** Runs a shell's command line on a host, as root. */
  ssh(host: string, command: string, timeoutMs = 30_000): Promise<Outcome> {
    return this.run(["ssh", "-F", this.sshConfig, host, command], timeoutMs);
  }

  /** The host loses its network and then its power; nobody gets a last word from it. */
  async powerCut(host: string): Promise<void> {
    this.portDown(host);
    await this.#machine(host).kill();
  }

  /** Power comes back. */
  async boot(host: string): Promise<void> {
    this.portUp(host);
    this.#machine(host).boot();
    await this.#reachable(host);
  }

  /** An orderly reboot, until the host can be reached again. */
  async reboot(host: string): Promise<void> {
    const before = await this.#bootId(host);
    await this.ssh(host, "systemctl reboot");
    await waitFor(`${host} to boot again`, BOOT_MS, async () => {
      return (await this.#bootId(host)) !== before;
    });
  }

  portDown(host: string): void {
    this.#network.setPort(host, "down");
  }

  portUp(host: string): void {
    this.#network.setPort(host, "up");
  }

  /** A bare host; one that had this name before had this address, too. */
  async addHost(host: string): Promise<void> {
    this.#make(host);
    await this.#booted(host);
  }

  /** The host is gone with all that it held; the inventory still names it. */
  async destroyHost(host: string): Promise<void> {
    await this.#machine(host).remove();
    this.#machines.delete(host);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#remove();
  }

  #remove(): void {
    process.removeListener("exit", this.#removeOnExit);
    removeMachines(this.directory, (group) => group.startsWith(`${this.#network.name}-`));
    this.#network[Symbol.dispose]();
  }

  #machine(host: string): Machine {
    const machine = this.#machines.get(host);
    if (machine === undefined) throw new Error(`no host ${host} in this lab`);
    return machine;
  }

  /** Makes a host and lets it boot. */
  #make(host: string): void {
    if (this.#machines.has(host)) throw new Error(`this lab has a host ${host} already`);
    this.#network.host(host);
    this.portUp(host);
    const key = this.#makeKey(host);
    this.#keys.set(host, key.public);
    const machine = new Machine({
      name: `${this.#network.name}-${host}`,
      hostname: host,
      directory: this.#file(host),
      base: this.#base,
      namespace: this.#network.namespace(host),
    });
    machine.write("etc/hostname", `${host}\n`);
    machine.write("etc/machine-id", `${crypto.randomUUID().replaceAll("-", "")}\n`);
    machine.write("etc/ssh/ssh_host_ed25519_key", key.secret, 0o600);
    machine.write("root/.ssh/authorized_keys", `${this.#controllerKey}\n`, 0o600);
    this.#machines.set(host, machine);
    const group = host.startsWith("monitor") ? this.groups.monitor : this.groups.nodes;
    if (!group.includes(host)) group.push(host);
    this.#spreadNames();
    machine.boot();
  }

  /** Everybody knows everybody's name, as by a name server; the controller the keys, too. */
  #spreadNames(): void {
    const addresses = this.hosts.map((host) => `${this.addressOf(host)} ${host}\n`);
    const text = `127.0.0.1 localhost\n${addresses.join("")}`;
    writeFileSync(this.#file("hosts"), text);
    for (const machine of this.#machines.values()) machine.write("etc/hosts", text);
    const keys = this.hosts.map((host) => `${this.addressOf(host)} ${this.#keys.get(host)}\n`);
    writeFileSync(this.#file("known_hosts"), keys.join(""));
    const names = this.hosts.map((host) => `Host ${host}\n  HostName ${this.addressOf(host)}\n`);
    const everywhere = [
      "Host *",
      "  User root",
      "  BatchMode yes",
      `  IdentityFile ${this.#file("key-controller")}`,
      "  IdentitiesOnly yes",
      `  UserKnownHostsFile ${this.#file("known_hosts")}`,
      "  GlobalKnownHostsFile none",
      "  StrictHostKeyChecking yes",
      // A host without power doesn't say goodbye.
      "  ConnectTimeout 5",
      "  ServerAliveInterval 2",
      "  ServerAliveCountMax 3",
    ];
    writeFileSync(this.sshConfig, `${names.join("")}${everywhere.join("\n")}\n`);
  }

  #file(name: string): string {
    return join(this.directory, name);
  }

  #makePrefix(): void {
    const script = [
      "#!/bin/sh",
      "export LC_ALL=C.UTF-8 ANSIBLE_NOCOLOR=1", // Ansible demands UTF-8.
      `export ANSIBLE_CONFIG='${REPOSITORY}/ansible/ansible.cfg' ANSIBLE_HOME='${this.#file("ansible")}'`,
      `export ANSIBLE_SSH_CONTROL_PATH_DIR='${this.#file("cp")}'`, // Connections end with the lab.
      `exec unshare --mount --propagation private sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' \\`,
      `  '${this.#file("hosts")}' "$@"`,
    ];
    writeFileSync(this.prefix, `${script.join("\n")}\n`, { mode: 0o700 });
  }

  #makeKey(name: string): { secret: string; public: string } {
    const file = this.#file(`key-${name}`);
    for (const each of [file, `${file}.pub`]) rmSync(each, { force: true });
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file]);
    return {
      secret: readFileSync(file, "utf8"),
      public: readFileSync(`${file}.pub`, "utf8").trim(),
    };
  }

  async #reachable(host: string): Promise<void> {
    await waitFor(`${host} to boot`, BOOT_MS, () => this.#bootId(host), {
      explain: () => lastLines(this.#machine(host).console(), 20),
    });
  }

  /** The host is reachable, and every unit of it has started. */
  async #booted(host: string): Promise<void> {
    await this.#reachable(host);
    const { stdout } = await this.ssh(host, "systemctl is-system-running --wait", BOOT_MS);
    if (stdout.trim() === "running") return;
    const failed = await this.ssh(host, "systemctl --failed --no-legend");
    throw new Error(`${host} is ${stdout.trim()}: ${failed.stdout}`);
  }

  async #bootId(host: string): Promise<string> {
    const { code, stdout, stderr } = await this.ssh(host, "cat /proc/sys/kernel/random/boot_id");
    if (code !== 0) throw new Error(stderr.trim());
    return stdout;
  }
}

/** Makes what all hosts of a suite share, unless it has been made. */
async function rootFileSystem(suite: Suite): Promise<string> {
  const script = join(import.meta.dir, "lab_root.sh");
  const made = await runCommand(["sh", script, suite, CACHE], {
    env: cleanEnvironment({}),
    timeoutMs: 900_000,
  });
  if (made.code !== 0) throw new Error(`${script} ended with ${made.code}\n${made.stderr}`);
  return made.stdout.trim();
}

/** What a process left that was killed. */
function removeLeftovers(): void {
  if (!existsSync(LABS)) return;
  for (const name of readdirSync(LABS)) {
    const [, pid] = /^pgaf(\d+)n\d+$/.exec(name) ?? [];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) {
      removeMachines(join(LABS, name), (group) => group.startsWith(`${name}-`));
    }
  }
}

/** What can be done to a lab that is up, besides `down`. */
const ACTIONS = [
  "powerCut",
  "boot",
  "reboot",
  "portDown",
  "portUp",
  "addHost",
  "destroyHost",
] as const;

const describe = (lab: Lab): string =>
  `inventory: ${lab.inventory}
playbook:  ${lab.prefix} ansible-playbook -i ${lab.inventory} ansible/site.yml
shell:     ${lab.prefix} ssh -F ${lab.sshConfig} HOST
`;

/** Keeps a lab up and does to it what is asked for at its socket, until `down`. */
async function hold(socket: string, options: LabOptions): Promise<void> {
  await using lab = await Lab.open(options);
  const down = Promise.withResolvers<void>();
  process.once("SIGTERM", down.resolve);
  await using _server = Bun.serve({
    unix: socket,
    async fetch(request, server) {
      server.timeout(request, 0); // A boot takes longer than answers may by default.
      const [, asked = "", host = ""] = new URL(request.url).pathname.split("/");
      try {
        const action = ACTIONS.find((each) => each === asked);
        if (action) await lab[action](host);
        else if (asked !== "") throw new Error(`unknown action ${asked}`);
        return new Response(describe(lab));
      } catch (error) {
        return new Response(`${error}\n`, { status: 500 });
      }
    },
  });
  await down.promise;
}

async function tell(socket: string, path: string): Promise<string> {
  const answer = await fetch(`http://lab/${path}`, { unix: socket });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.text();
}

const logOf = (name: string): string => join(LABS, `${name}.log`);

/** The process that holds the lab of this name; undefined when there is none. */
function holderOf(name: string): number | undefined {
  const command = ` hold --name ${name} `;
  return listProcesses().find((each) => each.command.includes(`lab.ts${command}`))?.pid;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      name: { type: "string" },
      hosts: { type: "string", default: "monitor1,db1,db2,db3" },
      suite: { type: "string", default: "bookworm" },
    },
  });
  const [action = "", host = ""] = positionals;
  const { name = "", hosts, suite } = values;
  if (!/^[a-z0-9-]+$/.test(name)) throw new Error("--name NAME is missing");
  const obstacle = labObstacle();
  if (obstacle !== undefined) throw new Error(obstacle);
  const socket = join(LABS, `${name}.sock`);
  if (action === "hold") {
    await hold(socket, { hosts: hosts.split(","), suite: suite as Suite });
    return;
  }
  const holder = holderOf(name);
  if (action === "down") {
    if (holder !== undefined) signal(holder, "SIGTERM");
    await waitFor(`the end of lab ${name}`, 60_000, () => holderOf(name) === undefined);
    for (const file of [socket, logOf(name)]) rmSync(file, { force: true });
    return;
  }
  if (action === "up" && holder === undefined) await start(name, socket, hosts, suite);
  process.stdout.write(await tell(socket, action === "up" ? "" : `${action}/${host}`));
}

/** Leaves a process behind that holds the lab. */
async function start(name: string, socket: string, hosts: string, suite: string): Promise<void> {
  mkdirSync(LABS, { recursive: true });
  rmSync(socket, { force: true });
  const log = openSync(logOf(name), "w");
  const args = ["hold", "--name", name, "--hosts", hosts, "--suite", suite];
  const holder = Bun.spawn([process.execPath, import.meta.path, ...args], {
    cwd: "/",
    stdin: "ignore",
    stdout: log,
    stderr: log,
    detached: true,
  });
  await waitFor(`lab ${name}`, 900_000, () => existsSync(socket) || holder.exitCode !== null);
  if (holder.exitCode !== null) throw new Error(readFileSync(logOf(name), "utf8"));
  holder.unref();
}

if (import.meta.main) await main();
