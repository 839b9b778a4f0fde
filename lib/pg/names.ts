/** Host names in pg_hba.conf: PostgreSQL lets one in only when its address leads back to it. */
import { lookup, lookupService } from "node:dns/promises";
import { isIP } from "node:net";
import { isLoopback } from "./addresses.ts";

export type Lookups = {
  readonly addressesOf: (name: string) => Promise<readonly string[]>;
  readonly nameOf: (address: string) => Promise<string>;
};

/** By the system's own functions, as PostgreSQL does: /etc/hosts counts as well as DNS. */
const SYSTEM: Lookups = {
  addressesOf: async (name) =>
    (await lookup(name, { all: true })).map(({ address }: { address: string }) => address),
  nameOf: async (address) => (await lookupService(address, 0)).hostname,
};

const same = (one: string, other: string): boolean =>
  one.replace(/\.$/, "").toLowerCase() === other.replace(/\.$/, "").toLowerCase();

/**
 * What is wrong with a host name as seen from this machine; never throws.
 *
 * @param host a name, or an address, with which nothing can be wrong
 * @returns a sentence with what was found; undefined when both lookups agree
 * @see PostgreSQL 15 docs, "The pg_hba.conf File", address
 */
export async function nameProblem(
  host: string,
  { timeoutMs, lookups = SYSTEM }: { readonly timeoutMs: number; readonly lookups?: Lookups },
): Promise<string | undefined> {
  if (isLoopback(host) || isIP(host) !== 0) return undefined;
  const { promise: late, resolve } = Promise.withResolvers<string>();
  const timer = setTimeout(
    () => resolve(`looking up "${host}" takes longer than ${timeoutMs} ms`),
    timeoutMs,
  );
  try {
    return await Promise.race([findProblem(host, lookups), late]);
  } finally {
    clearTimeout(timer);
  }
}

async function findProblem(host: string, lookups: Lookups): Promise<string | undefined> {
  const addresses = await lookups.addressesOf(host).catch(() => []);
  if (addresses.length === 0) return `"${host}" has no address`;
  const inward = addresses.find(isLoopback);
  if (inward !== undefined) return `"${host}" is ${inward}, which only this machine can mean`;
  const found = await Promise.all(
    [...new Set(addresses)].map(async (address) => {
      const name = await lookups.nameOf(address).catch(() => address);
      if (same(name, host)) return [];
      return [`${address} is ${name === address ? "nameless" : `"${name}"`}`];
    }),
  );
  const wrong = found.flat();
  return wrong.length === 0
    ? undefined
    : `"${host}" is ${addresses.join(" and ")}, but ${wrong.join(", and ")}`;
}
