/** What groups of any size do when their primary is cut off from everybody. */
import { expect } from "bun:test";
import type { NetnsScene } from "../helpers/netns.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs, waitFor } from "../helpers/wait.ts";
import { HeldSession } from "./held_session.ts";

/** network_partition_timeout and the time that a stop may take (design: fencing). */
export const STOP_LIMIT_MS = 2500 + 1500;
/** node_timeout, one check and the promotion, on a busy machine. */
export const FAILOVER_LIMIT_MS = 9000;

export function stopped(node: Service, timeoutMs: number): Promise<true> {
  return waitFor(`PostgreSQL of ${node.label} to be stopped`, timeoutMs, () => {
    return node.postmaster() === undefined;
  }) as Promise<true>;
}

/** It stops itself, somebody else is promoted, and it comes back as a standby. */
export async function isolatedPrimary(
  scene: NetnsScene,
  { stopMs = STOP_LIMIT_MS, failoverMs = FAILOVER_LIMIT_MS } = {},
): Promise<void> {
  const { cluster, network, primary, writer } = scene;
  await using held = await HeldSession.open(primary);
  const mark = primary.mark();
  const data = primary.dataDirectoryIdentity();
  const cutMs = nowMs();
  network.isolate(primary.label);
  await stopped(primary, stopMs);
  expect(primary.log(mark)).toContain("this primary stops itself");
  const first = await cluster.waitFor("a write on another node", failoverMs, () =>
    writer.firstElsewhere(primary.port, cutMs),
  );
  expect(first.atMs - cutMs).toBeLessThan(failoverMs);
  expect(primary.postmaster()).toBeUndefined();
  expect(held.end).toBeDefined();
  await writer.waitForWrites(20, 5000);
  network.heal();
  const next = await cluster.healthy(30_000);
  expect(next).not.toBe(primary);
  expect(held.acknowledgedSince(first.atMs)).toBe(0);
  expect(await held.lostOn(next)).toBe(0);
  expect(primary.path(mark)).toEqual(["demote_timeout", "demoted", "catchingup", "secondary"]);
  expect(primary.dataDirectoryIdentity()).toBe(data); // Rewound, not copied.
}
