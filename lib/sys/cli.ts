/**
 * Command lines: citty behind a fence.
 *
 * citty takes unknown flags for strings, the next flag for a missing value, the last of repeated flags, and surplus
 * words in silence. Here each of these ends the command with exit 2 before anything has been done.
 */

import { createInterface } from "node:readline";
import { isatty } from "node:tty";
import { type ArgDef, type ArgsDef, type CommandDef, renderUsage, runCommand } from "citty";
import {
  AppError,
  type Detail,
  detailText,
  EXIT_CODES,
  errorText,
  oneLine,
  scrub,
} from "./errors.ts";
import { writeFully } from "./files.ts";
import { configureLog, LOG_FORMATS, type LogFormat, logFormat, logger } from "./log.ts";

/** Flags that every command has. */
export const logArgs = {
  verbose: { type: "boolean", description: "Log also what did not change" },
  logFormat: {
    type: "enum",
    options: ["text", "logfmt", "json"],
    description: "How log lines look on standard error (text; without the time in journald)",
  },
} as const satisfies ArgsDef;

/** Flags of a command that gives an answer. */
export const commonArgs = {
  ...logArgs,
  json: { type: "boolean", description: "Answer in JSON" },
} as const satisfies ArgsDef;

/** Prints an answer on standard output, where nothing else goes. */
export function answer(text: string): void {
  try {
    writeFully(1, text.endsWith("\n") ? text : `${text}\n`);
  } catch (error) {
    // `… | head -1` has read enough.
    if ((error as NodeJS.ErrnoException).code === "EPIPE") process.exit(0);
    throw error;
  }
}

/**
 * Asks the person at the terminal to type a word, so that nobody agrees by habit.
 *
 * @param question what is at stake, and what to type
 * @throws {AppError} usage: there is no terminal, or something else was typed
 */
export async function confirm(question: string, word: string): Promise<void> {
  if (!isatty(0)) {
    const hint = "Add --yes, or run it on a terminal and type what it asks for.";
    throw new AppError("usage", `this must be confirmed: ${question}`, { hint });
  }
  writeFully(2, `${question}: `);
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim() === word) return;
    break;
  }
  throw new AppError("usage", "not confirmed: nothing was done", {
    hint: `Type ${word} to confirm.`,
  });
}

/** Thrown by `exit`, so that everything held by `using` is released on the way out. */
class Exit extends Error {
  readonly exitCode: number;
  constructor(exitCode: number) {
    super(`exit ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** Ends the command with a code of its own. It throws: don't catch everything around it. */
export function exit(code: number): never {
  throw new Exit(code);
}

// biome-ignore lint/suspicious/noExplicitAny: citty's own type of a command with whatever arguments
type Command = CommandDef<any>;

/**
 * Runs a command tree with this process's arguments and ends the process: 0, the code of `exit`, or that of the error.
 *
 * Answers and errors are written before. A promise that nobody caught is logged and does not end a keeper; an exception
 * that nobody caught does.
 */
export async function main(command: Command): Promise<never> {
  const area = (await resolved(command.meta))?.name ?? "main";
  const log = logger(area);
  process.on("unhandledRejection", (reason) => {
    if (reason instanceof Exit) process.exit(reason.exitCode);
    log.error("a promise was rejected and nobody looked", {
      error: errorText(reason),
      at: whereThrown(reason),
    });
  });
  process.on("uncaughtException", (error) => process.exit(codeOf(area, error)));
  let code = 0;
  try {
    await dispatch(command, process.argv.slice(2));
  } catch (error) {
    code = codeOf(area, error);
  }
  process.exit(code);
}

/** An error is told on the way. What a release threw on the way out is not why it ended. */
function codeOf(area: string, error: unknown): number {
  if (error instanceof SuppressedError) return codeOf(area, error.suppressed);
  return error instanceof Exit ? error.exitCode : report(area, error);
}

async function dispatch(root: Command, words: readonly string[]): Promise<void> {
  const { command, parent, rest, given } = await findCommand(root, words);
  if (wantsHelp(words)) {
    answer(await usage(command, parent));
    return;
  }
  if (given !== undefined) throw given;
  const args = (await resolved<ArgsDef>(command.args)) ?? {};
  const values = readFlags(args, rest);
  configureLog({
    ...(typeof values.get("verbose") === "boolean"
      ? { verbose: values.get("verbose") === true }
      : {}),
    ...(isLogFormat(values.get("logFormat"))
      ? { format: values.get("logFormat") as LogFormat }
      : {}),
  });
  await runCommand(command, { rawArgs: toRawArgs(args, values) });
}

function wantsHelp(words: readonly string[]): boolean {
  const end = words.indexOf("--");
  return (end < 0 ? words : words.slice(0, end)).some((word) => word === "--help" || word === "-h");
}

function isLogFormat(value: unknown): value is LogFormat {
  return LOG_FORMATS.some((known) => known === value);
}

/** Walks down to the sub-command that the words name; `given` is what is wrong with them. */
async function findCommand(root: Command, words: readonly string[]) {
  let command = root;
  let parent: Command | undefined;
  let rest = words;
  for (;;) {
    const children: Record<string, unknown> | undefined = await resolved(command.subCommands);
    if (children === undefined || Object.keys(children).length === 0)
      return { command, parent, rest };
    const names = Object.keys(children);
    const hint = `One of: ${names.join(", ")}. --help tells more.`;
    const [name] = rest;
    if (name === undefined || name.startsWith("-")) {
      const given = new AppError("usage", "the command's name must come first", { hint });
      return { command, parent, rest, given };
    }
    if (!Object.hasOwn(children, name)) {
      const near = nearest(name, names);
      const given = new AppError("usage", "unknown command", {
        detail: { command: name },
        hint: near === undefined ? hint : `Did you mean ${near}?`,
      });
      return { command, parent, rest, given };
    }
    parent = command;
    command = (await resolved(children[name] as Command)) as Command;
    rest = rest.slice(1);
  }
}

type Values = Map<string, string | boolean>;

/**
 * Reads a command's words by its definition, strictly.
 *
 * A value is the next word or stands behind "="; one that begins with "-" must stand behind "=".
 *
 * @returns values by the argument's key, without defaults
 */
function readFlags(args: ArgsDef, words: readonly string[]): Values {
  const flags = flagNames(args);
  const positionals = Object.keys(args).filter((key) => args[key]?.type === "positional");
  const values: Values = new Map();
  const set = (name: string, key: string, value: string | boolean) => {
    if (values.has(key)) throw usageError("a flag is given twice", { flag: name }, "Give it once.");
    values.set(key, value);
  };
  const setPositional = (word: string) => {
    const key = positionals.shift();
    const hint = `A value belongs to its flag: --flag ${word}`;
    if (key === undefined) throw usageError("a word too many", { word }, hint);
    set(key, key, word);
  };
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? "";
    if (word === "--") {
      for (const rest of words.slice(i + 1)) setPositional(rest);
      break;
    }
    if (!word.startsWith("-") || word === "-") {
      setPositional(word);
      continue;
    }
    const at = word.indexOf("=");
    const flag = at < 0 ? word : word.slice(0, at);
    const key = flags.get(flag);
    if (key === undefined) throw unknownFlag(flag, flags);
    if (args[key]?.type === "boolean") {
      const hint = `Write ${flag}, or leave it out.`;
      if (at >= 0) throw usageError("a flag takes no value", { flag }, hint);
      set(flag, key, !flag.startsWith("--no-") || kebab(key) === flag.slice(2));
      continue;
    }
    const next = words[i + 1];
    if (at < 0 && (next === undefined || next.startsWith("-"))) {
      const hint = `Write ${flag} VALUE, or ${flag}=VALUE if it begins with "-".`;
      throw usageError("a flag has no value", { flag }, hint);
    }
    const value = at < 0 ? (next ?? "") : word.slice(at + 1);
    if (at < 0) i++;
    const hint = `Write ${flag} VALUE, or leave it out.`;
    if (value === "") throw usageError("a flag has an empty value", { flag }, hint);
    checkChoice(flag, args[key], value);
    set(flag, key, value);
  }
  for (const [key, definition] of Object.entries(args)) requireValue(key, definition, values);
  return values;
}

function checkChoice(flag: string, definition: ArgDef | undefined, value: string): void {
  if (definition?.type !== "enum" || definition.options?.includes(value) !== false) return;
  const near = nearest(value, definition.options);
  const hint =
    near === undefined ? `One of: ${definition.options.join(", ")}.` : `Did you mean ${near}?`;
  throw usageError("a flag can't have this value", { flag, value }, hint);
}

function requireValue(key: string, definition: ArgDef, values: Values): void {
  const positional = definition.type === "positional";
  const required = positional ? definition.required !== false : definition.required === true;
  if (!required || definition.default !== undefined || values.has(key)) return;
  const flag = positional ? key.toUpperCase() : `--${kebab(key)}`;
  const meaning = definition.description === undefined ? "" : `: ${definition.description}`;
  throw usageError(
    "a flag is missing",
    { flag },
    `Add ${flag}${positional ? "" : " VALUE"}${meaning}.`,
  );
}

/** Every spelling of every flag, with its dashes → the key of its definition. */
function flagNames(args: ArgsDef): Map<string, string> {
  const names = new Map<string, string>();
  for (const [key, definition] of Object.entries(args)) {
    if (definition.type === "positional") continue;
    const alias = "alias" in definition ? (definition.alias ?? []) : [];
    for (const name of [kebab(key), ...(Array.isArray(alias) ? alias : [alias])]) {
      names.set(name.length === 1 ? `-${name}` : `--${name}`, key);
      if (definition.type === "boolean" && name.length > 1) names.set(`--no-${name}`, key);
    }
  }
  return names;
}

function unknownFlag(name: string, flags: ReadonlyMap<string, string>): AppError {
  const near = nearest(name, [...flags.keys(), "--help"]);
  const hint = near === undefined ? "--help lists the flags." : `Did you mean ${near}?`;
  return usageError("unknown flag", { flag: name }, hint);
}

/** The words that citty reads without having to guess. */
function toRawArgs(args: ArgsDef, values: Values): string[] {
  const flags: string[] = [];
  const positionals: string[] = [];
  for (const [key, value] of values) {
    if (args[key]?.type === "positional") positionals.push(String(value));
    else if (typeof value === "boolean") flags.push(value ? `--${key}` : `--no-${key}`);
    else flags.push(`--${key}=${value}`);
  }
  return positionals.length === 0 ? flags : [...flags, "--", ...positionals];
}

async function usage(command: Command, parent: Command | undefined): Promise<string> {
  const args = (await resolved<ArgsDef>(command.args)) ?? {};
  const spelt = Object.fromEntries(Object.entries(args).map(([key, value]) => [kebab(key), value]));
  const text = Bun.stripANSI(await renderUsage({ ...command, args: spelt }, parent));
  return text.replace(/[ \t]+$/gm, "").trimEnd();
}

/** citty allows each part of a command to be a value, a promise or a function. */
async function resolved<T>(
  part: T | Promise<T> | (() => T | Promise<T>) | undefined,
): Promise<T | undefined> {
  return typeof part === "function" ? await (part as () => T | Promise<T>)() : await part;
}

function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function usageError(message: string, detail: Detail, hint: string): AppError {
  return new AppError("usage", message, { detail, hint });
}

/** The candidate that differs by no more than a third of its letters, or that `word` begins. */
function nearest(word: string, candidates: readonly string[]): string | undefined {
  const bare = (text: string) => text.replace(/^-+/, "");
  let best: string | undefined;
  let bestDistance = Number.POSITIVE_INFINITY;
  for (const candidate of candidates) {
    const [a, b] = [bare(word), bare(candidate)];
    if (a.length < 2 || b.length < 2) continue;
    const distance = a.length > 2 && b.startsWith(a) ? 0 : editDistance(a, b);
    if (distance < bestDistance && distance <= Math.max(1, Math.floor(b.length / 3))) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** How many letters must be changed, added, removed or swapped with their neighbour to make `a` into `b`. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let least = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        least = Math.min(least, (beforeLast[j - 2] ?? 0) + 1);
      }
      row.push(least);
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length] ?? 0;
}

/** Tells an error to whoever started the command, and yields the exit code. */
function report(area: string, error: unknown): number {
  const known = error instanceof AppError;
  const kind = known ? error.kind : "internal";
  const message = known ? error.message : "something unforeseen happened";
  const detail = known ? error.detail : { error: errorText(error), at: whereThrown(error) };
  const hint = known ? error.hint : undefined;
  if (logFormat() === "text") {
    const values = detailText(detail);
    const line = `error ${area} ${JSON.stringify(oneLine(message))}${values === "" ? "" : ` ${values}`}`;
    const text = hint === undefined ? line : `${line}\n  hint: ${oneLine(hint)}`;
    try {
      writeFully(2, `${scrub(text)}\n`);
    } catch {
      // Nowhere left to say so; the exit code still does.
    }
  } else {
    logger(area).error(message, { ...detail, hint });
  }
  logger(area).debug("the error's stack", {
    stack: error instanceof Error ? error.stack : undefined,
  });
  return EXIT_CODES[kind];
}

/** Where a bug is to be looked for: the first line of the stack that names a file. */
function whereThrown(error: unknown): string | undefined {
  const stack = error instanceof Error ? (error.stack ?? "") : "";
  return /\(?([^\s()]+\.ts:\d+)(?::\d+)?\)?/.exec(stack)?.[1];
}
