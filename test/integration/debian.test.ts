/** A cluster as Debian's pg_createcluster makes it, with its configuration under /etc/postgresql. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { Cluster } from "../helpers/cluster.ts";
import { runCommand } from "../helpers/command.ts";
import { isRoot } from "../helpers/owner.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";

const obstacle = !isRoot
  ? "only root makes clusters under /etc/postgresql"
  : Bun.which("pg_createcluster") === null
    ? "pg_createcluster is missing (postgresql-common)"
    : undefined;
if (obstacle !== undefined) console.error(`skipping the test of Debian's layout: ${obstacle}`);
const END_MS = 30_000;
const OURS = /^include_if_exists '.*postgresql-auto-failover.*'$/gm;

test.skipIf(obstacle !== undefined)(
  "pg_createcluster's cluster keeps its files under /etc, through failover, rewind and copy",
  async () => {
    const { major } = await findBinaries({});
    const name = `pgaf${process.pid}`;
    const etc = `/etc/postgresql/${major}/${name}`;
    await using cluster = new Cluster("debian");
    const tool = async (program: string, ...words: string[]): Promise<string> => {
      const outcome = await runCommand([program, ...words], { env: cluster.env });
      if (outcome.code !== 0) throw new Error(`${program}: ${outcome.stderr}`);
      return outcome.stdout;
    };
    /** As pg_lsclusters shows it: port, status and how it's started. */
    const listed = async (): Promise<string[] | undefined> => {
      const lines = (await tool("pg_lsclusters", "--no-header", "--start-conf")).split("\n");
      const words = lines.map((line) => line.split(/\s+/)).find((each) => each[1] === name);
      return words?.slice(2, 4);
    };
    await cluster.startMonitor();
    const first = cluster.addNode("node1");
    const made = ["--datadir", first.pgdata, "--port", String(first.port), "--locale", "C"];
    await tool("pg_createcluster", String(major), name, ...made);
    try {
      await telling(cluster, async () => {
        expect(existsSync(join(first.pgdata, "postgresql.conf"))).toBe(false);
        const config = join(etc, "postgresql.conf");
        const more = /^max_connections = \d+/m; // a standby must have as many
        writeFileSync(config, readFileSync(config, "utf8").replace(more, "max_connections = 130"));
        await first.create();
        first.start();
        await cluster.waitForStates({ node1: "single" }, END_MS);
        expect(await listed()).toEqual([String(first.port), "online,manual"]);
        expect(await first.ask("show config_file")).toEqual([{ config_file: config }]);
        expect(readFileSync(config, "utf8").match(OURS)).toHaveLength(2);
        expect(existsSync(join(first.pgdata, "pg_hba.conf"))).toBe(false);

        // its standby has no /etc of its own
        const second = await cluster.startNode("node2");
        await cluster.healthy(END_MS);
        expect(await second.ask("show max_connections")).toEqual([{ max_connections: "130" }]);
        expect(readdirSync(second.pgdata)).toContain("pg_hba.conf");
        await tool("pg_ctlcluster", String(major), name, "reload");
        await using writer = await cluster.writer();

        // a failover: the standby's files don't get in the way of those under /etc
        await first.killWithUnsentWal();
        await cluster.waitForStates({ node1: "secondary", node2: "primary" }, END_MS);
        expect(await first.ask("show config_file")).toEqual([{ config_file: config }]);
        // and back: nor does their lack take the standby's own away
        const own = readFileSync(join(second.pgdata, "pg_hba.conf"), "utf8");
        await second.killWithUnsentWal();
        await cluster.waitForStates({ node1: "primary", node2: "secondary" }, END_MS);
        expect(readFileSync(join(second.pgdata, "pg_hba.conf"), "utf8")).toBe(own);
        await nothingLost(cluster, writer);
        expect(await listed()).toEqual([String(first.port), "online,manual"]);
      });
    } finally {
      await first.terminate(END_MS);
      await tool("pg_dropcluster", String(major), name);
    }
  },
  120_000,
);
