/** libpq connection strings for a formation, and for keepers. */

export const URI_FORMATS = ["libpq", "keyword", "jdbc", "json"] as const;
export type UriFormat = (typeof URI_FORMATS)[number];

export type UriParts = {
  readonly hosts: readonly { readonly host: string; readonly port: number }[];
  readonly database: string;
  readonly user?: string | undefined;
  readonly parameters: Readonly<Record<string, string>>;
};

const bracketed = (host: string): string => (host.includes(":") ? `[${host}]` : host);
const quoted = (value: string): string =>
  /^[^\s'\\]+$/.test(value) ? value : `'${value.replaceAll(/['\\]/g, "\\$&")}'`;

/**
 * One connection string that finds the writable server among all hosts.
 *
 * @see PostgreSQL 15 docs, "Connection Strings"; JDBC takes `targetServerType` instead
 */
export function formationUri(parts: UriParts, format: UriFormat = "libpq"): string {
  const { hosts, database, user, parameters } = parts;
  const list = hosts.map(({ host, port }) => `${bracketed(host)}:${port}`).join(",");
  const query = (pairs: Readonly<Record<string, string>>) =>
    Object.entries(pairs)
      .map(([key, value]) => `${key}=${encodeURIComponent(value)}`)
      .join("&");
  switch (format) {
    case "libpq": {
      const login = user === undefined ? "" : `${encodeURIComponent(user)}@`;
      return `postgres://${login}${list}/${encodeURIComponent(database)}?${query(parameters)}`;
    }
    case "jdbc": {
      const { target_session_attrs: _, ...rest } = parameters;
      const login = user === undefined ? {} : { user };
      const pairs = query({ targetServerType: "primary", ...login, ...rest });
      return `jdbc:postgresql://${list}/${encodeURIComponent(database)}?${pairs}`;
    }
    case "keyword":
      return Object.entries({
        host: hosts.map(({ host }) => host).join(","),
        port: hosts.map(({ port }) => port).join(","),
        dbname: database,
        ...(user === undefined ? {} : { user }),
        ...parameters,
      })
        .map(([key, value]) => `${key}=${quoted(value)}`)
        .join(" ");
    case "json":
      return JSON.stringify({ hosts, database, user, parameters });
  }
}
