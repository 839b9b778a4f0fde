/** A command that is run when this process is done or dead, in whatever way it ended. */
import { delay } from "./clock.ts";
import { AppError, invariant } from "./errors.ts";
import { logger } from "./log.ts";

const quoted = (word: string): string => (/^[\w./-]+$/.test(word) ? word : `'${word}'`);

/** The command itself is short. */
const HEAL_MS = 10_000;

/**
 * Waits for the end of its input, which is a pipe from the guarded process: the kernel closes it, whatever has killed that.
 * It ignores what a terminal sends, so KILL is what ends the waiting at the deadline.
 */
const SCRIPT = `trap '' HUP INT TERM; timeout -s KILL "$1" cat; shift; exec "$@"`;

/**
 * Starts the guard. The command is run once: when the guard is disposed of, when this process has died, or at the deadline.
 *
 * @param command a program and its arguments
 * @throws {AppError} when it is disposed of: state, the command failed; when it is started: config, a program is missing
 */
export function openGuard(command: readonly string[], deadlineMs: number): AsyncDisposable {
  for (const program of ["sh", "timeout", "cat", command[0] ?? ""]) {
    if (Bun.which(program) !== null) continue;
    throw new AppError("config", "a program is missing", {
      detail: { program },
      hint: "Install it; Debian has timeout and cat in coreutils.",
    });
  }
  const seconds = String(Math.ceil(deadlineMs / 1000));
  const child = Bun.spawn(["sh", "-c", SCRIPT, "guard", seconds, ...command], {
    stdin: "pipe",
    stdout: "ignore",
    stderr: "pipe",
    detached: true,
  });
  invariant(child.pid > 1, "the guard has a process");
  return {
    async [Symbol.asyncDispose]() {
      await child.stdin.end();
      await Promise.race([child.exited, delay(HEAL_MS)]);
      if (child.exitCode === 0) return;
      const said = child.exitCode === null ? "" : await new Response(child.stderr).text();
      const detail = {
        command: command.map(quoted).join(" "),
        reason: said || "it takes too long",
      };
      // said here too: what is under way may have failed of something else, which is then told instead
      logger("guard").error(
        "what was broken on purpose could not be healed: run this by hand",
        detail,
      );
      throw new AppError("state", "what was broken on purpose could not be healed", {
        detail,
        hint: "Run that command by hand.",
      });
    },
  };
}
