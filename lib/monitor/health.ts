/** Probes: a fresh connection to a node's PostgreSQL. Never decides. */
import type { Health } from "../group/view.ts";
import { ping } from "../pg/ping.ts";

/**
 * Any answer of a PostgreSQL counts, a refusal too: "too many clients", "starting up", "shutting
 * down" and a refused login all come from a living server.
 *
 * @returns good or bad, never later than `timeoutMs`
 */
export async function probe(
  node: { readonly host: string; readonly port: number },
  timeoutMs: number,
): Promise<Health> {
  const { host, port } = node;
  const answer = await ping(
    { host, port, user: "pgautofailover_monitor", database: "postgres" },
    timeoutMs,
  );
  return answer === "answered" ? "good" : "bad";
}
