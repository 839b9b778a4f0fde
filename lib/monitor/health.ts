/** Probes: a fresh connection to a node's PostgreSQL. Never decides. */
import type { Health } from "../group/view.ts";
import { queryOnce, sqlState, type Target } from "../sys/sql.ts";

/**
 * Any answer of a PostgreSQL counts, a refusal too: "too many clients", "starting up", "shutting
 * down" and a refused login all come from a living server.
 *
 * @returns good or bad, never later than `timeoutMs`
 */
export async function probe(
  node: { host: string; port: number },
  timeoutMs: number,
): Promise<Health> {
  const target: Target = {
    host: node.host,
    port: node.port,
    user: "pgautofailover_monitor",
    database: "postgres",
    applicationName: "pg_auto_failover health check",
    connectTimeoutMs: timeoutMs,
  };
  try {
    await queryOnce(target, "select 1", [], { timeoutMs });
    return "good";
  } catch (error) {
    // SQLSTATEs have five characters; the codes of a network that fails are longer
    return /^[0-9A-Z]{5}$/.test(sqlState(error) ?? "") ? "good" : "bad";
  }
}
