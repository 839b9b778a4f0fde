/** A drill's report, for people at a terminal and for programs. */
import { renderTable } from "../sys/table.ts";
import { type Spread, spreadOf } from "./outage.ts";
import type { Plan, Report, Round } from "./run.ts";

export const outageOf = ({ gap }: Pick<Round, "gap">): number =>
  Math.round(10 * (gap.toMs - gap.fromMs)) / 10;
/** On any node: what one of them lacks, an election could make the group's. */
export const lostOf = ({ lost }: Round): number => Math.max(0, ...Object.values(lost));

export type Summary = {
  readonly outageMs: Spread | undefined;
  readonly redundancyMs: Spread | undefined;
  readonly lost: number;
  readonly found: number;
  readonly notFound: number;
};

export function summaryOf({ rounds }: Report): Summary {
  const sum = (of: (round: Round) => number) =>
    rounds.reduce((total, round) => total + of(round), 0);
  return {
    outageMs: spreadOf(rounds.map(outageOf)),
    redundancyMs: spreadOf(rounds.map(({ redundancyMs }) => redundancyMs)),
    lost: Math.max(0, ...rounds.map(lostOf)),
    found: sum(({ found }) => found),
    notFound: sum(({ notFound }) => notFound),
  };
}

export const msText = (ms: number | null | undefined): string =>
  ms === null || ms === undefined ? "-" : `${Math.round(ms)} ms`;

export const spreadText = (spread: Spread | undefined): string =>
  spread === undefined
    ? "-"
    : `min ${msText(spread.min)}, median ${msText(spread.median)}, max ${msText(spread.max)}`;

export const ROUND_HEADER = [
  ...["Round", "Primary", "Decide", "Disconnect", "Promote", "Open"],
  ...["Outage", "Redundancy", "Lost", "Unknown"],
] as const;

export function roundCells(round: Round): string[] {
  const { from, to, phases, redundancyMs, found, notFound } = round;
  return [
    ...[String(round.round), from === to ? from : `${from} → ${to}`],
    ...[phases?.decide, phases?.disconnect, phases?.promote, phases?.open].map(msText),
    ...[msText(outageOf(round)), msText(redundancyMs), String(lostOf(round))],
    found + notFound === 0 ? "0" : `${found + notFound} (${found} there)`,
  ];
}

export function reportText(report: Report): string {
  const { acknowledged, unknown } = report.writes;
  const { outageMs, redundancyMs, lost } = summaryOf(report);
  return [
    renderTable(ROUND_HEADER, report.rounds.map(roundCells)),
    "",
    `outage as writers saw it: ${spreadText(outageMs)}`,
    `perfect health again after: ${spreadText(redundancyMs)}`,
    `writes: ${acknowledged} acknowledged, ${unknown} of unknown fate, ${lost} lost`,
  ].join("\n");
}

/** Moments as timestamps, durations in milliseconds; `error`: what ended the drill early. */
export function reportJson(report: Report, error: string | null): Record<string, unknown> {
  const { rounds, ...about } = report;
  return {
    ...about,
    error,
    summary: summaryOf(report),
    rounds: rounds.map(({ acknowledged: _, ...round }) => ({
      ...round,
      outageMs: outageOf(round),
    })),
  };
}

export function planText({ fault, nodes, database }: Plan, rounds: number): string {
  const names = nodes.map(({ name, reported }) => `${name} (${reported})`).join(", ");
  return [
    `The group is in perfect health: ${names}`,
    `Round 1 of ${rounds}: ${fault.what}`,
    `Rows are written into a schema of its own in database "${database}", which is dropped at the end`,
  ].join("\n");
}

export const planJson = ({ fault, nodes, database }: Plan, rounds: number) => ({
  ...{ dryRun: true, rounds, database, what: fault.what, node: fault.node.name },
  nodes: nodes.map(({ name, host, port, reported }) => ({ name, host, port, state: reported })),
});
