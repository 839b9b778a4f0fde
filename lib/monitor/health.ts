/** Probes: a fresh connection to a node's PostgreSQL. Never decides. */
import type { Health } from "../group/view.ts";
import { ping, pingVerified } from "../pg/ping.ts";
import type { TlsParams } from "../sys/sql.ts";

const VERIFYING: readonly (string | undefined)[] = ["verify-ca", "verify-full"];

/**
 * Any answer of a PostgreSQL counts, a refusal too: "too many clients", "starting up", "shutting
 * down" and a refused login all come from a living server.
 *
 * @param tls where certificates are verified, whoever has no good one is not the node
 * @returns good or bad, never later than `timeoutMs`
 */
export async function probe(
  node: { readonly host: string; readonly port: number },
  timeoutMs: number,
  tls: TlsParams,
): Promise<Health> {
  const { host, port } = node;
  const target = { host, port, user: "pgautofailover_monitor", database: "postgres" };
  const answer = await (VERIFYING.includes(tls["sslmode"])
    ? pingVerified(target, tls, timeoutMs)
    : ping(target, timeoutMs));
  return answer === "answered" ? "good" : "bad";
}
