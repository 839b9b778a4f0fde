/**
 * The node's own password file, in libpq's format: with what it replicates, and with what it logs in
 * at the monitor. PostgreSQL's own programs are told its name, and so never a password.
 */
import { join } from "node:path";
import { type NodePaths, ownFileError } from "../config.ts";
import { tlsParams } from "../pg/tls.ts";
import type { KeeperConfig, Secret } from "../shapes.ts";
import { readIfExists, writeDurably } from "../sys/files.ts";
import { passfileLine, passwordIn } from "../sys/passfile.ts";
import { parseUri, withUriParams } from "../sys/sql.ts";

export const REPLICATOR = "pgautofailover_replicator";

/** Marks the line of the replication password with the secret's id, which libpq takes for a comment. */
const MARK = "# pgautofailover_replicator ";
const ANYWHERE = { host: "*", port: "*", database: "*" };
const MONITOR_LOGIN = "autoctl_node";

export const passfileOf = (paths: NodePaths): string => join(paths.directory, "pgpass");

/** The monitor's URI with all that logging in there takes, so that no environment is needed. */
export const withMonitorLogin = (config: KeeperConfig, paths: NodePaths): KeeperConfig => {
  const { tls, auth, monitor } = config;
  const mode = parseUri(monitor).params["sslmode"];
  const { sslmode: _, ...files } = tlsParams(tls, auth === "cert");
  const verified = mode === "verify-ca" || mode === "verify-full";
  const params = { ...(verified || auth === "cert" ? files : {}), passfile: passfileOf(paths) };
  return { ...config, monitor: withUriParams(monitor, params) };
};

/** The replication password that this node has; undefined before it was told one. */
export function readSecret(paths: NodePaths): Secret | undefined {
  const path = passfileOf(paths);
  const mark = linesOf(path).find((line) => line.startsWith(MARK));
  const key = { host: "any", port: 1, database: "postgres", user: REPLICATOR };
  const password = mark === undefined ? undefined : passwordIn(path, key);
  return mark === undefined || password === undefined
    ? undefined
    : { id: mark.slice(MARK.length), password };
}

/** Keeps the password of the group. @throws {AppError} state: it can't be written */
export function writeSecret(paths: NodePaths, secret: Secret): void {
  const others = linesOf(passfileOf(paths)).filter(
    (line) => !line.startsWith(MARK) && !line.includes(`:${REPLICATOR}:`),
  );
  write(paths, [
    `${MARK}${secret.id}`,
    passfileLine({ ...ANYWHERE, user: REPLICATOR }, secret.password),
    ...others,
  ]);
}

/** Keeps the password of the monitor's login, so that the keeper's next start needs no environment. */
export function writeMonitorPassword(paths: NodePaths, password: string): void {
  const others = linesOf(passfileOf(paths)).filter((line) => !line.includes(`:${MONITOR_LOGIN}:`));
  write(paths, [...others, passfileLine({ ...ANYWHERE, user: MONITOR_LOGIN }, password)]);
}

const linesOf = (path: string): string[] =>
  (readIfExists(path) ?? "").split("\n").filter((line) => line !== "");

function write(paths: NodePaths, lines: readonly string[]): void {
  const path = passfileOf(paths);
  try {
    writeDurably(path, `${lines.join("\n")}\n`, 0o600);
  } catch (cause) {
    throw ownFileError(path, cause);
  }
}
