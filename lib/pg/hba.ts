/** Our block of pg_hba.conf, between markers at its top: the first line that matches decides. */
import { join } from "node:path";
import { localNetworks, ownHbaAddresses } from "./addresses.ts";
import { hbaFile } from "./config_files.ts";
import { rewriteConfigFile } from "./settings.ts";

const BEGIN = "# pg_auto_failover: begin. Edits are lost down to the line that says end.";
const END = "# pg_auto_failover: end";
/** The map of pg_ident.conf that says which certificates a login may have. */
const IDENT_MAP = "pgautofailover";
const isBegin = (line: string): boolean => line.startsWith("# pg_auto_failover: begin");
const isEnd = (line: string): boolean => line.startsWith(END);

/** The operator's lines. Where the end marker is lost, all but those that we are about to write. */
function withoutBlocks(lines: readonly string[], ours: readonly string[]): string[] {
  const kept: string[] = [];
  for (let index = 0; index < lines.length; index++) {
    const line = lines[index] ?? "";
    if (isBegin(line)) {
      const next = lines.findIndex((later, at) => at > index && (isEnd(later) || isBegin(later)));
      if (next >= 0 && isEnd(lines[next] ?? "")) {
        index = next;
        continue;
      }
      while (ours.includes(lines[index + 1] ?? "")) {
        index++;
      }
    } else if (!isEnd(line)) {
      kept.push(line);
    }
  }
  return kept;
}

/**
 * pg_hba.conf with our lines as its first ones, and without any older block of ours.
 *
 * @throws {RangeError} a line has a line break in it, or is one of the markers
 */
export function withHbaBlock(text: string, lines: readonly string[]): string {
  for (const line of lines) {
    if (/[\r\n\0]/.test(line) || isBegin(line) || isEnd(line)) {
      throw new RangeError(`not one line for pg_hba.conf: ${JSON.stringify(line)}`);
    }
  }
  const kept = withoutBlocks(text.split("\n"), lines);
  return [BEGIN, ...lines, END, ...kept].join("\n");
}

/** How a server of ours lets others in. */
export type Access = {
  /** How logins are checked; trust: those from this machine not at all. */
  readonly auth: string;
  /** hostssl: by TLS only. */
  readonly type: "host" | "hostssl";
  readonly lan: boolean;
};

/** How who comes from another machine is checked. Certificates are the nodes' own: people have passwords. */
const methodFor = ({ auth }: Access, who: "node" | "anybody"): string =>
  auth === "trust" || (auth === "cert" && who === "anybody")
    ? "scram-sha-256"
    : auth === "cert"
      ? `cert map=${IDENT_MAP}`
      : auth;

/** Lines that let a node's login in from there. */
export const nodeLines = (
  access: Access,
  user: string,
  addresses: readonly string[],
  databases: readonly string[],
): string[] =>
  addresses.flatMap((address) =>
    databases.map(
      (database) => `${access.type} ${database} ${user} ${address} ${methodFor(access, "node")}`,
    ),
  );

/** Where TLS is demanded of a node's login, no line of the operator's further down lets it in without. */
export const tlsOnlyLines = ({ type }: Access, user: string): string[] =>
  type === "hostssl" ? [`hostnossl all,replication ${user} all reject`] : [];

/** Lines that let a login in from this machine, and where that is wanted from the local network. */
export function localLines(
  access: Access,
  nodename: string,
  user: string,
  databases: readonly string[],
): string[] {
  const trusted = access.auth === "trust";
  const method = trusted ? "trust" : methodFor(access, "anybody");
  // nobody listens in on the loopback interface
  const type = trusted ? "host" : access.type;
  const lan = access.lan ? localNetworks(nodename) : [];
  return databases.flatMap((database) => [
    ...ownHbaAddresses().map((address) => `${type} ${database} ${user} ${address} ${method}`),
    ...lan.map(
      (net) => `${access.type} ${database} ${user} ${net} ${methodFor(access, "anybody")}`,
    ),
  ]);
}

/**
 * Writes our block; the rest of the file stays as it is. In force after a reload.
 *
 * @param lines whole lines such as `host all all 127.0.0.1/32 trust`
 * @returns whether the file changed
 */
export function writeHbaBlock(pgdata: string, lines: readonly string[]): boolean {
  return rewriteConfigFile(hbaFile(pgdata), (text) => withHbaBlock(text, lines));
}

/**
 * Writes our block of pg_ident.conf: who shows a certificate with one of these names is let in as `user`.
 *
 * @param names common names, or a regular expression behind a slash
 * @returns whether the file changed
 */
export function writeIdentBlock(pgdata: string, names: readonly string[], user: string): boolean {
  const lines = names.map((name) => `${IDENT_MAP} "${name.replaceAll('"', '""')}" ${user}`);
  return rewriteConfigFile(join(pgdata, "pg_ident.conf"), (text) => withHbaBlock(text, lines));
}
