/** What wears on a group that writes: crash after crash, used-up connections, a mistake in a file, a commit that is given up. */
import { expect } from "bun:test";
import { appendFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Cluster } from "../helpers/cluster.ts";
import { freezeSender, scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { type Client, codeOf, openClient } from "../helpers/sql.ts";
import { nowMs } from "../helpers/wait.ts";

const scenario = scenariosOf("wear");

const CRASHES = 4;

scenario(
  "a primary's server crashes again and again: failed over once, and back when that ends",
  60_000,
  async ({ cluster, primary, secondary, writer }) => {
    const after = await cluster.lastEventId();
    const beganMs = nowMs();
    let pid = primary.killPostgres();
    for (let crashes = 1; crashes < CRASHES; crashes += 1) {
      await primary.newPostmaster(pid, 15_000);
      pid = primary.killPostgres();
    }
    await writer.waitForWrites(20, 10_000);
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(writer.longestGapMs(beganMs)).toBeLessThan(5000);
    const promotions = (await cluster.events(after)).filter(
      ({ rule, goal }) => rule !== "" && goal === "prepare_promotion",
    );
    expect(promotions).toMatchObject([{ port: secondary.port }]);
  },
);

scenario(
  "a commit's wait is cancelled, and the primary dies: its client was warned that it may be gone",
  60_000,
  async (scene) => {
    const { cluster, primary, secondary } = scene;
    await primary.ask("create table given_up (id int)");
    const release = await freezeSender(scene, secondary);
    const client = Bun.spawn(
      [
        ...["psql", "-X", "-h", "127.0.0.1", "-p", String(primary.port), "-U", cluster.login.user],
        ...["-d", "postgres", "-c", "insert into given_up values (1)"],
      ],
      { env: cluster.env, stdout: "pipe", stderr: "pipe" },
    );
    await cluster.waitFor("the commit's wait, and its end", 2000, async () => {
      const rows = await primary.ask(
        `select pg_cancel_backend(pid) from pg_stat_activity
          where wait_event = 'SyncRep' and query like 'insert into given_up%'`,
      );
      return rows.length > 0;
    });
    expect(await new Response(client.stderr).text()).toMatch(
      /WARNING: +canceling wait for synchronous replication[\s\S]*might not have been replicated/,
    );
    expect(await new Response(client.stdout).text()).toBe("INSERT 0 1\n");
    await primary.die();
    release("SIGKILL");
    await cluster.waitForStates({ [secondary.label]: "wait_primary" }, 20_000);
    primary.start();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    for (const node of cluster.nodes) expect(await node.ask("select from given_up")).toEqual([]);
  },
);

scenario(
  "every connection of the primary is used up: it counts as alive, and its sessions go on",
  60_000,
  async ({ cluster, primary, writer }) => {
    const after = await cluster.lastEventId();
    const clients: Client[] = [];
    try {
      await useUp(primary, clients);
      await severalReports(cluster, primary);
      await writer.waitForWrites(20, 5000);
      // nor does a keeper that finds such a server take it for a dead one
      const server = primary.postmaster();
      await primary.kill();
      primary.start();
      await severalReports(cluster, primary);
      await writer.waitForWrites(20, 5000);
      expect(primary.postmaster()).toBe(server);
    } finally {
      await Promise.all(clients.map((client) => client.close()));
    }
    expect(await cluster.healthy(20_000)).toBe(primary);
    const decided = (await cluster.events(after)).filter(({ rule }) => rule !== "");
    expect(decided.map(({ goal }) => goal)).not.toContain("prepare_promotion");
  },
);

scenario(
  "postgresql.conf gets a mistake: nothing changes, the keeper says so, and a failover brings the node back",
  60_000,
  async ({ cluster, primary, secondary, writer }) => {
    const mark = primary.mark();
    const server = primary.requirePostmaster();
    appendFileSync(join(primary.pgdata, "postgresql.conf"), "\nwork_mem = = 4MB\n");
    expect((await primary.command("reload")).code).toBe(0);
    await primary.waitForLog(/Reloading the settings/, 5000, mark);
    await primary.waitForLog(/PostgreSQL doesn't take up its new configuration/, 5000, mark);
    await severalReports(cluster, primary);
    await writer.waitForWrites(20, 5000);
    expect(primary.postmaster()).toBe(server);
    expect(primary.path(mark)).toEqual([]);

    primary.killPostgres();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(primary.log(mark)).toMatch(/postgresql\.conf\W+contains errors/);
    expect(readFileSync(join(primary.pgdata, "postgresql.conf"), "utf8")).not.toContain("= =");
  },
);

scenario(
  "the login that rewinds has lost its privileges: the old primary comes back all the same",
  60_000,
  async ({ cluster, primary, secondary }) => {
    const revoked = ["pg_ls_dir(text, boolean, boolean)", "pg_read_binary_file(text)"];
    for (const name of [...revoked, "pg_read_binary_file(text, bigint, bigint, boolean)"]) {
      await primary.ask(`revoke execute on function ${name} from pgautofailover_replicator`);
    }
    const mark = primary.mark();
    await primary.killWithUnsentWal();
    expect(await cluster.healthy(30_000)).toBe(secondary);
    expect(primary.log(mark)).toMatch(/Rewinding with pg_rewind/);
    for (const node of cluster.nodes) {
      expect(await node.ask("select from pg_class where relname = 'unsent'")).toEqual([]);
    }
  },
);

/** Opens sessions until there is room for none, not even a superuser's. */
async function useUp({ address, login }: Service, clients: Client[]): Promise<void> {
  for (;;) {
    const client = openClient(address, login);
    clients.push(client);
    try {
      await client.query("select", [], 5000);
    } catch (error) {
      if (codeOf(error) === "53300") return;
      throw error;
    }
  }
}

/** Longer than a server that doesn't answer would be taken for one that serves. */
async function severalReports(cluster: Cluster, { port }: Service): Promise<void> {
  const seen = new Set<unknown>();
  await cluster.waitFor("four more reports", 15_000, async () => {
    const text = "select reportno from pgautofailover.node where nodeport = $1";
    const [row] = await cluster.askMonitor(text, [port]);
    return seen.add(String(row?.["reportno"])).size > 4;
  });
}
