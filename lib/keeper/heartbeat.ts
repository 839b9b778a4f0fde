/** A report that says nothing new is said in short: most are heartbeats, and a monitor has many to hear. */
import type { NodeState } from "../fsm.ts";
import type { MonitorClient } from "../monitor/client.ts";
import type { Answer, Report } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";

/** Then it's a full one again, whose answer tells how far the other nodes are: their slots here keep WAL from there on. */
const SHORT_MAX = 9;
/** Whatever else a node is on its way to, it says in full: the monitor decides by it. */
export const SETTLED: readonly NodeState[] = ["single", "primary", "secondary"];

/** What was last said in full, but for what each report says anew, and how often it was repeated in short. */
type Told = {
  readonly said: string;
  readonly reportNo: bigint;
  readonly answer: Answer;
  repeated: number;
};

/** Sends a report within `timeoutMs`, in full or in short, and gives the answer that holds after it. */
export type Telling = (nodeId: number, report: Report, timeoutMs: number) => Promise<Answer>;

/** @returns sends the reports of one node, which it remembers */
export function tellingTo(
  monitor: Pick<MonitorClient, "nodeActive" | "heartbeat">,
  formation: string,
): Telling {
  let told: Told | undefined;
  return async (nodeId, report, timeoutMs) => {
    const giveUpMs = monotonicMs() + timeoutMs;
    const said = JSON.stringify({ ...report, reportNo: "", lsn: "" });
    if (told && saysEnough(told, said, report)) {
      const { reportNo, answer } = told;
      const { identity, lsn } = report;
      const beat = { identity, reportNo: report.reportNo, lsn, fullReport: reportNo };
      const holds = await monitor.heartbeat(nodeId, beat, answer.token ?? "", timeoutMs);
      told.repeated += 1;
      if (holds) return answer;
    }
    told = undefined;
    const answer = await monitor.nodeActive(formation, nodeId, report, giveUpMs - monotonicMs());
    told = { said, reportNo: report.reportNo, answer, repeated: 0 };
    return answer;
  };
}

const saysEnough = ({ said, answer, repeated }: Told, now: string, { state }: Report): boolean =>
  answer.token !== undefined &&
  said === now &&
  repeated < SHORT_MAX &&
  state === answer.goal &&
  SETTLED.includes(answer.goal);
