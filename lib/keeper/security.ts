/** Changes how a node that is there encrypts; its keeper, if one runs, takes it up without a restart. */
import { loadKeeperConfig, nodePaths, saveConfig } from "../config.ts";
import { openMonitor } from "../monitor/client.ts";
import { awaitTls } from "../pg/local.ts";
import { livePostmaster } from "../pg/server.ts";
import { prepareTls, tlsParams } from "../pg/tls.ts";
import type { KeeperConfig, TlsConfig } from "../shapes.ts";
import { lockHolder } from "../sys/lock.ts";
import { NO_TLS_PARAMS, withUriParams } from "../sys/sql.ts";
import { askSource } from "./ancestry.ts";
import { localTargetOf, upstreamTarget } from "./node.ts";
import { readSecret } from "./passfile.ts";
import { signalRole } from "./setup.ts";
import { loadState } from "./state_file.ts";

/**
 * Checks first that the monitor, and whom a standby streams from, have what this node would demand of them.
 *
 * @param tls undefined: no TLS of ours
 * @throws {AppError} monitor, config: the other side has no TLS yet, or no good certificate; nothing has changed
 */
export async function changeTls(pgdata: string, tls: TlsConfig | undefined): Promise<void> {
  const paths = nodePaths(pgdata);
  const { tls: _, ...rest } = loadKeeperConfig(pgdata);
  const params = tls ? tlsParams(tls, rest.auth === "cert") : {};
  const config: KeeperConfig = {
    ...rest,
    ...(tls && { tls }),
    monitor: withUriParams(rest.monitor, { ...NO_TLS_PARAMS, ...params }, true),
  };
  await prepareTls(tls, config.nodename);
  await using monitor = openMonitor(config.monitor);
  const nodes = await monitor.state(config.formation);
  const following = loadState(paths.state)?.following;
  const upstream = nodes.find(({ node_id }) => node_id === following);
  if (upstream) {
    const { nodehost: host, nodeport: port } = upstream;
    await askSource(upstreamTarget({ config, secret: readSecret(paths) }, { host, port }));
  }
  saveConfig(paths.keeperConfig, config);
  if (lockHolder(paths.lock) === undefined) return;
  signalRole(pgdata, "SIGHUP");
  const postmaster = livePostmaster(pgdata);
  if (postmaster) await awaitTls(localTargetOf(postmaster), tls !== undefined);
}
