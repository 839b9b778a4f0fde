/**
 * Programs of the operator that are told of each change of this node's state. They run beside the
 * keeper, one at a time, and can hold up nothing but each other.
 */
import { constants, readdirSync, type Stats, statSync } from "node:fs";
import { join } from "node:path";
import type { NodeState } from "../fsm.ts";
import { delay, monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { run } from "../sys/exec.ts";
import type { Logger } from "../sys/log.ts";
import { type Role, roleOf } from "./report.ts";

/** What a hook reads on its standard input, as JSON. */
export type Change = {
  readonly formation: string;
  readonly group: number;
  readonly node: {
    readonly id: number | undefined;
    readonly name: string | undefined;
    readonly host: string;
    readonly port: number;
  };
  /** The same as `to`: the keeper has started PostgreSQL in the state that it was in. */
  readonly from: NodeState;
  readonly to: NodeState;
  readonly timeline: number | undefined;
  readonly lsn: string | undefined;
};
type Told = Change & { readonly role: Role; readonly role_before: Role; readonly time: string };

export type Hooks = {
  /** Comes back at once. */
  tell(change: Change): void;
  /** Waits for what is still to be run, and after this many ms ends it. */
  close(patienceMs: number): Promise<void>;
};

export const HOOK_TIMEOUT_MS = 10_000;
const WAITING_MAX = 100;
const OUTPUT_MAX = 4096;
/** A hook that is killed, and the word about it, are waited for this long. */
const KILL_MS = 3000;
/** run-parts' rule: no editor's backups, no package manager's leftovers. */
const NAME = /^[A-Za-z0-9_-]+$/;
/** Of the keeper's environment; passwords, and the files that hold them, are not for hooks. */
const KEPT = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR"];

/** Why this file or directory can't be trusted; undefined: it can. */
function distrust(stats: Stats): string | undefined {
  if (stats.uid !== 0 && stats.uid !== process.geteuid?.())
    return "it belongs to another user than root or the keeper's";
  return (stats.mode & constants.S_IWOTH) !== 0 ? "everybody may write to it" : undefined;
}

/** The programs in it that may be run, by name; what may not is said. */
function hooksIn(directory: string, log: Logger): string[] {
  const trusted = (path: string, stats: Stats): boolean => {
    const why = distrust(stats);
    if (why !== undefined) log.warn(`Not run, as ${why}`, { hook: path });
    return why === undefined;
  };
  try {
    if (!trusted(directory, statSync(directory))) return [];
    return readdirSync(directory)
      .filter((name) => NAME.test(name))
      .sort()
      .map((name) => join(directory, name))
      .filter((path) => {
        const stats = statSync(path, { throwIfNoEntry: false });
        return stats?.isFile() && (stats.mode & 0o111) !== 0 && trusted(path, stats);
      });
  } catch (error) {
    log.warn(`Hooks can't be read: ${errorText(error)}`);
    return [];
  }
}

const environment = (): Record<string, string | undefined> =>
  Object.fromEntries(
    Object.entries(process.env).map(([key, value]) => [
      key,
      KEPT.includes(key) ? value : undefined,
    ]),
  );

/**
 * @param onOutcome hears of every run that failed, and of those that went well when the role has changed; doesn't throw
 */
export function openHooks(
  options: { readonly directory: string; readonly timeoutMs?: number | undefined },
  log: Logger,
  onOutcome: (sentence: string) => Promise<void>,
): Hooks {
  const { directory, timeoutMs = HOOK_TIMEOUT_MS } = options;
  const closing = new AbortController();
  const waiting: Told[] = [];
  let isWorking = false;
  let worked: Promise<unknown> = Promise.resolve();
  let said: Promise<unknown> = Promise.resolve();

  async function call(program: string, told: Told): Promise<void> {
    const begun = monotonicMs();
    const what = `Hook "${program}" for "${told.from}" → "${told.to}"`;
    const say = (level: "info" | "warn", outcome: string, output = ""): void => {
      const took = { took_ms: Math.round(monotonicMs() - begun) };
      log[level](`${what} ${outcome}`, output === "" ? took : { ...took, output });
      if (level === "warn" || told.role !== told.role_before)
        said = Promise.all([said, onOutcome(`${what} ${outcome}`)]);
    };
    try {
      const { code, stdout, stderr } = await run([program], {
        timeoutMs,
        signal: closing.signal,
        env: environment(),
        cwd: "/",
        input: `${JSON.stringify(told)}\n`,
        ownGroup: true,
        dieWithParent: true,
        outputMax: OUTPUT_MAX,
      });
      const output = `${stdout}${stderr}`.slice(0, OUTPUT_MAX).trim();
      if (code === 0) say("info", "is done", output);
      else say("warn", code === null ? "was killed by a signal" : `failed with ${code}`, output);
    } catch (error) {
      const isLate = error instanceof AppError && error.kind === "timeout";
      say("warn", isLate ? `was killed after ${timeoutMs} ms` : `failed: ${errorText(error)}`);
    }
  }

  async function work(): Promise<void> {
    isWorking = true;
    try {
      for (let told = waiting.shift(); told !== undefined; told = waiting.shift()) {
        for (const program of hooksIn(directory, log)) {
          if (closing.signal.aborted) return;
          await call(program, told);
        }
      }
    } finally {
      isWorking = false;
    }
  }

  return {
    tell(change) {
      // a server that was just started had no role
      const before = change.from === change.to ? "none" : roleOf(change.from);
      const role = roleOf(change.to);
      waiting.push({ ...change, role, role_before: before, time: new Date().toISOString() });
      if (waiting.length > WAITING_MAX) {
        const dropped = waiting.shift();
        log.warn(
          `Hooks are too slow: they are not told of "${dropped?.from}" → "${dropped?.to}" any more`,
        );
      }
      if (!isWorking) worked = work().catch((error: unknown) => log.error(errorText(error)));
    },
    async close(patienceMs) {
      const late = setTimeout(() => closing.abort(new Error("the keeper ends")), patienceMs);
      const giveUp = new AbortController();
      await Promise.race([
        worked.then(() => said),
        delay(patienceMs + KILL_MS, giveUp.signal).catch(() => undefined),
      ]);
      clearTimeout(late);
      giveUp.abort();
    },
  };
}
