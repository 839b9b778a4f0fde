/** A node is taken out of its group from anywhere, and its end awaited. */
import { AppError } from "../sys/errors.ts";
import { waitUntil } from "../sys/retry.ts";
import type { MonitorClient } from "./client.ts";

const LOOK_EVERY_MS = 100;

export type RemovalOptions = {
  /** At once: the node is gone for good, or is told when it comes back. */
  readonly force: boolean;
  /** How long to wait until its keeper has stopped PostgreSQL and said so; undefined: not at all. */
  readonly waitMs: number | undefined;
};

/**
 * @returns whether the monitor has forgotten the node; false: its keeper is told, and has not confirmed yet
 * @throws {AppError} monitor: there is no such node; conflict: it is the primary of others; timeout: its keeper does not
 *   answer
 */
export async function removeNodeNamed(
  monitor: MonitorClient,
  formation: string,
  name: string,
  { force, waitMs }: RemovalOptions,
): Promise<boolean> {
  const { node_id: nodeId, group_id: groupId } = await monitor.node(formation, name);
  await monitor.removeNode(nodeId, force);
  if (force || waitMs === undefined) return force;
  const look = async (): Promise<true | undefined> => {
    const { nodes, policy } = await monitor.groupView(formation, groupId);
    const node = nodes.find((each) => each.nodeId === nodeId);
    if (node === undefined) return true;
    if (node.reportAgeMs < policy.nodeTimeoutMs) return undefined;
    throw new AppError("timeout", "the node is to be removed, but its keeper does not report", {
      detail: { node: name, silent_s: Math.round(node.reportAgeMs / 1000) },
      hint: "It stops as soon as it's back; if it's gone for good, run this again with --force.",
    });
  };
  return waitUntil(look, {
    timeoutMs: waitMs,
    everyMs: LOOK_EVERY_MS,
    what: `node "${name}" to stop its PostgreSQL`,
  });
}
