/** Whether this host is plugged in. */
import type { Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { delay } from "./clock.ts";

const LOOK_MS = 20;

/** Hosts that were reached over a network: neither this one, nor through its loopback interface. */
const elsewhere = new Set<string>();

export function noteReached(host: string, { localAddress, remoteAddress }: Socket): void {
  if (localAddress !== remoteAddress) elsewhere.add(host);
}

/** An interface without a link is not among those that are told. */
function isPluggedIn(): boolean {
  try {
    return Object.values(networkInterfaces()).some((addresses) =>
      addresses?.some((each) => !each.internal),
    );
  } catch {
    return true; // a service without AF_NETLINK isn't told
  }
}

/**
 * Comes back at once unless this host has no link to any network. What is sent meanwhile is not only
 * lost: the kernel then asks for the other's hardware address once a second, also when the link is
 * back, and all packets to it wait for that.
 *
 * @throws the signal's reason
 */
export async function pluggedIn(host: string, signal: AbortSignal): Promise<void> {
  while (elsewhere.has(host) && !isPluggedIn()) await delay(LOOK_MS, signal);
}
