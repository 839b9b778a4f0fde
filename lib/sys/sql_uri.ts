/** Connection URIs, as libpq reads them. */

import { AppError } from "./errors.ts";
import { currentUser } from "./user.ts";

/** What a URI says; what it leaves out is libpq's default. */
export type ParsedUri = {
  host: string;
  port: number;
  user: string;
  database: string;
  password?: string;
  /** The query's parameters, e.g. `sslmode`. */
  params: Record<string, string>;
};

const SHAPE =
  /^postgres(?:ql)?:\/\/(?:([^@/?#]*)@)?(\[[^\]]*\]|[^:/?#]*)(?::([^/?#]*))?(?:\/([^?#]*))?(?:\?([^#]*))?$/;

/**
 * Reads `postgres://user:password@host:port/database?key=value`, every part optional: localhost, 5432, this process's
 * user, a database of the user's name. A percent-encoded path as host, or `?host=`, is a Unix socket's directory.
 *
 * @throws {AppError} usage: not such a URI, several hosts, a port out of range
 * @see PostgreSQL 15 docs, "Connection URIs"
 */
export function parseUri(uri: string): ParsedUri {
  const match = SHAPE.exec(uri.trim());
  if (match === null) throw bad("not a PostgreSQL connection string");
  const [, login = "", rawHost = "", rawPort = "", rawDatabase = "", rawQuery = ""] = match;
  const params: Record<string, string> = {};
  for (const pair of rawQuery.split("&").filter((part) => part !== "")) {
    const at = pair.indexOf("=");
    if (at < 1) throw bad("its query is not a list of key=value");
    params[decode(pair.slice(0, at))] = decode(pair.slice(at + 1));
  }
  const take = (key: string) => {
    const value = params[key];
    delete params[key];
    return value || undefined;
  };
  const colon = login.indexOf(":");
  const written = (text: string) => decode(text) || undefined;
  const host = take("host") ?? written(rawHost.replace(/^\[|\]$/g, "")) ?? "localhost";
  if (host.includes(",")) throw bad("it names several hosts");
  const user = take("user") ?? written(colon < 0 ? login : login.slice(0, colon)) ?? currentUser();
  const password = take("password") ?? (colon < 0 ? undefined : written(login.slice(colon + 1)));
  const database = take("dbname") ?? written(rawDatabase) ?? user;
  const port = portNumber(take("port") ?? rawPort);
  return { host, port, user, database, ...(password === undefined ? {} : { password }), params };
}

/** Takes away what a URI says of encryption, for `withUriParams`. */
export const NO_TLS_PARAMS = {
  sslmode: undefined,
  sslrootcert: undefined,
  sslcrl: undefined,
  sslcert: undefined,
  sslkey: undefined,
};

/** What a URI says of whom it trusts: clients that are sent elsewhere by who answers there verify as much. */
export function tlsParamsOf(uri: string): Record<string, string> {
  const { params } = parseUri(uri);
  const keys = ["sslmode", "sslrootcert", "sslcrl"];
  return Object.fromEntries(Object.entries(params).filter(([key]) => keys.includes(key)));
}

/**
 * The URI with these parameters; undefined takes one away.
 *
 * @param instead also where the URI says something else
 */
export function withUriParams(
  uri: string,
  params: Readonly<Record<string, string | undefined>>,
  instead = false,
): string {
  parseUri(uri);
  const [start = "", query = ""] = uri.trim().split(/\?(.*)/s);
  const there = new Map(
    query
      .split("&")
      .filter((pair) => pair !== "")
      .map((pair) => [decode(pair.split("=")[0] ?? ""), pair]),
  );
  for (const [key, value] of Object.entries(params)) {
    if (there.has(key) && !instead) continue;
    if (value === undefined) there.delete(key);
    else there.set(key, `${key}=${encodeURIComponent(value)}`);
  }
  return there.size === 0 ? start : `${start}?${[...there.values()].join("&")}`;
}

function portNumber(text: string): number {
  if (text === "") return 5432;
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65535) throw bad("its port is not a number from 1 to 65535");
  return port;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw bad("it has a % that is not followed by two hexadecimal digits");
  }
}

/** The URI itself is not repeated: it may hold a password in a place where nobody would look for one. */
function bad(reason: string): AppError {
  return new AppError("usage", "bad connection string", {
    detail: { reason },
    hint: "It looks like postgres://user@host:5432/database; special characters are written as %XX.",
  });
}
