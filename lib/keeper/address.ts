/** Another name or address of a node, on its own machine: its settings and the monitor must agree. */
import { loadKeeperConfig, nodePaths, saveConfig } from "../config.ts";
import { type NodeMetadata, openMonitor } from "../monitor/client.ts";
import { livePostmaster } from "../pg/server.ts";
import { AppError } from "../sys/errors.ts";
import { lockNode, requireFreePort, statusOf } from "./setup.ts";

/**
 * Changes what is given, at the monitor and then in keeper.json; may be run again after it was interrupted. The server
 * takes up another address by a restart only: it must not run. A name changes at any time.
 *
 * @throws {AppError} conflict: the keeper runs, or the port is in use; state: PostgreSQL runs
 */
export async function changeMetadata(pgdata: string, change: NodeMetadata): Promise<void> {
  const { name, host, port } = change;
  const moves = host !== undefined || port !== undefined;
  using _lock = moves ? lockNode(nodePaths(pgdata)) : undefined;
  const config = loadKeeperConfig(pgdata);
  const { nodeId } = statusOf(pgdata).keeper;
  if (moves && livePostmaster(pgdata) !== undefined) {
    throw new AppError("state", "PostgreSQL runs, and takes up another address by a restart only", {
      detail: { pgdata },
      hint: `Stop it with roles/keeper.ts stop --pgdata ${pgdata}, and run the node again afterwards.`,
    });
  }
  if (port !== undefined && port !== config.pgport) await requireFreePort({ pgdata, pgport: port });
  await using monitor = openMonitor(config.monitor);
  if (nodeId !== undefined) await monitor.updateNode(nodeId, change);
  saveConfig(nodePaths(pgdata).keeperConfig, {
    ...config,
    ...(name === undefined ? {} : { name }),
    ...(host === undefined ? {} : { nodename: host }),
    ...(port === undefined ? {} : { pgport: port }),
  });
}
