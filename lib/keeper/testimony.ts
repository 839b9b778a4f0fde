/** What this node keeps for a monitor that loses its memory, and what it says to one that has. */
import { parseLsn } from "../group/lsn.ts";
import type { SyncSet } from "../group/view.ts";
import type { MonitorClient } from "../monitor/client.ts";
import { type Memory, parseMemory, type Report } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import { readIfExists, writeDurablyBeside } from "../sys/files.ts";
import { historyOf } from "./ancestry.ts";
import { log, type Node, ownId, recallProof, syncInForce } from "./node.ts";

/**
 * What was changed at the monitor later than this before its loss may be forgotten, and what changes no answer, such as a
 * node of another group, for as long as reports are said in short.
 */
export const REMEMBER_EVERY_MS = 3000;

function loadMemory(path: string): Memory | undefined {
  const text = readIfExists(path);
  if (text === undefined) return undefined;
  try {
    // its version is that of the monitor's memory, not of the file's format
    return parseMemory(JSON.parse(text));
  } catch (error) {
    // it's a copy, which the monitor gives again
    log.warn(errorText(error));
    return undefined;
  }
}

/**
 * @returns what to call with each answer of the monitor, and whether it's the one before: asks what there is to keep after
 *   a new one, but not all the time
 */
export function rememberer(node: Node, monitor: MonitorClient): (isSame: boolean) => void {
  let known: number | undefined;
  let due = Number.NEGATIVE_INFINITY;
  let isWanted = false;
  return (isSame) => {
    const { groupId } = node.state;
    if (!isSame) isWanted = true;
    if (groupId === undefined || !isWanted || monotonicMs() < due) return;
    isWanted = false;
    due = Number.POSITIVE_INFINITY;
    known ??= loadMemory(node.paths.memory)?.version ?? -1;
    monitor
      .memory(node.config.formation, groupId, known)
      .then(async (text) => {
        if (text === undefined) return;
        await writeDurablyBeside(node.paths.memory, `${text}\n`, 0o600);
        known = parseMemory(JSON.parse(text)).version;
      })
      .catch((error: unknown) => {
        isWanted = true;
        log.debug(`the monitor's memory: ${errorText(error)}`);
      })
      .finally(() => {
        due = monotonicMs() + REMEMBER_EVERY_MS;
      });
  };
}

/** The timelines before this one, by the server's own history file. */
function ancestryBefore(pgdata: string, timeline: number): { timeline: number; forkLsn: string }[] {
  if (timeline <= 1) return [];
  try {
    return historyOf(pgdata, timeline).map((branch) => ({
      timeline: branch.timeline,
      forkLsn: String(branch.forkLsn),
    }));
  } catch (error) {
    log.warn(`the history of timeline ${timeline} can't be told: ${errorText(error)}`);
    return [];
  }
}

/** The set whose names stand in the settings of this server; null: which they are isn't known. */
function writtenSet(node: Node): SyncSet | null {
  const { proof, syncVersion, syncMembers } = node.state;
  const primaryId = ownId(node);
  if (node.written?.primaryId === primaryId) return node.written;
  if (proof?.set.version === syncVersion) return proof.set;
  // saved before they are written: no names, nobody to wait for
  if (syncMembers.length === 0) return { version: syncVersion, primaryId, members: [], number: 0 };
  return null;
}

/** @param report what the monitor has just refused to record @returns JSON, see shapes.ts TestimonyShape */
export function testimonyOf(node: Node, report: Report): string {
  const { config, state } = node;
  const written = writtenSet(node);
  if (node.sync === undefined && node.server && written) recallProof(node, written);
  return JSON.stringify({
    identity: state.identity,
    formation: config.formation,
    groupId: state.groupId ?? config.group,
    nodeId: ownId(node),
    name: state.name ?? `node_${ownId(node)}`,
    host: config.nodename,
    port: config.pgport,
    dbname: config.dbname ?? null,
    candidatePriority: config.candidatePriority,
    replicationQuorum: config.replicationQuorum,
    systemIdentifier: state.systemIdentifier,
    state: report.state,
    goal: state.goal,
    goalVersion: state.goalVersion,
    syncVersion: state.syncVersion,
    reportNo: String(report.reportNo),
    pgIsRunning: report.pgIsRunning,
    inRecovery: report.inRecovery ?? null,
    streaming: report.streaming,
    timeline: report.timeline,
    lsn: String(parseLsn(report.lsn)),
    promotion: state.promotion,
    fenceMs: report.fenceMs,
    ancestry: ancestryBefore(config.pgdata, report.timeline),
    inForce: syncInForce(node),
    written,
    rejoins: config.membership === "rejoining",
    memory: loadMemory(node.paths.memory) ?? null,
  });
}
