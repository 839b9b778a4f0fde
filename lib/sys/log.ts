/** What the program does, told on standard error: the only door to consola. */

import { fstatSync } from "node:fs";
import { isatty } from "node:tty";
import { type ConsolaReporter, createConsola } from "consola/core";
import { type Detail, detailText, oneLine, scrub } from "./errors.ts";
import { writeFully } from "./files.ts";

/** By outcome: error = somebody must act, warn = may have to, info = a change, debug = with `--verbose` only. */
export type Level = "debug" | "info" | "warn" | "error";

/** Log lines of one area, e.g. "keeper". */
export type Logger = Readonly<Record<Level, (message: string, detail?: Detail) => void>>;

/** `text` is for a person at a terminal, `journal` for journald, which has the time, the others for programs. */
export type LogFormat = "text" | "journal" | "logfmt" | "json";

/** What `--log-format` accepts; without it, it's `journal` or `text`, as standard error is. */
export const LOG_FORMATS: readonly LogFormat[] = ["text", "logfmt", "json"];

/** One line of the log before it is rendered. */
export type LogRecord = { at: Date; level: Level; area: string; message: string; detail: Detail };

const LEVELS: Readonly<Record<Level, number>> = { error: 0, warn: 1, info: 3, debug: 4 };

const COLOURS: Readonly<Record<Level, number>> = { error: 31, warn: 33, info: 32, debug: 90 };

/** @see sd-daemon(3) */
const PRIORITIES: Readonly<Record<Level, number>> = { error: 3, warn: 4, info: 6, debug: 7 };

let format: LogFormat | undefined;

const reporter: ConsolaReporter = {
  log({ date, type, args }) {
    const [area, message, detail] = args as [string, string, Detail];
    const line = renderRecord(
      { at: date, level: type as Level, area, message, detail },
      logFormat(),
      useColours(),
    );
    writeLine(line);
  },
};

const consola = createConsola({
  level: LEVELS.info,
  reporters: [reporter],
  // Repeated lines are not to be swallowed or held back, also when the clock was set back.
  throttle: Number.NEGATIVE_INFINITY,
});

/** The log of one area of the program. */
export function logger(area: string): Logger {
  const at =
    (level: Level) =>
    (message: string, detail: Detail = {}) => {
      consola[level](area, message, detail);
    };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/** Sets what is shown and how; what is left out stays as it was (info and above, as standard error wants it). */
export function configureLog(options: {
  verbose?: boolean | undefined;
  format?: LogFormat | undefined;
}): void {
  if (options.verbose !== undefined) consola.level = options.verbose ? LEVELS.debug : LEVELS.info;
  if (options.format !== undefined) format = options.format;
}

/** The format in force. */
export function logFormat(): LogFormat {
  format ??= isJournal(process.env["JOURNAL_STREAM"]) ? "journal" : "text";
  return format;
}

/**
 * One record as one line, secrets taken out.
 *
 * @param colours whether the level's word is coloured (text only)
 */
export function renderRecord(record: LogRecord, as: LogFormat, colours: boolean): string {
  const { at, level, area, message, detail } = record;
  if (as === "json") {
    return scrub(
      JSON.stringify({ time: at.toISOString(), level, area, message, ...detail }, bigintAsText),
    );
  }
  const values = detailText(detail);
  if (as === "logfmt") {
    return scrub(oneLine(`${level} ${area} ${JSON.stringify(message)} ${values}`));
  }
  const sentence = scrub(oneLine(`${message} ${values}`));
  if (as === "journal") return `<${PRIORITIES[level]}>${level.toUpperCase().padEnd(5)} ${sentence}`;
  const word = level.toUpperCase().padEnd(5);
  const shown = colours ? `\u001b[${COLOURS[level]}m${word}\u001b[0m` : word;
  return `${timeOfDay(at)} ${shown} ${sentence}`;
}

/**
 * Whether standard error is the stream that systemd has connected to the journal: whoever has redirected it since
 * inherits the variable all the same.
 *
 * @param stream JOURNAL_STREAM: device and inode
 * @see systemd.exec(5)
 */
function isJournal(stream: string | undefined): boolean {
  if (!stream) return false;
  try {
    const { dev, ino } = fstatSync(2, { bigint: true });
    return stream === `${dev}:${ino}`;
  } catch {
    return false; // there is no standard error
  }
}

function bigintAsText(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}

function timeOfDay(at: Date): string {
  const two = (n: number) => String(n).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

function useColours(): boolean {
  return isatty(2) && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb";
}

/** A reader that went away (a closed pipe, a full disk) must not end a keeper. */
function writeLine(line: string): void {
  try {
    writeFully(2, `${line}\n`);
  } catch {
    // Nowhere left to say so.
  }
}
