/** Host names and addresses, as pg_hba.conf needs them. */
import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import { networkInterfaces } from "node:os";

const LOOPBACK = ["127.0.0.1/32", "::1/128"];

/** @returns whether this name or address can only mean this machine's loopback interface */
export function isLoopback(host: string): boolean {
  return (
    host === "localhost" ||
    host === "::1" ||
    /^127(\.\d{1,3}){3}$/.test(host) ||
    host.startsWith("/")
  );
}

/** This machine's own addresses, loopback left out. */
export function ownAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80:"))
    .map(({ address }) => address);
}

/** The address fields of pg_hba.conf that mean exactly this host. */
export function hbaAddresses(host: string): string[] {
  if (isLoopback(host)) return LOOPBACK;
  const family = isIP(host);
  return [family === 4 ? `${host}/32` : family === 6 ? `${host}/128` : host];
}

/** The addresses of hosts that are known by name. */
export type HostBook = {
  /** As `hbaAddresses`; a name only as long as its addresses have not been told. */
  hbaAddresses(host: string): string[];
  /** Asks for addresses; those of a name that nothing is told of stay. Asked meanwhile it does nothing. */
  refresh(hosts: readonly string[]): Promise<void>;
};

type Lookup = (host: string) => Promise<readonly { readonly address: string }[]>;

/**
 * PostgreSQL itself would take a name only where forward and reverse lookup agree, and would look up each client that
 * comes before it gets to the line that the client needs: with DNS down, nobody would get in.
 */
export function makeHostBook(resolve: Lookup = (host) => lookup(host, { all: true })): HostBook {
  const known = new Map<string, string[]>();
  let asking: Promise<void> | undefined;
  const ask = async (hosts: readonly string[]): Promise<void> => {
    const names = hosts.filter((host) => !isLoopback(host) && isIP(host) === 0);
    await Promise.allSettled(
      names.map(async (name) => {
        const found = (await resolve(name)).map(({ address }) => address).sort();
        if (found.length > 0) known.set(name, found.flatMap(hbaAddresses));
      }),
    );
  };
  return {
    hbaAddresses: (host) => known.get(host) ?? hbaAddresses(host),
    refresh(hosts) {
      asking ??= ask(hosts).finally(() => {
        asking = undefined;
      });
      return asking;
    },
  };
}

/** The address fields of pg_hba.conf that mean this very machine. */
export const ownHbaAddresses = (): string[] => [
  ...LOOPBACK,
  ...ownAddresses().flatMap(hbaAddresses),
];

/** The networks of this machine's interfaces, as CIDR; only that one to which an address of ours belongs, if it does. */
export function localNetworks(host: string): string[] {
  const all = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80:"));
  const own = all.filter(({ address }) => address === host);
  return (own.length > 0 ? own : all).flatMap(({ cidr }) => (cidr === null ? [] : [cidr]));
}

/** The address that others reach this machine at, when nobody has named one. */
export function defaultNodename(): string {
  return ownAddresses().find((address) => isIP(address) === 4) ?? "localhost";
}
