/** Helper programs: run one, bounded, and read what it says. */

import { AppError, type Detail, invariant } from "./errors.ts";

/** How to run a program. */
export type RunOptions = {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  /** Added to this process's environment; an undefined value takes a variable away. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
  readonly cwd?: string | undefined;
  /** What it reads from its standard input, which is empty otherwise. */
  readonly input?: string | undefined;
  /** Called with each line of its standard error as it comes; a carriage return ends a line too (progress reports). */
  readonly onStderrLine?: ((line: string) => void) | undefined;
  /** The program is killed when this process dies, however that happens; Linux with `setpriv`, elsewhere ignored. */
  readonly dieWithParent?: boolean | undefined;
  /** It gets a session of its own, and whatever it has started there ends with it. */
  readonly ownGroup?: boolean | undefined;
  /** How much of each output is kept, in characters; the rest is read and forgotten. */
  readonly outputMax?: number | undefined;
};

/** How a program ended: `code` is null when a signal ended it. */
export type RunResult = { code: number | null; stdout: string; stderr: string };

/** What is meant for this process alone: the service manager's, and the password of its own login, which libpq would take for any other's. */
const NOT_FOR_PROGRAMS = {
  PGPASSWORD: undefined,
  NOTIFY_SOCKET: undefined,
  WATCHDOG_PID: undefined,
  WATCHDOG_USEC: undefined,
};

/** From SIGTERM to SIGKILL, and from there until a process that can't be killed (a disk that hangs) is left to itself. */
const TERMINATE_MS = 1000;

/** A grandchild that keeps a pipe open must not hold the result back for longer. */
const DRAIN_MS = 1000;

/**
 * Runs a program to its end; a program that fails is a result, not an error.
 *
 * Messages are untranslated (`LC_ALL=C`). On abort and at the deadline it gets SIGTERM, and SIGKILL 1 s later.
 *
 * @throws {AppError} config, when it can't be started
 * @throws {AppError} timeout, after `timeoutMs`
 * @throws the signal's reason
 */
export async function run(command: readonly string[], options: RunOptions): Promise<RunResult> {
  const { timeoutMs, signal, cwd, input, onStderrLine, outputMax } = options;
  const [program = ""] = command;
  signal?.throwIfAborted();
  const child = spawn(program, command, options, { cwd, input });
  const stdout = collect(child.stdout, { max: outputMax });
  const stderr = collect(child.stderr, { max: outputMax, onLine: onStderrLine });

  let stopped: { reason: unknown } | undefined;
  let kill: ReturnType<typeof setTimeout> | undefined;
  const unkillable = Promise.withResolvers<void>();
  const send = (name: NodeJS.Signals) => {
    if (options.ownGroup) signalGroup(child.pid, name);
    else child.kill(name);
  };
  const stop = (reason: unknown) => {
    if (stopped !== undefined) return;
    stopped = { reason };
    send("SIGTERM");
    kill = setTimeout(() => {
      send("SIGKILL");
      kill = setTimeout(unkillable.resolve, TERMINATE_MS);
    }, TERMINATE_MS);
  };
  const abort = () => stop(signal?.reason);
  signal?.addEventListener("abort", abort, { once: true });
  const deadline = setTimeout(() => {
    stop(
      new AppError("timeout", "a program took too long", {
        detail: { program, timeout_ms: timeoutMs },
      }),
    );
  }, timeoutMs);
  try {
    await Promise.race([child.exited, unkillable.promise]);
    if (options.ownGroup) signalGroup(child.pid, "SIGKILL");
    if (stopped === undefined) await drained([stdout.done, stderr.done]);
  } finally {
    clearTimeout(deadline);
    clearTimeout(kill);
    signal?.removeEventListener("abort", abort);
    stdout.stop();
    stderr.stop();
  }
  if (stopped !== undefined) throw stopped.reason;
  return { code: child.exitCode, stdout: stdout.text(), stderr: stderr.text() };
}

/** "" when this machine has no setpriv. Looked up once, since PATH does not change. */
let setpriv: string | undefined;

function spawn(
  program: string,
  command: readonly string[],
  { env, dieWithParent, ownGroup }: RunOptions,
  { cwd, input }: { cwd: string | undefined; input: string | undefined },
) {
  const argv = [...command];
  if (dieWithParent) {
    setpriv ??= process.platform === "linux" ? (Bun.which("setpriv") ?? "") : "";
    // setpriv would report a missing program in its own words; ours is found first.
    if (setpriv !== "") argv.splice(0, 1, setpriv, "--pdeathsig", "KILL", "--", program);
  }
  if (Bun.which(program, cwd === undefined ? {} : { cwd }) === null) {
    throw cannotStart({ program, reason: "not found, or not executable" });
  }
  try {
    return Bun.spawn(argv, {
      env: { ...process.env, ...NOT_FOR_PROGRAMS, ...env, LC_ALL: "C", LANGUAGE: undefined },
      stdin: input === undefined ? "ignore" : Buffer.from(input),
      stdout: "pipe",
      stderr: "pipe",
      detached: ownGroup ?? false,
      ...(cwd === undefined ? {} : { cwd }),
    });
  } catch (error) {
    throw cannotStart({ program, cwd, reason: (error as Error).message }, error);
  }
}

/** The group of a child of ours; that there is nobody left in it is no error. */
function signalGroup(first: number, name: NodeJS.Signals): void {
  invariant(Number.isInteger(first) && first > 1, "a group is named by its first process");
  try {
    process.kill(-first, name);
  } catch {
    // gone, or another user's by now
  }
}

function cannotStart(detail: Detail, cause?: unknown): AppError {
  return new AppError("config", "could not start a program", { detail, cause });
}

/** Reads a stream to its end, or until `stop`. */
function collect(
  stream: ReadableStream<Uint8Array>,
  {
    max = Number.POSITIVE_INFINITY,
    onLine,
  }: { max?: number | undefined; onLine?: ((line: string) => void) | undefined },
) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let text = "";
  let begun = "";
  const take = (part: string) => {
    if (text.length < max) text += part.slice(0, max - text.length);
    if (onLine === undefined) return;
    const lines = (begun + part).split(/\r?\n|\r/);
    begun = lines.pop() ?? "";
    for (const line of lines) onLine(line);
  };
  const read = async () => {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      take(decoder.decode(value, { stream: true }));
    }
    take(decoder.decode());
    if (begun !== "") onLine?.(begun);
  };
  const done = read();
  // Who stops before the end does not ask how the rest went.
  done.catch(() => {});
  return { done, text: () => text, stop: () => void reader.cancel().catch(() => {}) };
}

async function drained(streams: readonly Promise<void>[]): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, DRAIN_MS);
  });
  try {
    await Promise.race([Promise.all(streams), late]);
  } finally {
    clearTimeout(timer);
  }
}
