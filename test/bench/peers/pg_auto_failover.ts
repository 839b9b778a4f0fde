/**
 * pg_auto_failover 2.0 as Debian 12 packages it.
 *
 * Pitfalls: `create` leaves its PostgreSQL running where it can, so `run` comes right after it. The
 * monitor's own timers are settings of its PostgreSQL; those of a keeper stand in a file, and
 * `primary_demote_timeout` of the one must be longer than `network_partition_timeout` of the other
 * plus the time to stop. Replication is synchronous by default (a quorum of one standby).
 */
import { appendFileSync } from "node:fs";
import { join } from "node:path";
import { ask } from "../../helpers/sql.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { Site } from "./site.ts";
import type { Entrant, RaceNode, Setting, System } from "./system.ts";

/** Of the monitor's PostgreSQL, in milliseconds. */
const MONITOR_TUNED = {
  health_check_period: 1000,
  health_check_timeout: 1000,
  health_check_max_retries: 1,
  health_check_retry_delay: 500,
  node_considered_unhealthy_timeout: 3000,
  primary_demote_timeout: 5000,
};
/** Of each keeper's file, in seconds. */
const KEEPER_TUNED = {
  network_partition_timeout: 3,
  postgresql_restart_failure_timeout: 1,
  postgresql_restart_failure_max_retries: 1,
};

const spell = (values: Readonly<Record<string, number>>): string =>
  Object.entries(values)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");

export const pgAutoFailover: Entrant = {
  title: "pg_auto_failover 2.0",
  programs: ["pg_autoctl", "/usr/share/postgresql/15/extension/pgautofailover.control"],
  packages: ["pg-auto-failover-cli", "postgresql-15-auto-failover"],
  settings: {
    defaults: "as packaged; synchronous by default",
    tuned: `monitor (ms): ${spell(MONITOR_TUNED)}; keeper (s): ${spell(KEEPER_TUNED)}; wal_retrieve_retry_interval 200ms`,
  },
  open,
};

async function open(site: Site, setting: Setting): Promise<System> {
  const monitor = site.node("monitor");
  const uri = `postgres://autoctl_node@${monitor.address.host}:${monitor.address.port}/pg_auto_failover`;
  const at = ({ address, pgdata }: RaceNode): string[] => [
    ...["--pgdata", pgdata, "--pgport", String(address.port), "--hostname", address.host],
    ...["--auth", "trust", "--no-ssl"],
  ];
  const run = (node: RaceNode): void => {
    site.start(node.label, "pg_autoctl", ["pg_autoctl", "run", "--pgdata", node.pgdata]);
  };
  const askMonitor = async (text: string) =>
    await ask(monitor.address, { user: "autoctl_node", database: "pg_auto_failover" }, text);

  await site.run("monitor", ["pg_autoctl", "create", "monitor", ...at(monitor)]);
  if (setting === "tuned") tuneMonitor(monitor);
  run(monitor);
  await waitFor("the monitor to answer", 30_000, async () => (await askMonitor("select 1")).length);

  const nodes: RaceNode[] = [];
  for (const label of ["node1", "node2"]) {
    const node = site.node(label);
    const create = ["pg_autoctl", "create", "postgres", ...at(node), "--monitor", uri];
    await site.run(label, [...create, "--name", label, "--pg-hba-lan"]);
    if (setting === "tuned") await tuneKeeper(site, node);
    run(node);
    nodes.push(node);
    const count = nodes.length;
    await waitFor(`${label} to be in its place`, 60_000, async () => (await healthy()) === count, {
      everyMs: 100,
      explain: () => site.story(),
    });
  }
  if (setting === "tuned") await retryWalSooner(nodes);

  async function healthy(): Promise<number> {
    const [row] = await askMonitor(
      `select count(*) as nodes from pgautofailover.node where reportedstate = goalstate
          and reportedstate in ('single', 'primary', 'secondary')`,
    );
    return Number(row?.["nodes"]);
  }
  return {
    nodes,
    witness: "monitor",
    login: { user: site.owner.name },
    boot: async (node) => run(node),
    switchover: async () => {
      await site.run("monitor", ["pg_autoctl", "perform", "switchover", "--monitor", uri]);
    },
    settled: async () => (await healthy()) === nodes.length,
  };
}

function tuneMonitor({ pgdata }: RaceNode): void {
  const lines = Object.entries(MONITOR_TUNED).map(
    ([name, value]) => `pgautofailover.${name} = ${value}\n`,
  );
  appendFileSync(join(pgdata, "postgresql.conf"), lines.join(""));
}

async function tuneKeeper(site: Site, { label, pgdata }: RaceNode): Promise<void> {
  for (const [name, value] of Object.entries(KEEPER_TUNED)) {
    const words = ["config", "set", "--pgdata", pgdata, `timeout.${name}`, String(value)];
    await site.run(label, ["pg_autoctl", ...words]);
  }
}

/** A standby that has lost its primary asks for it again after 5 s otherwise, and commits wait for that. */
async function retryWalSooner(nodes: readonly RaceNode[]): Promise<void> {
  for (const { address } of nodes) {
    const login = { user: "postgres" };
    await ask(address, login, "alter system set wal_retrieve_retry_interval = '200ms'");
    await ask(address, login, "select pg_reload_conf()");
  }
}
