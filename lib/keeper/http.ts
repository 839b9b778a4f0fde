/** What a keeper answers to load balancers, probes and scrapes: pure, from what its loop knows at the moment. */
import { canTakeWrites, NODE_STATES, type NodeState, PROMISED } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import type { SyncSet } from "../group/view.ts";
import type { Observation } from "../pg/local.ts";
import type { KeeperState } from "../shapes.ts";
import { json, type Reply } from "../sys/http.ts";
import { METRICS_TYPE, type Metric, renderMetrics } from "../sys/metrics.ts";
import { roleOf } from "./report.ts";

export type NodeHealth = {
  readonly formation: string;
  readonly host: string;
  readonly port: number;
  readonly state: KeeperState;
  readonly postgres: "up" | "down" | "hung";
  /** The goal of the transition that is under way. */
  readonly underWay: NodeState | undefined;
  /** The fence has closed, or whether it has isn't known yet: somebody else may be taking writes. */
  readonly fenced: boolean;
  /** The keeper is about to end. */
  readonly closing: boolean;
  readonly seen: Observation | undefined;
  /** This standby streams, or has until just now. */
  readonly streams: boolean;
  /** Since the last report that was answered had been sent; undefined: not since the keeper's start, or the fence. */
  readonly contactAgeMs: number | undefined;
  /** bytes; the primary's position, as the monitor last told it */
  readonly primaryLsn: bigint | undefined;
  readonly startFailures: number;
  readonly syncInForce: SyncSet | null;
  readonly reports: { readonly answered: number; readonly failed: number; readonly tookMs: number };
};

/** Whoever connects may write now, and will find here what was committed last. */
export function isWritable(health: NodeHealth): boolean {
  const { state, seen, underWay } = health;
  return (
    [state.state, state.goal, underWay ?? state.state].every(canTakeWrites) &&
    health.postgres === "up" &&
    seen?.inRecovery === false &&
    !health.fenced &&
    !health.closing
  );
}

/** bytes; undefined: not known */
export function replayLagOf({ seen, primaryLsn }: NodeHealth): bigint | undefined {
  if (!seen?.inRecovery || seen.replayLsn === undefined || primaryLsn === undefined)
    return undefined;
  // without the monitor its word grows old, what has been received doesn't
  const last = primaryLsn > seen.lsn ? primaryLsn : seen.lsn;
  return last > seen.replayLsn ? last - seen.replayLsn : 0n;
}

/** A standby that has caught up, and goes on. */
export function isReadable(health: NodeHealth, lagMax: bigint | undefined): boolean {
  const { state, seen } = health;
  const lag = replayLagOf(health);
  return (
    (state.state === "secondary" || PROMISED.includes(state.state)) &&
    health.postgres === "up" &&
    seen?.inRecovery === true &&
    health.streams &&
    !health.closing &&
    (lagMax === undefined || (lag !== undefined && lag <= lagMax))
  );
}

const UNITS: readonly string[] = ["B", "KB", "MB", "GB", "TB"];

/** @returns bytes; undefined: not a size such as 1048576, 1024kB or 16MB */
export function parseSize(text: string): bigint | undefined {
  const [, count, unit = "B"] = /^(\d{1,18}) ?([kMGT]?B)?$/i.exec(text) ?? [];
  if (count === undefined) return undefined;
  return BigInt(count) * 1024n ** BigInt(UNITS.indexOf(unit.toUpperCase()));
}

function metricsOf(health: NodeHealth): Metric[] {
  const { state, seen, syncInForce, reports } = health;
  const node = { formation: health.formation, group: state.groupId ?? 0, node: state.name ?? "" };
  const one = (
    name: string,
    help: string,
    value: number | bigint | boolean | undefined,
    type: Metric["type"] = "gauge",
  ): Metric => ({ name: `pg_auto_failover_${name}`, type, help, samples: [[node, value]] });
  const oneHot = (name: string, help: string, is: NodeState): Metric => ({
    name: `pg_auto_failover_${name}`,
    type: "gauge",
    help,
    samples: NODE_STATES.map((each) => [{ ...node, state: each }, each === is] as const),
  });
  return [
    oneHot("node_state", "Whether this is the node's state.", state.state),
    oneHot("node_goal", "Whether this is the state that the monitor has assigned.", state.goal),
    one("node_is_primary", "Whether the node takes writes, as /primary says.", isWritable(health)),
    one(
      "node_is_standby",
      "Whether the node serves reads as a standby, as /replica says.",
      isReadable(health, undefined),
    ),
    one("postgres_up", "Whether PostgreSQL runs and answers.", health.postgres === "up"),
    one(
      "postgres_start_failures",
      "Starts that failed, one after the other.",
      health.startFailures,
    ),
    one("timeline", "PostgreSQL's timeline.", seen?.timeline),
    one("lsn_bytes", "Flushed on a primary, received or replayed on a standby.", seen?.lsn),
    one(
      "replay_lag_bytes",
      "What a standby has yet to replay of the primary's WAL.",
      replayLagOf(health),
    ),
    one(
      "monitor_contact_age_seconds",
      "Since the last report that the monitor has answered.",
      health.contactAgeMs === undefined ? undefined : health.contactAgeMs / 1000,
    ),
    one("reports_total", "Reports that the monitor has answered.", reports.answered, "counter"),
    one("report_failures_total", "Reports that it has not.", reports.failed, "counter"),
    one("report_seconds_total", "Waited for its answers.", reports.tookMs / 1000, "counter"),
    one("sync_standbys_in_force", "Standbys that a commit waits for.", syncInForce?.number),
    {
      name: "pg_auto_failover_sync_member",
      type: "gauge",
      help: "Nodes of the synchronous set in force.",
      samples: (syncInForce?.members ?? []).map((id) => [{ ...node, node_id: id }, 1] as const),
    },
  ];
}

function told(health: NodeHealth): Readonly<Record<string, unknown>> {
  const { state, seen } = health;
  return {
    name: state.name,
    formation: health.formation,
    group: state.groupId,
    host: health.host,
    port: health.port,
    state: state.state,
    goal: state.goal,
    role: roleOf(state.state),
    postgres: health.postgres,
    timeline: seen?.timeline,
    lsn: seen && formatLsn(seen.lsn),
    lagBytes: replayLagOf(health),
  };
}

/** Paths as load balancers are configured for them elsewhere. @returns undefined: there is no such path */
export function nodeReply(
  health: NodeHealth,
  path: string,
  query: URLSearchParams,
): Reply | undefined {
  if (path === "/metrics")
    return { status: 200, type: METRICS_TYPE, body: renderMetrics(metricsOf(health)) };
  const lag = query.get("lag");
  const lagMax = lag === null ? undefined : parseSize(lag);
  if (lag !== null && lagMax === undefined)
    return json(400, { error: `lag takes bytes, or a size such as 16MB, not "${lag}"` });
  const answers: Readonly<Record<string, () => boolean>> = {
    "/": () => isWritable(health),
    "/primary": () => isWritable(health),
    "/read-write": () => isWritable(health),
    "/replica": () => isReadable(health, lagMax),
    "/read-only": () => isWritable(health) || isReadable(health, lagMax),
    "/readiness": () => isWritable(health) || isReadable(health, lagMax),
    "/health": () => health.postgres === "up",
    // that there is an answer is the answer
    "/liveness": () => true,
  };
  if (!Object.hasOwn(answers, path)) return undefined;
  return json(answers[path]?.() ? 200 : 503, told(health));
}
