/** A node leaves its monitor, or turns to another one, and PostgreSQL notices nothing. */
import { loadKeeperConfig, nodePaths, saveConfig } from "../config.ts";
import { RECEIVING } from "../fsm.ts";
import { openMonitor } from "../monitor/client.ts";
import type { KeeperConfig, KeeperState } from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { parseUri } from "../sys/sql.ts";
import { log } from "./node.ts";
import { withMonitorLogin } from "./passfile.ts";
import { requireState, signalRole } from "./setup.ts";

/** Durable before the keeper hears of it. */
function change(pgdata: string, config: KeeperConfig): void {
  const paths = nodePaths(pgdata);
  saveConfig(paths.keeperConfig, withMonitorLogin(config, paths));
  signalRole(pgdata, "SIGHUP");
}

/**
 * The monitor could give the place of a primary that it no longer hears of to a standby: so only a
 * standby goes, or a node that is alone.
 */
async function requireDispensable(config: KeeperConfig, state: KeeperState): Promise<void> {
  await using monitor = openMonitor(config.monitor);
  const { nodes } = await monitor.groupView(config.formation, state.groupId ?? config.group);
  const self = nodes.find(({ nodeId }) => nodeId === state.nodeId);
  if (self === undefined) return;
  const isStandby = RECEIVING.includes(self.goal) && RECEIVING.includes(self.reported);
  const isAlone = self.goal === "single" && self.reported === "single" && nodes.length === 1;
  if (isStandby || isAlone) return;
  throw new AppError("conflict", "the monitor may need this node, or replace it", {
    detail: { state: self.reported, goal: self.goal, other_nodes: nodes.length - 1 },
    hint: "A primary goes last: disable its standbys first, and wait for state single. To move the whole formation, use monitor enable URI on each node instead, the primary first.",
  });
}

/**
 * The keeper goes on without a monitor: it keeps PostgreSQL as it is, and nobody else is promoted.
 *
 * @param force also when the monitor can't be asked: it is gone for good
 * @throws {AppError} conflict: the monitor counts on this node
 */
export async function disableMonitor(pgdata: string, force: boolean): Promise<void> {
  const config = loadKeeperConfig(pgdata);
  const state = requireState(nodePaths(pgdata));
  if (config.membership === "disabled") return;
  const tell = async (ask: () => Promise<unknown>): Promise<void> => {
    try {
      await ask();
    } catch (error) {
      if (!force || !(error instanceof AppError) || error.kind === "conflict") throw error;
      log.warn(`The monitor was not told: ${errorText(error)}`);
    }
  };
  await tell(() => requireDispensable(config, state));
  // before the monitor lets go of the node: a keeper that hears that it was removed stops PostgreSQL
  change(pgdata, { ...config, membership: "disabled" });
  try {
    await tell(async () => {
      await using monitor = openMonitor(config.monitor);
      await monitor.removeNode(state.nodeId ?? 0, true);
    });
  } catch (error) {
    change(pgdata, config);
    throw error;
  }
}

/**
 * The keeper turns to this monitor, which must know the node, or wait to be told of it.
 *
 * @returns whether it waits (roles/monitor.ts recover)
 * @throws {AppError} conflict: it does neither
 */
export async function enableMonitor(pgdata: string, uri: string): Promise<"known" | "recovering"> {
  parseUri(uri);
  const config = loadKeeperConfig(pgdata);
  const { identity } = requireState(nodePaths(pgdata));
  await using monitor = openMonitor(uri);
  const standing = await monitor.standingOf(identity);
  if (standing === "unknown") {
    throw new AppError("conflict", "that monitor does not know this node", {
      hint: "Run roles/monitor.ts recover there, which takes the whole formation over; a node that was removed from it comes back by keeper.ts drop and create.",
    });
  }
  const { membership, ...rest } = config;
  change(pgdata, { ...rest, monitor: uri, ...(membership && { membership: "rejoining" }) });
  return standing;
}
