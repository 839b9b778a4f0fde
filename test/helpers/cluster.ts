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
import { HERE, type Place, Service } from "./service.ts";
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

/** Where TLS is not what a test is about. */
const plainOver = (place: Place): string[] => (place === HERE ? [] : ["--no-ssl"]);

export class Cluster implements AsyncDisposable {
  readonly base: string;
  readonly owner: Owner = serverOwner();
  readonly login: Login;
  readonly env: Environment;
  monitor: Service;
  readonly nodes: Service[] = [];
  /** The password of the monitor's database, where it wants one. */
  protected monitorLogin: { password?: string; ssl?: Record<string, unknown> } = {};
  readonly #placeOf: (label: string) => Place;
  #client: Client | undefined;
  readonly #killOnExit = () => void killUnder(this.base);

  /** @param options placeOf: the host of each service, by its label; flags: of the monitor's `create` */
  constructor(
    label: string,
    options: {
      auth?: string;
      placeOf?: (label: string) => Place;
      flags?: (base: string) => readonly string[];
    } = {},
  ) {
    this.base = mkdtempSync(join(tmpdir(), `pgaf-${label}-`));
    chmodSync(this.base, 0o755);
    giveTo(this.owner, this.base);
    process.once("exit", this.#killOnExit);
    this.login = { user: this.owner.name };
    this.#placeOf = options.placeOf ?? (() => HERE);
    const place = this.#placeOf("monitor");
    this.env = cleanEnvironment({
      XDG_DATA_HOME: this.directory("data"),
      HOME: this.directory("home"),
      PGPASSFILE: this.passwords,
    });
    this.monitor = new Service({
      role: "monitor",
      label: "monitor",
      base: this.base,
      port: freePort(),
      env: this.env,
      login: this.login,
      createFlags: [
        ...["--nodename", place.host, ...plainOver(place), "--auth", options.auth ?? "trust"],
        ...(options.flags?.(this.base) ?? []),
      ],
      place,
    });
  }

  /** Monitor, primary and synchronous secondary, all running. */
  static twoNodes(label: string): Promise<Cluster> {
    return Cluster.of(label, [[], []]);
  }

  /**
   * Monitor, primary and secondaries, all running: node1, node2, …
   *
   * @param flags of each node's `create`
   */
  static async of(label: string, flags: readonly (readonly string[])[]): Promise<Cluster> {
    const cluster = new Cluster(label);
    try {
      await cluster.startMonitor();
      for (const [index, each] of flags.entries()) {
        await cluster.startNode(`node${index + 1}`, each);
      }
      await cluster.healthy(30_000);
      return cluster;
    } catch (error) {
      const story = await cluster.story();
      await cluster[Symbol.asyncDispose]().catch(() => {});
      throw new Error(`setting up ${flags.length} nodes failed\n${story}`, { cause: error });
    }
  }

  /** The password file of all services; it isn't there where every login is trusted. */
  get passwords(): string {
    return join(this.base, "pgpass");
  }

  get monitorUri(): string {
    return `postgres://autoctl_node@${this.monitor.place.host}:${this.monitor.port}/pg_auto_failover`;
  }

  /** Declares a second monitor; `turnTo` makes it the cluster's. */
  anotherMonitor(label: string): Service {
    const { base, env, login, monitor } = this;
    const { createFlags, place } = monitor;
    const port = freePort();
    return new Service({ role: "monitor", label, base, port, env, login, createFlags, place });
  }

  /** From here on this monitor is asked; the one before is stopped. */
  async turnTo(monitor: Service): Promise<void> {
    await this.#client?.close();
    this.#client = undefined;
    await this.monitor.terminate(20_000);
    this.monitor = monitor;
  }

  /** Makes a directory below the cluster's, for the servers' owner. */
  directory(name: string): string {
    const path = join(this.base, name);
    mkdirSync(path);
    giveTo(this.owner, path);
    return path;
  }

  /**
   * Declares a node; nothing is made or started yet.
   *
   * @param options env: on top of the cluster's; data: where PGDATA is made, instead of the cluster's directory
   */
  addNode(
    label: string,
    flags: readonly string[] = [],
    options: { env?: Environment; data?: string } = {},
  ): Service {
    const place = this.#placeOf(label);
    const { env = {}, data = this.base } = options;
    const node = new Service({
      role: "keeper",
      label,
      base: this.base,
      data,
      port: freePort(),
      env: { ...this.env, ...env },
      login: this.login,
      createFlags: [
        "--nodename",
        place.host,
        ...plainOver(place),
        "--monitor",
        this.monitorUri,
        ...flags,
      ],
      place,
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
    this.#client ??= openClient(this.monitor.address, {
      user: "autoctl_node",
      database: "pg_auto_failover",
      ...this.monitorLogin,
    });
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

  /** What the group has said since about a failover that it may not carry out. */
  async blocked(afterId: number): Promise<string[]> {
    const said = (await this.events(afterId)).map(({ description }) => description);
    return said.filter((text) => text.startsWith("Blocked"));
  }

  /** The name that the monitor has given a node. */
  async nameOf(node: Service): Promise<string> {
    const found = (await this.states()).find(({ port }) => port === node.port);
    if (!found) throw new Error(`the monitor does not know ${node.label}`);
    return found.name;
  }

  async setPriority(node: Service, priority: number): Promise<void> {
    await this.askMonitor(
      "select pgautofailover.set_node_candidate_priority('default', $1, $2::text::int)",
      [await this.nameOf(node), String(priority)],
    );
  }

  async setQuorum(node: Service, quorum: boolean): Promise<void> {
    await this.askMonitor(
      "select pgautofailover.set_node_replication_quorum('default', $1, $2::text::boolean)",
      [await this.nameOf(node), String(quorum)],
    );
  }

  async setFormation(setting: string, value: string): Promise<void> {
    await this.askMonitor("select pgautofailover.set_formation('default', $1, $2)", [
      setting,
      value,
    ]);
  }

  async lastEventId(): Promise<number> {
    const [row] = await this.askMonitor(
      "select coalesce(max(eventid), 0) as id from pgautofailover.event",
    );
    return Number(row?.["id"]);
  }

  /**
   * Waits until a monitor that has just started has heard of each node, and has seen its server answer: who dies before
   * that is started in place, since nobody is known to be there who could take over.
   */
  async judges(timeoutMs: number): Promise<void> {
    const [now] = await this.askMonitor("select clock_timestamp()::text as at");
    await this.waitFor("the monitor to have heard of each node", timeoutMs, async () => {
      const rows = await this.askMonitor(
        `select from pgautofailover.node
         where reporttime < $1::text::timestamptz or health < 1 or healthchecktime < pg_postmaster_start_time()`,
        [now?.["at"]],
      );
      return rows.length === 0;
    });
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

  /**
   * Waits for one primary and otherwise secondaries that stream, with the assigned set in force.
   *
   * @returns the primary
   */
  healthy(timeoutMs: number, nodes: readonly Service[] = this.nodes): Promise<Service> {
    return this.waitFor("a primary with its synchronous secondaries", timeoutMs, () =>
      this.healthyPrimary(nodes),
    );
  }

  /** @returns the primary; undefined while the group isn't healthy */
  async healthyPrimary(nodes: readonly Service[] = this.nodes): Promise<Service | undefined> {
    const ports = nodes.map(({ port }) => port);
    const states = (await this.states()).filter(({ port }) => ports.includes(port));
    const settled = states.filter(({ reported, goal }) => reported === goal);
    const primaries = settled.filter(({ reported }) => reported === "primary");
    const secondaries = settled.filter(({ reported }) => reported === "secondary");
    const [first] = primaries;
    if (!first || primaries.length !== 1) return undefined;
    if (secondaries.length !== nodes.length - 1) return undefined;
    const primary = this.nodes.find(({ port }) => port === first.port);
    const members = await this.#membersInForce(first.nodeId);
    if (!primary || members === undefined) return undefined;
    const standbys = await primary.ask(
      `select sync_state in ('sync', 'quorum') as counts from pg_stat_replication
        where state = 'streaming' and application_name like 'pgautofailover\\_standby\\_%'`,
    );
    if (standbys.length !== secondaries.length) return undefined;
    return standbys.filter(({ counts }) => counts).length === members ? primary : undefined;
  }

  /** From then on the monitor may promote a standby when this primary dies. @returns how many commits wait for */
  async #membersInForce(primaryId: number): Promise<number | undefined> {
    const [row] = await this.askMonitor(
      `select case when syncnumber = 0 then 0 else cardinality(syncmembers) end as members
         from pgautofailover."group"
        where syncprimary = $1 and (syncinforce->>'version')::bigint = syncversion
          and (syncinforce->>'primaryId')::bigint = syncprimary`,
      [primaryId],
    );
    return row && Number(row["members"]);
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
      await say("groups", () =>
        this.askMonitor(`select row_to_json(g)::text as row from pgautofailover."group" g`),
      ),
      await say("last events", async () => (await this.events()).slice(-25)),
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
    this.unmountAll();
    if (process.env["PGAF_TEST_KEEP"]) {
      console.error(`kept ${this.base}`);
    } else {
      rmSync(this.base, { recursive: true, force: true });
    }
    if (leaks.length > 0) throw new Error(`left behind: ${leaks.join("; ")}`);
  }

  /** For file systems that a kind of cluster has mounted below its directory. */
  protected unmountAll(): void {}

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
