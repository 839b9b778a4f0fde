/** Where to connect, and the errors that name it. */

import { AppError, type Detail } from "./errors.ts";

/** libpq's modes of encryption, from none to a verified host. */
export const SSL_MODES = ["disable", "prefer", "require", "verify-ca", "verify-full"] as const;

/**
 * Encryption, with libpq's modes; `ca`, `crl`, `cert` and `key` are PEM texts, not paths.
 *
 * `require` does not verify, `verify-ca` checks the chain (with `ca`, else the system's authorities), `verify-full` also
 * that the certificate names the host. `prefer` goes on in clear text when the server has no TLS.
 */
export type Ssl = {
  readonly mode: (typeof SSL_MODES)[number];
  readonly ca?: string | undefined;
  readonly crl?: string | undefined;
  readonly cert?: string | undefined;
  readonly key?: string | undefined;
};

/** Where and as whom to connect. */
export type Target = {
  /** A name or address; a path is the directory of the server's Unix socket. */
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
  /** Without one, `passwordFor` is asked when the server wants it. */
  readonly password?: string | undefined;
  /** A file in which `passwordFor` looks last. */
  readonly passfile?: string | undefined;
  readonly applicationName: string;
  /** From the first packet until the server is ready for queries. */
  readonly connectTimeoutMs: number;
  /** A function is asked for each connection. */
  readonly ssl?: Ssl | (() => Ssl) | undefined;
  /** Startup parameters, e.g. `statement_timeout`. */
  readonly settings?: Readonly<Record<string, string>> | undefined;
};

/** The target as the values of an error. */
export function where({ host, port }: Target): Detail {
  return { host, port };
}

/** There is no connection, or no longer; `code` is what `sqlState` yields. */
export function connectionError(code: string, target: Target, reason: string): AppError {
  return new AppError("postgres", "no connection to PostgreSQL", {
    detail: { code, ...where(target), reason },
  });
}

/**
 * What a failed call failed of: a SQLSTATE, or ECONNREFUSED, ECONNRESET, ENOENT, CONNECT_TIMEOUT, CONNECTION_CLOSED (lost
 * or ended by the server), CONNECTION_ENDED (closed here), DEADLINE, …; undefined when `error` is not of a connection.
 */
export function sqlState(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const code =
    error instanceof AppError ? error.detail["code"] : (error as { code?: unknown }).code;
  if (typeof code === "string") return code;
  return error.cause === undefined ? undefined : sqlState(error.cause);
}

/** `name` as an SQL identifier, quoted. */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** One connection from its making to its end; it is never made again. */
export type Connection = {
  /** One statement with parameters: its rows. @param prepare keep it parsed and planned */
  query<R extends Record<string, unknown>>(
    text: string,
    params: readonly unknown[],
    prepare?: boolean,
  ): Promise<R[]>;
  /** Statements without parameters: the last one's command tag, e.g. "COMMIT". */
  script(text: string): Promise<string>;
  /** It was accepted on the other side, which does not mean that anybody there has looked at it. */
  reached(): boolean;
  ended(): boolean;
  /** Ends it at once; what is under way rejects. */
  end(): Promise<void>;
  /** The same where the other side doesn't answer: it's told nothing but that the connection is void. */
  cut(): Promise<void>;
};

/** What a connection tells by itself. */
export type ConnectionEvents = {
  /** It was established, and the other side or the network ended it. */
  readonly onLost?: (() => void) | undefined;
  readonly onNotify?: ((channel: string, payload: string) => void) | undefined;
};
