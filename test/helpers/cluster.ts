/**
 * A monitor and its nodes on loopback, in a temporary directory of their own.
 *
 * Disposing stops everything as an operator would, kills what is left, and throws when a process or
 * a file outlives that: a leak fails the test that made it. PGAF_TEST_KEEP=1 keeps the directory.
 */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cleanEnvironment, type Environment, runRole } from "./command.ts";
import { giveTo, type Owner, serverOwner } from "./owner.ts";
import { freePort } from "./ports.ts";
import { killUnder, processesUnder, signal } from "./processes.ts";
import { Service } from "./service.ts";
import { type Client, type Login, openClient, type Row } from "./sql.ts";
import { waitFor } from "./wait.ts";
import { Writer } from "./writer.ts";

export type NodeState = {
  nodeId: number;
  name: string;
  port: number;
  reported: string;
  goal: string;
  running: boolean;
  syncState: string;
  health: number;
};

export type Event = {
  port: number;
  reported: string;
  goal: string;
  rule: string;
  description: string;
};

export class Cluster implements AsyncDisposable {
  readonly base: string;
  readonly owner: Owner = serverOwner();
  readonly login: Login;
  readonly env: Environment;
  readonly monitor: Service;
  readonly nodes: Service[] = [];
  #client: Client | undefined;
  readonly #killOnExit = () => void killUnder(this.base);

  constructor(label: string, options: { auth?: string } = {}) {
    this.base = mkdtempSync(join(tmpdir(), `pgaf-${label}-`));
    chmodSync(this.base, 0o755);
    giveTo(this.owner, this.base);
    process.once("exit", this.#killOnExit);
    this.login = { user: this.owner.name };
    this.env = cleanEnvironment({
      XDG_DATA_HOME: this.directory("data"),
      HOME: this.directory("home"),
    });
    this.monitor = new Service({
      role: "monitor",
      label: "monitor",
      base: this.base,
      port: freePort(),
      env: this.env,
      login: this.login,
      createFlags: ["--nodename", "localhost", "--auth", options.auth ?? "trust"],
    });
  }

  /** Monitor, primary and synchronous secondary, all running. */
  static async twoNodes(label: string): Promise<Cluster> {
    const cluster = new Cluster(label);
    try {
      await cluster.startMonitor();
      await cluster.startNode("node1");
      await cluster.startNode("node2");
      await cluster.healthy(30_000);
      return cluster;
    } catch (error) {
      const story = await cluster.story();
      await cluster[Symbol.asyncDispose]().catch(() => {});
      throw new Error(`setting up two nodes failed\n${story}`, { cause: error });
    }
  }

  get monitorUri(): string {
    return `postgres://autoctl_node@localhost:${this.monitor.port}/pg_auto_failover`;
  }

  /** Makes a directory below the cluster's, for the servers' owner. */
  directory(name: string): string {
    const path = join(this.base, name);
    mkdirSync(path);
    giveTo(this.owner, path);
    return path;
  }

  /** Declares a node; nothing is made or started yet. */
  addNode(label: string, flags: readonly string[] = [], env: Environment = {}): Service {
    const node = new Service({
      role: "keeper",
      label,
      base: this.base,
      port: freePort(),
      env: { ...this.env, ...env },
      login: this.login,
      createFlags: ["--nodename", "localhost", "--monitor", this.monitorUri, ...flags],
    });
    this.nodes.push(node);
    return node;
  }

  async startMonitor(): Promise<void> {
    await this.monitor.create();
    this.monitor.start();
  }

  /** Declares, creates and runs a node. */
  async startNode(label: string, flags: readonly string[] = []): Promise<Service> {
    const node = this.addNode(label, flags);
    await node.create();
    node.start();
    return node;
  }

  // ------------------------------------------------------------ what the monitor knows

  /** A question to the monitor's database, over one connection that is opened again after errors. */
  async askMonitor(text: string, params: readonly unknown[] = []): Promise<Row[]> {
    this.#client ??= openClient(
      { host: "localhost", port: this.monitor.port },
      { user: "autoctl_node", database: "pg_auto_failover" },
    );
    try {
      return await this.#client.query(text, params);
    } catch (error) {
      await this.#client.close();
      this.#client = undefined;
      throw error;
    }
  }

  async states(): Promise<NodeState[]> {
    const rows = await this.askMonitor(
      `select nodeid, nodename, nodeport, reportedstate, goalstate, reportedpgisrunning,
              reportedrepstate, health
         from pgautofailover.node order by nodeid`,
    );
    return rows.map((row) => ({
      nodeId: Number(row["nodeid"]),
      name: String(row["nodename"]),
      port: Number(row["nodeport"]),
      reported: String(row["reportedstate"]),
      goal: String(row["goalstate"]),
      running: row["reportedpgisrunning"] === true,
      syncState: String(row["reportedrepstate"]),
      health: Number(row["health"]),
    }));
  }

  /** The monitor's events, oldest first, after the event with the given id. */
  async events(afterId = 0): Promise<Event[]> {
    const rows = await this.askMonitor(
      `select nodeport, reportedstate, goalstate, rule, description
         from pgautofailover.event where eventid > $1 order by eventid`,
      [afterId],
    );
    return rows.map((row) => ({
      port: Number(row["nodeport"]),
      reported: String(row["reportedstate"]),
      goal: String(row["goalstate"]),
      rule: String(row["rule"] ?? ""),
      description: String(row["description"]),
    }));
  }

  async lastEventId(): Promise<number> {
    const [row] = await this.askMonitor(
      "select coalesce(max(eventid), 0) as id from pgautofailover.event",
    );
    return Number(row?.["id"]);
  }

  /** Waits until each named node has reported the state and has it as its goal. */
  waitForStates(wanted: Readonly<Record<string, string>>, timeoutMs: number): Promise<true> {
    const what = Object.entries(wanted).map(([label, state]) => `${label} ${state}`);
    return this.waitFor(what.join(", "), timeoutMs, async () => {
      const states = await this.states();
      return Object.entries(wanted).every(([label, state]) => {
        const found = states.find(({ port }) => port === this.node(label).port);
        return found?.reported === state && found.goal === state;
      });
    }) as Promise<true>;
  }

  /** Waits for one primary and otherwise secondaries, each one synchronous; yields the primary. */
  healthy(timeoutMs: number): Promise<Service> {
    return this.waitFor("a primary with its synchronous secondary", timeoutMs, () =>
      this.#healthyPrimary(),
    );
  }

  async #healthyPrimary(): Promise<Service | undefined> {
    const states = await this.states();
    const settled = states.filter(({ reported, goal }) => reported === goal);
    const primaries = settled.filter(({ reported }) => reported === "primary");
    const secondaries = settled.filter(({ reported }) => reported === "secondary");
    const [first] = primaries;
    if (!first || primaries.length !== 1) return undefined;
    if (secondaries.length !== this.nodes.length - 1) return undefined;
    const primary = this.nodes.find(({ port }) => port === first.port);
    if (!primary || !(await this.#assignedSetIsInForce(first.nodeId))) return undefined;
    const standbys = await primary.ask(
      "select 1 from pg_stat_replication where state = 'streaming' and sync_state = 'sync'",
    );
    return standbys.length === secondaries.length ? primary : undefined;
  }

  /** From then on the monitor may promote a standby when this primary dies. */
  async #assignedSetIsInForce(primaryId: number): Promise<boolean> {
    const rows = await this.askMonitor(
      `select 1 from pgautofailover.node n join pgautofailover."group" g using (formationid, groupid)
        where n.nodeid = $1 and (n.syncinforce->>'version')::bigint = g.syncversion`,
      [primaryId],
    );
    return rows.length > 0;
  }

  /** The nodes that accept writes right now; more than one would be a split brain. */
  async writableNodes(): Promise<Service[]> {
    const answers = await Promise.all(
      this.nodes.map(async (node) => {
        try {
          const [row] = await node.ask(
            `select not pg_is_in_recovery()
                and current_setting('default_transaction_read_only') = 'off' as writable`,
            [],
            500,
          );
          return row?.["writable"] === true ? node : undefined;
        } catch {
          return undefined;
        }
      }),
    );
    return answers.filter((node) => node !== undefined);
  }

  node(label: string): Service {
    const found = this.nodes.find((node) => node.label === label);
    if (!found) throw new Error(`no node ${label}`);
    return found;
  }

  /** The node that isn't this one, in a group of two. */
  other(node: Service): Service {
    const found = this.nodes.find((each) => each !== node);
    if (!found) throw new Error(`${node.label} is alone`);
    return found;
  }

  /** The application's connection string, as roles/uri.ts prints it. */
  async uri(flags: readonly string[] = []): Promise<string> {
    const args = ["--monitor", this.monitorUri, ...flags];
    const outcome = await runRole("uri", args, { env: this.env });
    if (outcome.code !== 0) throw new Error(`${outcome.command}: ${outcome.stderr}`);
    return outcome.stdout.trim();
  }

  /** A writer that knows this cluster's client URI and writes already. */
  async writer(): Promise<Writer> {
    return await Writer.start(await this.uri(), this.login);
  }

  /** Like the helper of that name, with the whole story in the error's text. */
  waitFor<T>(
    what: string,
    timeoutMs: number,
    probe: () => Promise<T | undefined | false> | T | undefined | false,
  ): Promise<T> {
    return waitFor(what, timeoutMs, probe, { explain: () => this.story() });
  }

  /** States, events and the ends of all logs. */
  async story(): Promise<string> {
    const say = async (title: string, rows: () => Promise<readonly object[]>): Promise<string> => {
      try {
        return [`--- ${title}`, ...(await rows()).map((row) => JSON.stringify(row))].join("\n");
      } catch (error) {
        return `--- ${title}: ${error}`;
      }
    };
    return [
      await say("states", () => this.states()),
      await say("synchronous sets: in force by each node, and assigned", () =>
        this.askMonitor(
          `select nodeport, syncinforce::text as set from pgautofailover.node
           union all select 0, row_to_json(g)::text from pgautofailover."group" g`,
        ),
      ),
      await say("last events", async () => (await this.events()).slice(-15)),
      ...[this.monitor, ...this.nodes].map((service) => service.describe()),
    ].join("\n");
  }

  // ------------------------------------------------------------ the end

  async [Symbol.asyncDispose](): Promise<void> {
    process.removeListener("exit", this.#killOnExit);
    await this.#client?.close();
    const leaks: string[] = [];
    for (const { pid } of processesUnder(this.base)) signal(pid, "SIGCONT");
    await this.#terminate(this.nodes, leaks);
    await this.#terminate([this.monitor], leaks);
    // Servers whose role was killed on purpose, or never started, are the test's own to end.
    for (const { pid } of killUnder(this.base)) signal(pid, "SIGKILL");
    await waitFor("the last process to end", 5000, () => processesUnder(this.base).length === 0, {
      explain: () => JSON.stringify(processesUnder(this.base)),
    });
    for (const { port } of [this.monitor, ...this.nodes]) removeSockets(port);
    if (process.env["PGAF_TEST_KEEP"]) {
      console.error(`kept ${this.base}`);
    } else {
      rmSync(this.base, { recursive: true, force: true });
    }
    if (leaks.length > 0) throw new Error(`left behind: ${leaks.join("; ")}`);
  }

  /** Stops running roles, all at once; each must take its PostgreSQL with it. */
  async #terminate(services: readonly Service[], leaks: string[]): Promise<void> {
    const running = services.filter((service) => service.process?.running);
    await Promise.all(
      running.map(async (service) => {
        try {
          const code = await service.terminate(15_000);
          const server = service.postmaster();
          if (code !== 0) leaks.push(`${service.label} ended with ${code} after SIGTERM`);
          if (server !== undefined) leaks.push(`${service.label} left postmaster ${server}`);
        } catch (error) {
          leaks.push(`${service.label} didn't end: ${error}\n${service.describe()}`);
        }
      }),
    );
  }
}

/** A killed server leaves its Unix socket behind. */
function removeSockets(port: number): void {
  for (const directory of ["/tmp", "/var/run/postgresql"]) {
    for (const suffix of ["", ".lock"]) {
      const path = join(directory, `.s.PGSQL.${port}${suffix}`);
      if (existsSync(path)) rmSync(path, { force: true });
    }
  }
}
