/** Host names and addresses, as pg_hba.conf needs them. */
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

/** Lines that let a login in from this very machine: loopback and its own addresses. */
export function localHbaLines(database: string, user: string, auth: string): string[] {
  const addresses = [...LOOPBACK, ...ownAddresses().flatMap(hbaAddresses)];
  return addresses.map((address) => `host ${database} ${user} ${address} ${auth}`);
}

/** The address that others reach this machine at, when nobody has named one. */
export function defaultNodename(): string {
  return ownAddresses().find((address) => isIP(address) === 4) ?? "localhost";
}
