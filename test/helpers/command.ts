/** Runs the role scripts as an operator would: bounded commands, and services that stay. */
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { nowMs, waitFor, within } from "./wait.ts";

export const REPOSITORY = join(import.meta.dir, "..", "..");

export type RoleName = "monitor" | "keeper" | "uri" | "state" | "formation" | "node" | "drill";
export type Environment = Readonly<Record<string, string>>;

export type Outcome = {
  /** The command as typed, for a failing test's text. */
  command: string;
  code: number | null;
  stdout: string;
  stderr: string;
  tookMs: number;
};

export function roleCommand(role: RoleName, args: readonly string[]): string[] {
  return [process.execPath, "--no-env-file", join(REPOSITORY, "roles", `${role}.ts`), ...args];
}

/**
 * Variables that would change what the commands under test do. The last one is how `bun
 * --no-orphans`, which may run our tests, hands itself on to every Bun below it: a role script would
 * kill at its end the PostgreSQL that it is to leave running.
 */
const HIDDEN = /^(PG[A-Z]|XDG_|LC_|LANG|NOTIFY_SOCKET|WATCHDOG_|BUN_FEATURE_FLAG_NO_ORPHANS)/;

/** This process's environment without PostgreSQL's and the session's settings, plus `extra`. */
export function cleanEnvironment(extra: Environment): Environment {
  const kept: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && !HIDDEN.test(name)) kept[name] = value;
  }
  return { ...kept, LC_ALL: "C", ...extra };
}

export type CommandOptions = {
  env: Environment;
  timeoutMs?: number;
  /** What enters another host before it starts the command, e.g. `nsenter --net=FILE`. */
  prefix?: readonly string[];
  /** Ends the command when it yields true; called with all that it has said on stderr. */
  killWhen?: (stderr: string) => boolean;
};

/**
 * Runs a command to its end.
 *
 * @throws {Error} it took longer than `timeoutMs` (it is killed then), or a process that it left
 *   behind holds its output open
 */
export async function runCommand(command: string[], options: CommandOptions): Promise<Outcome> {
  const { env, timeoutMs = 30_000, prefix = [], killWhen } = options;
  const startedMs = nowMs();
  const child = Bun.spawn([...prefix, ...command], {
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    cwd: "/",
  });
  const typed = command.slice(2).join(" ");
  let stderr = "";
  const listening = (async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stderr) {
      stderr += decoder.decode(chunk, { stream: true });
      if (killWhen?.(stderr)) child.kill("SIGKILL");
    }
  })();
  const reading = new Response(child.stdout).text();
  try {
    await within(timeoutMs, typed, child.exited);
    const [stdout] = await within(
      1000,
      `closing the output of ${typed}`,
      Promise.all([reading, listening]),
    );
    return { command: typed, code: child.exitCode, stdout, stderr, tookMs: nowMs() - startedMs };
  } catch (error) {
    child.kill("SIGKILL");
    throw new Error(`${typed}\n${stderr}`, { cause: error });
  }
}

/** Runs a role script to its end. */
export function runRole(
  role: RoleName,
  args: readonly string[],
  options: CommandOptions,
): Promise<Outcome> {
  return runCommand(roleCommand(role, args), options);
}

/** A role script that stays in the foreground, with its log in a file. */
export class RunningRole {
  readonly #child: Bun.Subprocess;
  readonly logFile: string;
  /** Where this run's part of the log file begins. */
  readonly logStart: number;

  constructor(command: string[], env: Environment, logFile: string) {
    this.logFile = logFile;
    this.logStart = existsSync(logFile) ? readFileSync(logFile).length : 0;
    const log = openSync(logFile, "a");
    this.#child = Bun.spawn(command, {
      env,
      cwd: "/",
      stdin: "ignore",
      stdout: log,
      stderr: log,
      detached: true, // As a service would be: signals of our terminal don't reach it.
    });
    closeSync(log);
  }

  get pid(): number {
    return this.#child.pid;
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get exitCode(): number | null {
    return this.#child.exitCode;
  }

  signal(name: NodeJS.Signals): void {
    if (this.running) this.#child.kill(name);
  }

  /** @throws {Error} it hasn't ended in time */
  async ended(timeoutMs: number): Promise<number | null> {
    await within(timeoutMs, `the end of process ${this.pid}`, this.#child.exited);
    return this.#child.exitCode;
  }
}

/** The part of a log file from an offset on. */
export function readLog(file: string, from = 0): string {
  return existsSync(file) ? readFileSync(file).subarray(from).toString("utf8") : "";
}

/** Waits until a log file matches, from an offset on; yields the match. */
export function waitForLog(
  file: string,
  pattern: RegExp,
  timeoutMs: number,
  from = 0,
): Promise<RegExpExecArray> {
  return waitFor(
    `${pattern} in ${file}`,
    timeoutMs,
    () => pattern.exec(readLog(file, from)) ?? undefined,
    { explain: () => lastLines(readLog(file, from), 30) },
  );
}

export function lastLines(text: string, count: number): string {
  return text.trimEnd().split("\n").slice(-count).join("\n");
}
