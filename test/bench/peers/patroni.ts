/**
 * Patroni 3.0 with etcd 3.4 as Debian 12 packages them.
 *
 * Pitfalls: etcd refuses its version 2 interface unless asked, so Patroni uses version 3.
 * `synchronous_mode` is off by default; it's on here in both settings, as everybody else in the race
 * waits for a standby too. The documented minimums are ttl 20, loop_wait 1, retry_timeout 3; with
 * `primary_start_timeout` 0 a primary that crashed is failed over rather than started again.
 */
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { giveTo } from "../../helpers/owner.ts";
import { freePort } from "../../helpers/ports.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { Site } from "./site.ts";
import type { Entrant, RaceNode, Setting, System } from "./system.ts";

const TIMERS: Readonly<Record<Setting, Readonly<Record<string, number>>>> = {
  defaults: { ttl: 30, loop_wait: 10, retry_timeout: 10, primary_start_timeout: 300 },
  tuned: { ttl: 20, loop_wait: 1, retry_timeout: 3, primary_start_timeout: 0 },
};

const spell = (setting: Setting): string =>
  Object.entries(TIMERS[setting])
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");

export const patroni: Entrant = {
  title: "Patroni 3.0 + etcd 3.4",
  programs: ["patroni", "patronictl", "etcd"],
  packages: ["patroni", "etcd-server"],
  settings: {
    defaults: `${spell("defaults")}; synchronous_mode on (off by default)`,
    tuned: `${spell("tuned")}; synchronous_mode on; wal_retrieve_retry_interval 200ms`,
  },
  open,
};

/** In seconds: three rounds of the default one pass until the second node is synchronous. */
const SET_UP_LOOP_WAIT = 1;

/** The name that both data nodes have in common in etcd. */
const SCOPE = "race";

async function open(site: Site, setting: Setting): Promise<System> {
  const etcd = `http://${site.address("etcd")}:2379`;
  const peer = `http://${site.address("etcd")}:2380`;
  site.start("etcd", "etcd", [
    ...["etcd", "--name", "etcd", "--data-dir", site.directory("etcd")],
    ...["--listen-client-urls", etcd, "--advertise-client-urls", etcd],
    ...["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer],
    ...["--initial-cluster", `etcd=${peer}`],
  ]);
  await waitFor("etcd to answer", 30_000, async () => (await fetchBriefly(`${etcd}/health`)).ok);

  const nodes = ["node1", "node2"].map((label) => site.node(label));
  const restPort = freePort();
  for (const node of nodes) {
    const config = render(site, node, { setting, etcd, restPort });
    const file = configOf(site, node);
    writeFileSync(file, JSON.stringify(config, undefined, 2));
    chmodSync(file, 0o600);
    giveTo(site.owner, file);
  }
  const boot = async (node: RaceNode): Promise<void> => {
    site.start(node.label, "patroni", ["patroni", configOf(site, node)]);
  };
  for (const [index, node] of nodes.entries()) {
    await boot(node);
    await waitFor(
      `${node.label} to be in its place`,
      60_000,
      () => members(node.address.host, index + 1),
      { everyMs: 100, explain: () => site.story() },
    );
  }

  const { loop_wait } = TIMERS[setting];
  await changeConfig(`http://${nodes[0]?.address.host}:${restPort}`, { loop_wait });

  /** Whether so many nodes run, all but the first of them synchronous standbys. */
  async function members(host: string, count: number): Promise<boolean> {
    const answer = await fetchBriefly(`http://${host}:${restPort}/cluster`);
    const { members: found } = (await answer.json()) as {
      members: { role: string; state: string }[];
    };
    const alive = found.filter(({ state }) => state === "running" || state === "streaming");
    const synchronous = alive.filter(({ role }) => role === "sync_standby");
    return alive.length === count && synchronous.length === count - 1;
  }
  return {
    nodes,
    witness: "etcd",
    login: { user: "postgres" },
    boot,
    switchover: async (primary, standby) => {
      const words = ["switchover", SCOPE, "--candidate", standby.label, "--force"];
      await site.run("etcd", ["patronictl", "-c", configOf(site, primary), ...words]);
    },
    settled: (primary) => members(primary.address.host, nodes.length),
  };
}

const configOf = (site: Site, { label }: RaceNode): string => join(site.base, `${label}.yml`);

async function fetchBriefly(url: string): Promise<Response> {
  return await fetch(url, { signal: AbortSignal.timeout(2000) });
}

/** Each node takes it over in its next round. */
async function changeConfig(api: string, change: object): Promise<void> {
  const body = JSON.stringify(change);
  const signal = AbortSignal.timeout(5000);
  const answer = await fetch(`${api}/config`, { method: "PATCH", body, signal });
  if (!answer.ok) throw new Error(`Patroni refused ${body}: ${await answer.text()}`);
}

/** YAML takes JSON. */
function render(
  site: Site,
  { label, address, pgdata }: RaceNode,
  { setting, etcd, restPort }: { setting: Setting; etcd: string; restPort: number },
): object {
  const tuned = setting === "tuned" ? { wal_retrieve_retry_interval: "200ms" } : {};
  return {
    scope: SCOPE,
    name: label,
    restapi: {
      listen: `${address.host}:${restPort}`,
      connect_address: `${address.host}:${restPort}`,
    },
    etcd3: { hosts: [new URL(etcd).host] },
    bootstrap: {
      dcs: {
        ...TIMERS[setting],
        loop_wait: SET_UP_LOOP_WAIT,
        synchronous_mode: true,
        postgresql: { use_pg_rewind: true, use_slots: true, parameters: tuned },
      },
      initdb: ["data-checksums", { encoding: "UTF8" }, { locale: "C" }],
    },
    postgresql: {
      listen: `${address.host}:${address.port}`,
      connect_address: `${address.host}:${address.port}`,
      data_dir: pgdata,
      bin_dir: site.bin,
      pgpass: join(site.base, `${label}.pgpass`),
      authentication: {
        superuser: { username: "postgres" },
        replication: { username: "replicator" },
      },
      pg_hba: [
        "local all all trust",
        `host all all ${site.subnet} trust`,
        `host replication all ${site.subnet} trust`,
      ],
    },
  };
}
