/**
 * An application's side of PostgreSQL: a client that is given up at its deadline.
 *
 * Written on the driver itself and not on the product's wrapper, so that the tests can't share a
 * mistake with what they test.
 */
import postgres from "postgres";
import { within } from "./wait.ts";

export type Address = { host: string; port: number };
export type Row = Record<string, unknown>;
export type Login = {
  user: string;
  database?: string;
  password?: string;
  ssl?: Record<string, unknown>;
};

export type Client = {
  query(text: string, params?: readonly unknown[], timeoutMs?: number): Promise<Row[]>;
  close(): Promise<void>;
};

/** One connection at most, opened by the first query. After any error, close it and open another. */
export function openClient({ host, port }: Address, login: Login): Client {
  const sql = postgres({
    host,
    port,
    user: login.user,
    database: login.database ?? "postgres",
    ...(login.password === undefined ? {} : { password: login.password }),
    ...(login.ssl === undefined ? {} : { ssl: login.ssl }),
    max: 1,
    fetch_types: false,
    prepare: false,
    connect_timeout: 0.5,
    idle_timeout: undefined,
    max_lifetime: null,
    backoff: () => 0.01,
    onnotice: () => {},
    connection: { application_name: "test" },
  });
  return {
    async query(text, params = [], timeoutMs = 2000) {
      const pending = sql.unsafe(text, params as never[]);
      return await within(timeoutMs, `query on port ${port}`, Promise.resolve(pending));
    },
    close: () => sql.end({ timeout: 0 }),
  };
}

/** One question over a connection of its own. */
export async function ask(
  address: Address,
  login: Login,
  text: string,
  params: readonly unknown[] = [],
  timeoutMs = 2000,
): Promise<Row[]> {
  const client = openClient(address, login);
  try {
    return await client.query(text, params, timeoutMs);
  } finally {
    await client.close();
  }
}

/** SQLSTATE or the driver's own code, e.g. ECONNREFUSED; "" when the error has none. */
export function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}
