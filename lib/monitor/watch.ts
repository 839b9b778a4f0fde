/** A formation on a terminal, live: its nodes, what is in the way, and its last events. */
import type { EventRow, StateRow } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { openScreen } from "../sys/screen.ts";
import { fitTable } from "../sys/table.ts";
import type { MonitorClient } from "./client.ts";
import { keepLooking } from "./look.ts";
import { EVENT_HEADER, eventCells, STATE_HEADER, stateCells, timeText } from "./tables.ts";

/** More than fit on any terminal. */
const EVENTS = 100;
/** An answer that takes longer is worth a word. */
const LATE_MS = 3000;

export type Snapshot = {
  readonly nodes: readonly StateRow[];
  readonly events: readonly EventRow[];
  /** Why groups can't promote anybody. */
  readonly blocked: readonly string[];
};

export async function takeSnapshot(monitor: MonitorClient, formation: string): Promise<Snapshot> {
  const nodes = await monitor.state(formation);
  const blocked = await monitor.blocked(formation);
  return { nodes, blocked, events: await monitor.events(formation, EVENTS) };
}

export type Frame = {
  readonly formation: string;
  readonly now: Date;
  readonly snapshot: Snapshot;
  /** Since the snapshot was taken. */
  readonly ageMs: number;
  /** Why there is no newer one. */
  readonly away: string | undefined;
  readonly columns: number;
  readonly rows: number;
};

/** A sentence over as many lines as it needs. */
function fold(text: string, columns: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trimStart();
    if (Bun.stringWidth(longer) <= columns) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.map((line) => Bun.sliceAnsi(line, 0, columns));
}

const NODE_HEADER = [...STATE_HEADER, "Last Report", "Priority", "Quorum"];
const DROP_OF_NODES = [
  "Quorum",
  "Priority",
  "Node",
  "Host:Port",
  "TLI: LSN",
  "Sync",
  "Last Report",
  "Connection",
];
const DROP_OF_EVENTS = ["Reported / Assigned", "Rule", "Node", "Time"];

/** The lines of a terminal, no longer than it is wide, no more than it has. */
export function renderFrame(frame: Frame): string[] {
  const { formation, now, snapshot, ageMs, columns, rows } = frame;
  const age = `${Math.round(ageMs / 1000)} s`;
  const away =
    frame.away !== undefined
      ? `The monitor is away, this is what it knew ${age} ago: ${frame.away}`
      : ageMs > LATE_MS
        ? `The monitor has not answered for ${age}`
        : "";
  const title = `Formation ${formation}   ${timeText(now).slice(0, 19)} UTC   q: quit`;
  const head = [
    ...fold(title, columns),
    ...[away, ...snapshot.blocked].filter(Boolean).flatMap((text) => fold(text, columns)),
    "",
    ...fitTable(
      NODE_HEADER,
      snapshot.nodes.map((row) => [
        ...stateCells(row, snapshot.nodes),
        `${Math.max(0, Math.round(row.report_age + ageMs / 1000))} s`,
        String(row.candidate_priority),
        row.replication_quorum ? "yes" : "no",
      ]),
      columns,
      DROP_OF_NODES,
    ),
    "",
  ];
  const room = rows - head.length - 2;
  const events = room > 0 ? snapshot.events.slice(-room) : [];
  const tail = fitTable(EVENT_HEADER, events.map(eventCells), columns, DROP_OF_EVENTS, ["Comment"]);
  return [...head, ...(room > 0 ? tail : [])].slice(0, rows);
}

/** Draws the formation until the person at the terminal has seen enough. @throws {AppError} the first look fails */
export async function watchOnTerminal(monitor: MonitorClient, formation: string): Promise<void> {
  using screen = openScreen(
    "Without one, roles/state.ts events --follow prints a line for each event, and watch --json one for each change.",
  );
  await monitor.formationSettings(formation); // there is such a formation
  let snapshot = await takeSnapshot(monitor, formation);
  let takenMs = monotonicMs();
  let away: string | undefined;
  const draw = (): void => {
    const ageMs = monotonicMs() - takenMs;
    screen.draw(
      renderFrame({ formation, now: new Date(), snapshot, ageMs, away, ...screen.size() }),
    );
  };
  screen.onResize(draw);
  const ticking = setInterval(draw, 1000);
  try {
    await keepLooking(
      monitor,
      screen.quit,
      async () => {
        snapshot = await takeSnapshot(monitor, formation);
        takenMs = monotonicMs();
        away = undefined;
        draw();
      },
      (reason) => {
        away = reason;
        draw();
      },
    );
  } finally {
    clearInterval(ticking);
  }
}

/** Hands on what a program wants to see, whenever it has changed; ages and positions alone are no change. */
export async function watchChanges(
  monitor: MonitorClient,
  formation: string,
  signal: AbortSignal,
  onChange: (state: Record<string, unknown>) => void,
): Promise<void> {
  await monitor.formationSettings(formation); // there is such a formation
  let last = "";
  const tell = (state: Record<string, unknown>, about: unknown): void => {
    const text = JSON.stringify(about);
    if (text !== last) onChange({ time: new Date().toISOString(), formation, ...state });
    last = text;
  };
  const look = async (): Promise<void> => {
    const nodes = await monitor.state(formation);
    const blocked = await monitor.blocked(formation);
    const steady = nodes.map((row) => ({ ...row, report_age: 0, reported_lsn: "" }));
    tell({ monitor: "there", blocked, nodes }, [blocked, steady]);
  };
  await keepLooking(monitor, signal, look, (reason) => tell({ monitor: "away", reason }, "away"));
}
