/**
 * Connections to PostgreSQL: the only door to the `postgres` package.
 *
 * That package has no query timeout, queues silently while it reconnects, and leaves rejections unhandled in some states.
 * So one client of it is used for one connection only, over a socket that is ours: whatever goes wrong with the connection,
 * the client is thrown away, and the next query makes a new one. Every call is bounded on this side of the wire, since a
 * frozen server keeps its connections.
 */

import type { Socket } from "node:net";
import postgres from "postgres";
import { AppError, errorText, invariant } from "./errors.ts";
import { bounded, makeLane, raceAbort } from "./sql_bounds.ts";
import { makeSubscriptions, type Subscriptions } from "./sql_listen.ts";
import { passwordFor } from "./sql_password.ts";
import { openSocket } from "./sql_socket.ts";
import {
  type Connection,
  type ConnectionEvents,
  connectionError,
  quoteIdentifier,
  sqlState,
  type Target,
  where,
} from "./sql_target.ts";

export { passwordFor } from "./sql_password.ts";
export { quoteIdentifier, SSL_MODES, type Ssl, sqlState, type Target } from "./sql_target.ts";
export { sslOf, type TlsParams, tlsProblem } from "./sql_tls.ts";
export { NO_TLS_PARAMS, type ParsedUri, parseUri, tlsParamsOf, withUriParams } from "./sql_uri.ts";

/**
 * A row as PostgreSQL sent it. boolean, int2, int4, float, json, timestamptz (Date, milliseconds) and bytea (Buffer)
 * are parsed; everything else is its text: int8 (!), numeric, pg_lsn, arrays (`{a,b}`), names.
 */
export type Row = Record<string, unknown>;

/** How long a call may take, and what ends it before. */
export type CallOptions = {
  readonly timeoutMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
};

/** As `CallOptions`; a statement that comes again and again is worth preparing: its connection parses and plans it once. */
export type QueryOptions = CallOptions & { readonly prepare?: boolean | undefined };

/** Runs one statement with its parameters; see `Db`. */
export type Query = <R extends Row = Row>(
  text: string,
  params?: readonly unknown[],
  options?: QueryOptions,
) => Promise<R[]>;

/**
 * One connection, made when it is first needed and again after it was lost. Its calls run one after the other; the time
 * that a call waits for those before it counts as its own.
 *
 * Every call rejects with AppError postgres (`sqlState` tells why), with AppError timeout at its deadline (the connection
 * is then thrown away: nobody knows what the server does with the statement), or with the signal's reason.
 */
export type Db = AsyncDisposable & {
  /**
   * Runs one statement. Parameters are sent as text and get their type from the statement: null and undefined are NULL,
   * an array is a PostgreSQL array, a plain object is JSON, a bigint keeps all digits.
   */
  query: Query;
  /** Runs statements without parameters, separated by semicolons; they are one transaction unless they say otherwise. */
  script(text: string, options?: CallOptions): Promise<void>;
  /**
   * Runs `body` between BEGIN and COMMIT; when it throws, ROLLBACK, and its error is passed on. `timeoutMs` bounds the whole.
   * Only the `query` that body is given belongs to the transaction; other calls wait. Statements that don't wait for each
   * other go out together, in their order; after one that fails the others fail as well.
   */
  transaction<T>(body: (query: Query) => Promise<T>, options?: CallOptions): Promise<T>;
  /**
   * Subscribes on a connection of its own, which is checked every few seconds and made again when it was lost, until the
   * Db is closed. What was sent meanwhile is lost: `onListen` is called at every (re)subscription, to look for yourself.
   *
   * Rejects when the first attempt fails; the attempts go on all the same.
   */
  listen(channel: string, onNotify: (payload: string) => void, onListen: () => void): Promise<void>;
  /**
   * Subscribes on the connection of the calls, which costs no other: each one that is made from here on subscribes first.
   * For who calls often, since only a call makes one. `onNotify` gets "" for what may have been missed.
   */
  hear(channel: string, onNotify: (payload: string) => void): Promise<void>;
  /** The last call found no answer in time on a connection that was made for it and came up: the server is there, and busy. */
  readonly isSlow: boolean;
  /** Ends the connections at once, and whatever waits on them. */
  close(): Promise<void>;
};

/** The bound of a call that names none. */
const DEFAULT_TIMEOUT_MS = 2000;

/** ROLLBACK after a failed body, when no time is left. */
const ROLLBACK_MS = 1000;

/** What the server does to its side of a TCP connection, so that backends of a dead peer end within seconds. */
const SERVER_KEEPALIVE = {
  tcp_keepalives_idle: "2",
  tcp_keepalives_interval: "1",
  tcp_keepalives_count: "3",
  tcp_user_timeout: "5000",
};

/**
 * Makes a handle; nothing is sent before the first call.
 *
 * @param options.onClose called when an established connection is lost or ended by the server, within milliseconds; on
 *   the server's machine that is a notice of the postmaster's death. Not called for what this side ends itself.
 */
export function openDb(target: Target, options: { onClose?: (() => void) | undefined } = {}): Db {
  const closing = new AbortController();
  const lane = makeLane();
  let connection: Connection | undefined;
  let isSlow = false;
  let subscriptions: Subscriptions | undefined;
  let heard: { readonly channel: string; readonly onNotify: (payload: string) => void } | undefined;

  const connect = (): Connection => {
    const onNotify = (_: string, payload: string) => queueMicrotask(() => heard?.onNotify(payload));
    const made = openConnection(target, { onLost: options.onClose, onNotify });
    if (heard) void subscribe(made);
    return made;
  };

  /** Goes out before whatever comes next; without it the connection is of no use. */
  const subscribe = async (on: Connection): Promise<void> => {
    if (heard === undefined) return;
    try {
      await on.script(`listen ${quoteIdentifier(heard.channel)}`);
      heard.onNotify("");
    } catch {
      await on.end();
    }
  };

  /** Takes the lane, runs `work` on a live connection, and ends that connection if it did not finish in time. */
  const perform = <T>(
    work: (connection: Connection, remainingMs: () => number) => Promise<T>,
    { timeoutMs = DEFAULT_TIMEOUT_MS, signal: caller }: CallOptions = {},
  ): Promise<T> =>
    bounded(target, timeoutMs, [caller, closing.signal], async ({ signal, remainingMs }) => {
      const leave = await lane.enter(signal);
      try {
        const old = connection?.ended() ? undefined : connection;
        const mine = old ?? connect();
        connection = mine;
        isSlow = false;
        return await raceAbort(work(mine, remainingMs), signal, () => {
          isSlow = old === undefined && mine.reached();
          return mine.cut();
        });
      } finally {
        leave();
      }
    });

  const query: Query = (text, params = [], callOptions) =>
    perform((mine) => mine.query(text, params, callOptions?.prepare), callOptions);

  return {
    query,
    get isSlow() {
      return isSlow;
    },
    async script(text, callOptions) {
      await perform((mine) => mine.script(text), callOptions);
    },
    transaction: (body, callOptions) =>
      perform((mine, remainingMs) => runTransaction(mine, target, body, remainingMs), callOptions),
    listen(channel, onNotify, onListen) {
      if (closing.signal.aborted) return Promise.reject(closing.signal.reason);
      const open = (events: ConnectionEvents) => openConnection(target, events);
      subscriptions ??= makeSubscriptions(target, open, closing.signal);
      return subscriptions.add(channel, onNotify, onListen);
    },
    async hear(channel, onNotify) {
      heard = { channel, onNotify };
      if (connection && !connection.ended()) await perform(subscribe);
    },
    async close() {
      if (!closing.signal.aborted)
        closing.abort(connectionError("CONNECTION_ENDED", target, "closed on this side"));
      await Promise.all([connection?.end(), subscriptions?.end()]);
    },
    async [Symbol.asyncDispose]() {
      await this.close();
    },
  };
}

/** One statement on a fresh connection, which is closed afterwards. Errors as in `Db`. */
export async function queryOnce<R extends Row = Row>(
  target: Target,
  text: string,
  params: readonly unknown[] = [],
  options?: CallOptions,
): Promise<R[]> {
  const db = openDb(target);
  try {
    return await db.query<R>(text, params, options);
  } finally {
    await db.close();
  }
}

// --- One connection -------------------------------------------------------------------------------------------------

/** Text in, text out: what a value means is decided by the statement, never by this side. */
const asSent = (value: unknown) => value as string;
const PLAIN_TYPES = {
  json: {
    to: 114,
    from: [114, 3802],
    serialize: asSent,
    parse: (text: string) => JSON.parse(text),
  },
  boolean: { to: 16, from: [16], serialize: asSent, parse: (text: string) => text === "t" },
  date: { to: 1184, from: [1082, 1114, 1184], serialize: asSent, parse: parseTime },
  bytea: {
    to: 17,
    from: [17],
    serialize: asSent,
    parse: (text: string) => Buffer.from(text.slice(2), "hex"),
  },
};

function parseTime(text: string): Date | string {
  const time = new Date(text);
  // infinity, BC and the like have no Date.
  return Number.isNaN(time.getTime()) ? text : time;
}

function openConnection(target: Target, events: ConnectionEvents): Connection {
  const abandon = new AbortController();
  const tooLate = new AbortController();
  const connectTimer = setTimeout(() => {
    const reason = `not ready within ${target.connectTimeoutMs} ms`;
    tooLate.abort(connectionError("CONNECT_TIMEOUT", target, reason));
  }, target.connectTimeoutMs);
  let socket: Socket | undefined;
  let reached = false;
  let opened = false;
  let established = false;
  let over = false;
  let ending: Promise<void> | undefined;

  const tellLost = () => {
    if (established && !over) queueMicrotask(() => events.onLost?.());
    over = true;
  };

  const end = (isCut = false) => {
    over = true;
    clearTimeout(connectTimer);
    ending ??= (async () => {
      abandon.abort(connectionError("CONNECTION_ENDED", target, "closed on this side"));
      // What can't be delivered would keep the kernel trying for long after.
      if (isCut && !target.host.startsWith("/")) socket?.resetAndDestroy();
      await sql.end({ timeout: 0 });
      // The package has sent its good-bye; a peer that never answers must not keep the process alive.
      socket?.destroySoon();
      socket?.unref();
    })();
    return ending;
  };

  const openOnce = async () => {
    // The package would connect again by itself; a client is for one connection.
    if (opened || over)
      throw connectionError("CONNECTION_CLOSED", target, "the connection was lost");
    opened = true;
    const comeUp = AbortSignal.any([abandon.signal, tooLate.signal]);
    socket = await openSocket(target, comeUp, () => {
      reached = true;
    });
    const abort = () => socket?.destroy(tooLate.signal.reason);
    tooLate.signal.addEventListener("abort", abort, { once: true });
    socket.once("close", () => {
      tellLost();
      void end();
    });
    return socket;
  };

  const sql = postgres({
    host: target.host,
    port: target.port,
    user: target.user,
    database: target.database,
    pass: () => target.password ?? passwordFor(target) ?? "",
    // Already encrypted, or not to be.
    ssl: false,
    socket: openOnce,
    max: 1,
    fetch_types: false,
    // each statement says whether it's worth it
    prepare: true,
    connect_timeout: 0,
    idle_timeout: 0,
    max_lifetime: null,
    keep_alive: 0,
    backoff: 0,
    onnotice: () => {},
    // The first thing that a server tells after it has let us in.
    onparameter: () => {
      established = true;
      clearTimeout(connectTimer);
    },
    types: PLAIN_TYPES,
    connection: {
      application_name: target.applicationName,
      ...(target.host.startsWith("/") ? {} : SERVER_KEEPALIVE),
      ...target.settings,
    },
    // Not in the published types, but what its own `listen` uses.
    ...{ onnotify: events.onNotify, no_subscribe: true },
  } as unknown as postgres.Options<Record<string, never>>);

  /** A connection that failed to come up, or broke, is over; a statement that failed is not. */
  const settle = async <T>(work: Promise<T>): Promise<T> => {
    try {
      return await work;
    } catch (error) {
      if (!(error instanceof postgres.PostgresError) || isFatal(error) || !established) {
        tellLost();
        await end();
      }
      throw toAppError(error, target);
    }
  };

  return {
    async query<R extends Row>(text: string, params: readonly unknown[], prepare = false) {
      // `simple` is not in the published types of these options; without it a text could be several statements.
      const extended = { simple: false, prepare } as postgres.UnsafeQueryOptions;
      const rows = await settle(sql.unsafe(text, params.map(encodeParameter), extended));
      return Array.from(rows) as unknown as R[];
    },
    async script(text) {
      const result: { command?: string } | { command?: string }[] = await settle(
        sql.unsafe(text).simple(),
      );
      const last = Array.isArray(result)
        ? (result.at(-1) as { command?: string } | undefined)
        : undefined;
      return last?.command ?? (result as { command?: string }).command ?? "";
    },
    reached: () => reached,
    ended: () => over,
    end: () => end(),
    cut: () => end(true),
  };
}

/** After such an error the server ends the session. */
function isFatal({ severity }: postgres.PostgresError): boolean {
  return severity === "FATAL" || severity === "PANIC";
}

function encodeParameter(value: unknown): string | null {
  if (value === null || value === undefined) return null;
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "t" : "f";
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  if (value instanceof Date) return value.toISOString();
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString("hex")}`;
  if (Array.isArray(value)) return `{${value.map(encodeElement).join(",")}}`;
  return JSON.stringify(value);
}

function encodeElement(value: unknown): string {
  const text = encodeParameter(value);
  if (text === null) return "NULL";
  return Array.isArray(value) ? text : `"${text.replace(/[\\"]/g, "\\$&")}"`;
}

// --- Transactions ---------------------------------------------------------------------------------------------------

/** The package's own `begin` writes to a socket that is gone when the connection is lost; this doesn't. */
async function runTransaction<T>(
  connection: Connection,
  target: Target,
  body: (query: Query) => Promise<T>,
  remainingMs: () => number,
): Promise<T> {
  let open = true;
  const query: Query = async (text, params = [], { timeoutMs, signal: caller, prepare } = {}) => {
    invariant(open, "a query came after the end of its transaction");
    return bounded(target, timeoutMs ?? remainingMs(), [caller], ({ signal }) =>
      raceAbort(connection.query(text, params, prepare), signal, () => connection.cut()),
    );
  };
  // not waited for: the first statement goes out with it
  const begun = connection.script("begin");
  begun.catch(() => {});
  let result: T;
  try {
    result = await body(query);
    await begun;
  } catch (error) {
    open = false;
    await rollBack(connection, target);
    throw error;
  }
  open = false;
  const done = await connection.script("commit");
  if (done !== "COMMIT") {
    const detail = { code: "25P02", ...where(target) };
    throw new AppError("postgres", "a statement had failed, so nothing was committed", { detail });
  }
  return result;
}

async function rollBack(connection: Connection, target: Target): Promise<void> {
  if (connection.ended()) return;
  try {
    await bounded(target, ROLLBACK_MS, [], ({ signal }) =>
      raceAbort(connection.script("rollback"), signal, () => connection.cut()),
    );
  } catch {
    // The body's own error is the one to tell; without a connection the server rolls back by itself.
    await connection.end();
  }
}

function toAppError(error: unknown, target: Target): unknown {
  if (error instanceof AppError) return error;
  if (error instanceof postgres.PostgresError) {
    return new AppError("postgres", error.message, {
      detail: { code: error.code, ...where(target), server_detail: error.detail || undefined },
      hint: error.hint || undefined,
      cause: error,
    });
  }
  const code = sqlState(error);
  // Without a code it is no error of the connection but a bug: of ours or of the package.
  if (code === undefined) return error;
  return new AppError("postgres", "no connection to PostgreSQL", {
    detail: { code, ...where(target), reason: errorText(error) },
    cause: error,
  });
}
