/**
 * repmgr 5.3 with repmgrd as Debian 12 packages them.
 *
 * Pitfalls: nothing restarts PostgreSQL (Debian's unit doesn't either), so a standby whose postmaster
 * was killed stays down until an operator comes, and commits wait for it. Nothing brings a failed
 * primary back: an operator runs `repmgr node rejoin`, as the script does here at once, or clones anew
 * where pg_rewind finds that the old primary has removed WAL that it needs. repmgr leaves
 * synchronous replication to the operator, too: here it's turned on for the primary when the pair is
 * whole; a standby that is promoted begins without, or it would wait for the node that has failed. A
 * switchover needs SSH from the standby to the primary; each host has an sshd of the servers' owner. The
 * command that stops a server waits for its end, as `systemctl stop` does: where it doesn't, repmgr
 * looks for that end once a second, and nobody can write meanwhile.
 */
import { appendFileSync, chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { giveTo } from "../../helpers/owner.ts";
import { ask, type Row } from "../../helpers/sql.ts";
import { waitFor } from "../../helpers/wait.ts";
import { postmasterOf, type Site } from "./site.ts";
import type { Entrant, RaceNode, Setting, System } from "./system.ts";

const TIMERS: Readonly<Record<Setting, Readonly<Record<string, number>>>> = {
  defaults: {},
  tuned: { monitor_interval_secs: 1, reconnect_attempts: 3, reconnect_interval: 1 },
};
const SSH_PORT = 2222;
const LOGIN = { user: "postgres" };
const METADATA = { user: "repmgr", database: "repmgr" };

export const repmgr: Entrant = {
  title: "repmgr 5.3",
  programs: [
    "/usr/lib/postgresql/15/bin/repmgr",
    "/usr/lib/postgresql/15/bin/repmgrd",
    "/usr/sbin/sshd",
    "ssh",
    "ssh-keygen",
  ],
  packages: ["repmgr", "postgresql-15-repmgr", "openssh-server", "openssh-client"],
  settings: {
    defaults:
      "reconnect_attempts 6, reconnect_interval 10, monitor_interval_secs 2; synchronous_standby_names '*' by the operator (empty by default)",
    tuned:
      "reconnect_attempts 3, reconnect_interval 1, monitor_interval_secs 1; synchronous_standby_names '*' by the operator; wal_retrieve_retry_interval 200ms",
  },
  open,
};

async function open(site: Site, setting: Setting): Promise<System> {
  const nodes = ["node1", "node2"].map((label) => site.node(label));
  const [first, second] = nodes as [RaceNode, RaceNode];
  await makeKeys(site);
  for (const [index, node] of nodes.entries()) writeConfig(site, node, index + 1, setting);
  for (const node of nodes) startSsh(site, node);

  await site.run(first.label, [
    ...["initdb", "--pgdata", first.pgdata, "--username", LOGIN.user],
    ...["--auth", "trust", "--data-checksums", "--encoding", "UTF8", "--locale", "C"],
  ]);
  const tuned = setting === "tuned" ? "wal_retrieve_retry_interval = '200ms'\n" : "";
  appendFileSync(
    join(first.pgdata, "postgresql.conf"),
    `listen_addresses = '*'\nshared_preload_libraries = 'repmgr'\n${tuned}`,
  );
  const lines = ["all", "replication"].map((what) => `host ${what} all ${site.subnet} trust\n`);
  appendFileSync(join(first.pgdata, "pg_hba.conf"), lines.join(""));
  await startPostgres(site, first);
  await ask(first.address, LOGIN, "create role repmgr superuser login");
  await ask(first.address, LOGIN, "create database repmgr owner repmgr");
  await command(site, first, "primary", "register");

  await clone(site, first, second);
  for (const node of nodes) startDaemon(site, node);
  await requireStandby(first);

  return {
    nodes,
    witness: undefined,
    login: LOGIN,
    boot: async (node) => {
      startSsh(site, node);
      await startPostgres(site, node);
      startDaemon(site, node);
    },
    switchover: async (_, standby) => {
      await command(site, standby, "standby", "switchover");
    },
    settled: async (primary, standby) => {
      await requireStandby(primary);
      return await watches(standby, nodes.indexOf(primary) + 1);
    },
    byHand: (primary, other) => rejoin(site, primary, other),
  };
}

const configOf = (site: Site, { label }: RaceNode): string => join(site.base, `${label}.conf`);

/** Runs repmgr on the node's host. */
async function command(site: Site, node: RaceNode, ...words: string[]): Promise<void> {
  await site.run(node.label, ["repmgr", "-f", configOf(site, node), ...words]);
}

/** Makes a node a standby by a base backup, whatever it holds. */
async function clone(site: Site, primary: RaceNode, node: RaceNode): Promise<void> {
  const { host, port } = primary.address;
  const source = ["-h", host, "-p", String(port), "-U", "repmgr", "-d", "repmgr"];
  await command(site, node, "standby", "clone", "--force", "--fast-checkpoint", ...source);
  await startPostgres(site, node);
  await command(site, node, "standby", "register", "--force");
}

function writeConfig(site: Site, node: RaceNode, id: number, setting: Setting): void {
  const { label, address, pgdata } = node;
  const file = configOf(site, node);
  const repmgrCommand = `${site.bin}/repmgr -f ${file}`;
  const values: Record<string, string | number> = {
    node_id: id,
    node_name: label,
    conninfo: `host=${address.host} port=${address.port} user=repmgr dbname=repmgr connect_timeout=2`,
    data_directory: pgdata,
    pg_bindir: site.bin,
    repmgr_bindir: site.bin,
    use_replication_slots: "yes",
    failover: "automatic",
    promote_command: `${repmgrCommand} standby promote`,
    follow_command: `${repmgrCommand} standby follow --upstream-node-id=%n`,
    service_start_command: startCommand(site, node).join(" "),
    service_stop_command: `${site.bin}/pg_ctl stop -w -m fast -D ${pgdata}`,
    ssh_options: `-q -p ${SSH_PORT} -i ${join(site.base, "key")} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null`,
    ...TIMERS[setting],
  };
  const lines = Object.entries(values).map(([name, value]) => `${name} = '${value}'\n`);
  writeFileSync(file, lines.join(""));
}

/** The port is the host's own: the configuration is copied with the data. */
const startCommand = (site: Site, { label, address, pgdata }: RaceNode): string[] => [
  ...[`${site.bin}/pg_ctl`, "start", "-w", "-D", pgdata],
  ...["-l", join(site.base, `${label}-postgres.log`), "-o", `"-p ${address.port}"`],
];

async function startPostgres(site: Site, node: RaceNode): Promise<void> {
  await site.run(node.label, ["sh", "-c", startCommand(site, node).join(" ")]);
}

function startDaemon(site: Site, node: RaceNode): void {
  const words = ["--daemonize=false", "--no-pid-file"];
  site.start(node.label, "repmgrd", ["repmgrd", "-f", configOf(site, node), ...words]);
}

async function makeKeys(site: Site): Promise<void> {
  const key = join(site.base, "key");
  await site.run("node1", ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]);
  const authorized = join(site.base, "key.pub");
  const config = [
    `Port ${SSH_PORT}`,
    `HostKey ${key}`,
    `AuthorizedKeysFile ${authorized}`,
    "StrictModes no",
    "UsePAM no",
    "PidFile none",
    `SetEnv PATH=${site.bin}:/usr/bin:/bin`,
  ];
  const file = join(site.base, "sshd_config");
  writeFileSync(file, `${config.join("\n")}\n`);
  chmodSync(file, 0o644);
  giveTo(site.owner, file);
}

function startSsh(site: Site, { label }: RaceNode): void {
  site.start(label, "sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", join(site.base, "sshd_config")]);
}

/** From here on commits wait for the standby. */
async function requireStandby({ address }: RaceNode): Promise<void> {
  const [row] = await ask(address, LOGIN, "show synchronous_standby_names");
  if (row?.["synchronous_standby_names"] === "*") return;
  await setStandbyNames(address, "*");
}

async function setStandbyNames(address: RaceNode["address"], names: string): Promise<void> {
  await ask(address, LOGIN, `alter system set synchronous_standby_names = '${names}'`);
  await ask(address, LOGIN, "select pg_reload_conf()");
}

/** Whether the standby's repmgrd knows its primary and looks after it. */
async function watches(standby: RaceNode, primaryId: number): Promise<boolean> {
  const [row]: Row[] = await ask(
    standby.address,
    METADATA,
    `select repmgr.get_upstream_node_id() as id, repmgr.get_upstream_last_seen() as seen,
            repmgr.repmgrd_is_running() as running, repmgr.repmgrd_is_paused() as paused,
            current_setting('synchronous_standby_names') as names`,
  );
  if (row?.["names"] !== "") await setStandbyNames(standby.address, "");
  const seen = Number(row?.["seen"]);
  const awake = row?.["running"] === true && row["paused"] === false;
  return awake && Number(row?.["id"]) === primaryId && seen >= 0 && seen <= 5;
}

/** What the manual asks of an operator when a primary has failed and is there again. */
async function rejoin(site: Site, primary: RaceNode, other: RaceNode): Promise<void> {
  await waitFor(`${primary.label} to be repmgr's primary`, 20_000, async () => {
    const text = "select type = 'primary' as is_primary from repmgr.nodes where node_name = $1";
    const [row] = await ask(primary.address, METADATA, text, [primary.label]);
    return row?.["is_primary"] === true;
  });
  // Before its checkpoint the new primary is on the old timeline for pg_rewind, which finds nothing to do then.
  await ask(primary.address, LOGIN, "checkpoint", [], 20_000);
  if (postmasterOf(other.pgdata) !== undefined) {
    await site.run(other.label, ["pg_ctl", "stop", "-m", "fast", "-D", other.pgdata]);
  }
  const { host, port } = primary.address;
  const target = `host=${host} port=${port} user=repmgr dbname=repmgr`;
  try {
    await command(site, other, "node", "rejoin", "-d", target, "--force-rewind");
  } catch {
    await clone(site, primary, other);
  }
  await waitFor(`${other.label} to answer`, 20_000, async () => {
    await ask(other.address, LOGIN, "select 1");
    return true;
  });
}
