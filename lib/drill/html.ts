/** A drill's report as one page that needs nothing else: no script, no other file, light and dark. */
import { accessSync, constants } from "node:fs";
import { dirname } from "node:path";
import { AppError, errorText } from "../sys/errors.ts";
import { writeAtomically } from "../sys/files.ts";
import type { Spread } from "./outage.ts";
import { msText, outageOf, ROUND_HEADER, roundCells, summaryOf } from "./report.ts";
import type { Mark, Report, Round } from "./run.ts";

const escaped = (text: string): string => Bun.escapeHTML(text);

/** The first of 1, 2, 5, 10, … that is not below. */
export function niceAbove(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((factor) => factor * power >= value * 0.999999) ?? 10) * power;
}

const BINS_MAX = 150;
/** So many writes fall into a bin while all goes well, that its height says something. */
const WRITES_IN_BIN = 5;

export type Bins = { readonly startMs: number; readonly binMs: number; readonly counts: number[] };

/** Acknowledgements by time, in whole bins of a round width; one begins at 0, the fault. */
export function binsOf(times: readonly number[], endMs: number, writesPerSecond: number): Bins {
  const firstMs = Math.min(times[0] ?? 0, 0);
  const wanted = Math.max((endMs - firstMs) / BINS_MAX, (1000 * WRITES_IN_BIN) / writesPerSecond);
  const binMs = niceAbove(Math.max(wanted, 1));
  const before = Math.ceil(-firstMs / binMs);
  const counts = new Array<number>(before + Math.max(1, Math.floor(endMs / binMs))).fill(0);
  for (const ms of times) {
    const index = Math.floor(ms / binMs) + before;
    if (index < counts.length) counts[index] = (counts[index] ?? 0) + 1;
  }
  return { startMs: -before * binMs, binMs, counts };
}

type Size = {
  readonly width: number;
  readonly height: number;
  /** With marks and both axes' numbers. */
  readonly full: boolean;
};

const FULL: Size = { width: 960, height: 220, full: true };
const SMALL: Size = { width: 320, height: 70, full: false };
const FLAG_HEIGHT = 17;

const seconds = (ms: number): string => `${Number((ms / 1000).toFixed(3))} s`;

type Flag = Mark & { readonly toLeft: boolean };

/** From top to bottom, so that no flag's line crosses another one's words: late ones have theirs at the left. */
function flagsOf(marks: readonly Mark[], lateMs: number): Flag[] {
  const all = [{ ms: 0, label: "fault" }, ...marks].map((mark) => ({
    ...mark,
    toLeft: mark.ms > lateMs,
  }));
  const late = all.filter(({ toLeft }) => toLeft);
  return [...all.filter(({ toLeft }) => !toLeft), ...late.toReversed()];
}

/** Acknowledged writes of one round over time; the outage is shaded, and the fault and what followed are flagged. */
function plot(round: Round, writesPerSecond: number, { width, height, full }: Size): string {
  const { gap, marks, acknowledged } = round;
  const { startMs, binMs, counts } = binsOf(
    acknowledged,
    Math.max(acknowledged.at(-1) ?? 0, gap.toMs, 1),
    writesPerSecond,
  );
  const flags = full ? flagsOf(marks, (acknowledged.at(-1) ?? 0) * 0.7) : [];
  const top = full ? 8 + flags.length * FLAG_HEIGHT : 2;
  const left = full ? 44 : 0;
  const bottom = top + height;
  const endMs = startMs + counts.length * binMs;
  const x = (ms: number): string =>
    (left + ((Math.min(ms, endMs) - startMs) / (endMs - startMs)) * (width - left)).toFixed(1);
  const rateOf = (count: number): number => (count * 1000) / binMs;
  const rateStep = niceAbove(Math.max(...counts.map(rateOf), writesPerSecond) / 4);
  const rateSteps = Math.ceil(Math.max(...counts.map(rateOf), writesPerSecond) / rateStep);
  const highest = rateSteps * rateStep;
  const y = (rate: number): string => (bottom - (rate / highest) * height).toFixed(1);

  const bars = counts.flatMap((count, index) => {
    if (count === 0) return [];
    const fromMs = startMs + index * binMs;
    const w = Math.max(0.5, Number(x(fromMs + binMs)) - Number(x(fromMs)) - 1).toFixed(1);
    const rate = rateOf(count);
    return `<rect class="bar" x="${x(fromMs)}" y="${y(rate)}" width="${w}" height="${(bottom - Number(y(rate))).toFixed(1)}"/>`;
  });
  const rates = Array.from({ length: full ? rateSteps + 1 : 0 }, (_, index) => index * rateStep);
  const grid = rates.map(
    (rate) =>
      `<line class="grid" x1="${left}" x2="${width}" y1="${y(rate)}" y2="${y(rate)}"/><text x="${left - 6}" y="${y(rate)}" dy=".35em" text-anchor="end">${rate}</text>`,
  );
  const stepMs = niceAbove((endMs - startMs) / 10);
  const ticks = Array.from(
    { length: Math.floor((endMs - startMs) / stepMs) + 1 },
    (_, index) => (Math.ceil(startMs / stepMs) + index) * stepMs,
  ).filter((ms) => ms < endMs - stepMs / 4);
  const axis = full
    ? ticks.map(
        (ms) =>
          `<line class="axis" x1="${x(ms)}" x2="${x(ms)}" y1="${bottom}" y2="${bottom + 5}"/><text x="${x(ms)}" y="${bottom + 18}" text-anchor="${ms === startMs ? "start" : "middle"}">${seconds(ms)}</text>`,
      )
    : [];
  const flagged = flags.map(({ ms, label, toLeft }, index) => {
    const at = top - (flags.length - index) * FLAG_HEIGHT + 4;
    const side = toLeft ? `dx="-5" text-anchor="end"` : `dx="5"`;
    const when = ms === 0 ? "" : ` <tspan class="when">+${Math.round(ms)} ms</tspan>`;
    return `<line class="${ms === 0 ? "fault" : "mark"}" x1="${x(ms)}" x2="${x(ms)}" y1="${at - 8}" y2="${bottom}"/><text class="flag" x="${x(ms)}" y="${at}" ${side}>${escaped(label)}${when}</text>`;
  });
  const shade = `<rect class="gap" x="${x(gap.fromMs)}" y="${top}" width="${(Number(x(gap.toMs)) - Number(x(gap.fromMs))).toFixed(1)}" height="${height}"/>`;
  const fault = full
    ? ""
    : `<line class="fault" x1="${x(0)}" x2="${x(0)}" y1="${top}" y2="${bottom}"/>`;
  const what = `Acknowledged writes a second in round ${round.round}; none for ${msText(outageOf(round))}`;
  return `<svg viewBox="0 0 ${width} ${bottom + (full ? 24 : 2)}" role="img" aria-label="${what}">
${[...grid, shade, ...bars, fault, ...axis, ...flagged].filter(Boolean).join("\n")}
</svg>`;
}

const STYLE = `
:root{color-scheme:light dark;--bg:#fff;--card:#f5f6f8;--fg:#1c2024;--muted:#62676e;--line:#d9dce1;--bar:#3b76d6;--bad:#c8322b;--good:#1f7a43;--gap:#c8322b26}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--card:#1f242a;--fg:#e7e9ec;--muted:#9aa1a9;--line:#363c44;--bar:#6ea1f5;--bad:#ff7b72;--good:#56d08a;--gap:#ff7b7233}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 3rem;max-width:1020px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{margin:0;font-size:1.6rem}h2{margin:2.2rem 0 .6rem;font-size:1.1rem}p{margin:.3rem 0}
.muted,figcaption,th{color:var(--muted)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.75rem;margin:1.4rem 0}
.tile{padding:.75rem 1rem;border-radius:8px;background:var(--card)}.tile b{display:block;font-size:1.5rem;line-height:1.3}.tile span{font-size:.85rem;color:var(--muted)}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--muted)}svg .flag{fill:var(--fg)}svg .when{fill:var(--muted)}
.bar{fill:var(--bar)}.gap{fill:var(--gap)}.grid{stroke:var(--line)}.axis,.mark{stroke:var(--muted)}.mark{stroke-dasharray:2 3}.fault{stroke:var(--bad);stroke-width:1.5}
.rounds{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:1.1rem 1.25rem}figure{margin:0}figcaption{font-size:.85rem;margin-top:.2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;font-weight:400}td:nth-child(2),th:nth-child(2){text-align:left}`;

const rangeText = (spread: Spread | undefined): string =>
  spread === undefined || spread.min === spread.max
    ? ""
    : `${msText(spread.min)} to ${msText(spread.max)}`;

const tile = (value: string, what: string, detail: string, kind = ""): string =>
  `<div class="tile"><span>${what}</span><b${kind}>${value}</b><span>${detail}</span></div>`;

/** @param error what ended the drill early; null: nothing did */
export function reportHtml(report: Report, error: string | null): string {
  const { formation, group, scenario, at, rounds, writers, writesPerSecond, writes } = report;
  const { outageMs, redundancyMs, lost, found, notFound } = summaryOf(report);
  const title = `Drill: ${scenario}, formation ${escaped(formation)}`;
  const time = at.toISOString().replace("T", " ").slice(0, 19);
  const load = `${writesPerSecond} writes a second over ${writers} connection${writers === 1 ? "" : "s"}`;
  const verdict =
    error === null
      ? `<p class="good">All acknowledged writes are there, and each round ended in perfect health.</p>`
      : `<p class="bad">Ended early: ${escaped(error)}</p>`;
  const longest = rounds.toSorted((a, b) => outageOf(b) - outageOf(a))[0];
  const small = rounds.map(
    (round) =>
      `<figure>${plot(round, writesPerSecond, SMALL)}<figcaption>Round ${round.round}: ${msText(outageOf(round))}</figcaption></figure>`,
  );
  const cells = (tag: string, values: readonly string[]): string =>
    `<tr>${values.map((value) => `<${tag}>${escaped(value)}</${tag}>`).join("")}</tr>`;
  const errors = Object.entries(report.errors).map(([code, times]) => `${times} × ${code}`);
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>${title}</title>
<style>${STYLE}
</style>
<h1>Drill: ${scenario}</h1>
<p class="muted">Formation ${escaped(formation)}, group ${group}; ${time} UTC; ${rounds.length} round${rounds.length === 1 ? "" : "s"}, ${load}</p>
${verdict}
<div class="tiles">
${tile(msText(outageMs?.median), "No write possible for", rangeText(outageMs))}
${tile(msText(redundancyMs?.median), "Perfect health again after", rangeText(redundancyMs))}
${tile(String(lost), "Acknowledged writes lost", `of ${writes.acknowledged}`, ` class="${lost === 0 ? "good" : "bad"}"`)}
${tile(String(found + notFound), "Writes of unknown fate", `${found} of them are there`)}
</div>
${longest === undefined ? "" : `<h2>Round ${longest.round}, the longest outage: acknowledged writes a second</h2>\n<p class="muted">${escaped(longest.what)}</p>\n${plot(longest, writesPerSecond, FULL)}`}
${rounds.length < 2 ? "" : `<h2>All rounds</h2>\n<div class="rounds">\n${small.join("\n")}\n</div>`}
<h2>Phases, by the monitor's events</h2>
<div class="wide"><table>
${[cells("th", ROUND_HEADER), ...rounds.map((round) => cells("td", roundCells(round)))].join("\n")}
</table></div>
<p class="muted">Errors that the writers saw: ${escaped(errors.join(", ") || "none")}</p>
</html>
`;
}

/**
 * Where the page goes, looked at before anything is broken.
 *
 * @returns what writes it
 * @throws {AppError} permission: it can't be written there
 */
export function pageAt(path: string): (report: Report, error: string | null) => void {
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch (cause) {
    throw new AppError("permission", "the drill's report can't be written there", {
      detail: { path, reason: errorText(cause) },
      hint: "Name a file with --report in a directory that this user may write to.",
      cause,
    });
  }
  return (report, error) => writeAtomically(path, reportHtml(report, error), 0o644);
}
