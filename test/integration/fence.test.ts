/** A primary without its monitor: its standby's replies keep it open, and a new keeper keeps to the old one's deadline. */
import { expect } from "bun:test";
import { join } from "node:path";
import { loadContact } from "../../lib/keeper/contact_file.ts";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { monotonicMs } from "../../lib/sys/clock.ts";
import type { Cluster } from "../helpers/cluster.ts";
import { isRoot } from "../helpers/owner.ts";
import { type Scene, scenariosOf } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";

const scenario = scenariosOf("fence");
const TIMEOUT_MS = 90_000;
const FENCED = "this primary stops itself";
/** Longest time that a fenced primary may take to be gone. */
const STOP_LIMIT_MS = 1500;

/** The shortest timers that their order allows: shorter than the second at which an idle standby speaks. */
const FAST = { heartbeat_ms: 400, network_partition_timeout_ms: 900, node_timeout_ms: 2200 };
const SLOW = { node_timeout_ms: 7000, network_partition_timeout_ms: 5000, heartbeat_ms: 1000 };

scenario(
  "the monitor is away: an idle primary goes on by its standby's replies alone, also with a new keeper",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await setTimers(scene, FAST);
    await writer.stop();
    const mark = primary.mark();
    const postmaster = primary.requirePostmaster();
    await cluster.monitor.die();
    await pass(cluster, 3000);
    await primary.kill();
    await pass(cluster, 1500);
    primary.start();
    await pass(cluster, 4000);
    expect(primary.log(mark)).not.toContain(FENCED);
    expect(primary.postmaster()).toBe(postmaster);

    await secondary.die();
    await stopped(cluster, primary, FAST.network_partition_timeout_ms + STOP_LIMIT_MS);
    expect(primary.log(mark)).toContain(FENCED);
    cluster.monitor.start();
    secondary.start();
  },
);

scenario(
  "somebody starts the server of a primary that has fenced itself: its keeper stops it again",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await setTimers(scene, FAST);
    await writer.stop();
    await cluster.monitor.die();
    await secondary.die();
    await stopped(cluster, primary, FAST.network_partition_timeout_ms + 2 * STOP_LIMIT_MS);
    const mark = primary.mark();
    // as the distribution's own service would
    const { bindir } = await findBinaries({});
    const { uid, gid } = cluster.owner;
    const start = Bun.spawnSync(
      [
        ...["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--clear-groups"].slice(isRoot ? 0 : 4),
        ...[join(bindir, "pg_ctl"), "start", "-D", primary.pgdata, "-W", "-l", "/dev/null"],
      ],
      { cwd: "/" },
    );
    expect(start.exitCode).toBe(0);
    await primary.waitForLog(/Found PostgreSQL running/, 5000, mark);
    await stopped(cluster, primary, 2 * STOP_LIMIT_MS);
    cluster.monitor.start();
    secondary.start();
  },
);

scenario(
  "an asynchronous primary that goes on alone has a new keeper while the monitor is away: nobody could replace it",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await makeAsynchronous(scene);
    await writer.stop();
    expect((await secondary.command("stop")).code).toBe(0);
    await cluster.waitForStates({ [primary.label]: "wait_primary" }, 10_000);
    const mark = primary.mark();
    const postmaster = primary.requirePostmaster();
    await cluster.monitor.die();
    await primary.kill();
    primary.start();
    await primary.waitForLog(/could not reach the monitor/, 5000, mark);
    await pass(cluster, FAST.network_partition_timeout_ms + 2 * STOP_LIMIT_MS);
    expect(primary.log(mark)).not.toContain(FENCED);
    expect(primary.postmaster()).toBe(postmaster);
    cluster.monitor.start();
    secondary.start();
  },
);

scenario(
  "an isolated asynchronous primary has a new keeper: it stops by the last contact of the old one",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, secondary, writer } = scene;
    await makeAsynchronous(scene);
    await setTimers(scene, SLOW);
    await writer.stop();
    const mark = primary.mark();
    const postmaster = primary.requirePostmaster();
    await cluster.monitor.die();
    await secondary.die();
    await primary.kill();
    const { sentAtMs } = requireContact(primary);
    await cluster.waitFor("half the time to go by", 5000, () => monotonicMs() - sentAtMs > 2500);
    expect(primary.postmaster()).toBe(postmaster);
    primary.start();
    const timeout = SLOW.network_partition_timeout_ms;
    await stopped(cluster, primary, timeout);
    expect(monotonicMs() - sentAtMs).toBeWithin(timeout, timeout + STOP_LIMIT_MS);
    expect(primary.log(mark)).toContain(FENCED);
    cluster.monitor.start();
    secondary.start();
  },
);

/** One after the other, in an order that breaks none of the rules between them. */
async function setTimers(
  { cluster, primary }: Scene,
  timers: Readonly<Record<string, number>>,
): Promise<void> {
  for (const [name, ms] of Object.entries(timers)) await cluster.setFormation(name, String(ms));
  await cluster.waitFor("the primary to know its timers", 5000, () => {
    const { policy } = requireContact(primary);
    return (
      policy.networkPartitionTimeoutMs === timers["network_partition_timeout_ms"] &&
      policy.heartbeatMs === timers["heartbeat_ms"]
    );
  });
}

async function makeAsynchronous({ cluster, primary }: Scene): Promise<void> {
  await cluster.setFormation("durability", "performance");
  await cluster.waitFor("commits to wait for nobody", 10_000, async () => {
    const [row] = await primary.ask("select current_setting('synchronous_standby_names') as names");
    return row?.["names"] === "" && (await cluster.healthy(10_000)) === primary;
  });
}

function requireContact({ env, pgdata }: Service) {
  const own = join(env["XDG_DATA_HOME"] ?? "", "pg_auto_failover", pgdata);
  const contact = loadContact(join(own, "contact.json"));
  if (contact === undefined) throw new Error(`no contact of ${pgdata}`);
  return contact;
}

/** That nothing happens for so long is what is claimed. */
async function pass(cluster: Cluster, ms: number): Promise<void> {
  const endMs = monotonicMs() + ms;
  await cluster.waitFor("the time to go by", ms + 1000, () => monotonicMs() > endMs);
}

const stopped = (cluster: Cluster, node: Service, timeoutMs: number): Promise<boolean> =>
  cluster.waitFor(`PostgreSQL of ${node.label} to be stopped`, timeoutMs, () => {
    return node.postmaster() === undefined;
  });
