/** What a refused command owes its user: one line that says why, one that says what to do next. */
import { expect } from "bun:test";
import type { Outcome } from "./command.ts";

export type Refusal = {
  /** One code, or several where the fault can be met at more than one place. */
  code: number | readonly number[];
  /** Must be found in the error's line. */
  says: RegExp;
  withinMs?: number;
};

/** Exactly one error with exactly one hint, the exit code, nothing on stdout, no stack. */
export function expectRefusal(outcome: Outcome, { code, says, withinMs = 10_000 }: Refusal): void {
  const { command, stdout, stderr, tookMs } = outcome;
  const lines = stderr.split("\n");
  const context = `${command}\n${stderr}`;
  const errors = lines.filter((line) => /^(\d\d:\d\d:\d\d )?error\b/i.test(line));
  const hints = lines.filter((line) => /^ {2}hint: \S/.test(line));
  const stack = lines.filter((line) => /^\s+at .*[:(]\d+/.test(line));
  expect({ context, errors: errors.length, hints: hints.length, stack }).toEqual({
    context,
    errors: 1,
    hints: 1,
    stack: [],
  });
  expect(errors[0]).toMatch(says);
  expect({ context, stdout }).toEqual({ context, stdout: "" });
  const codes: readonly (number | null)[] = typeof code === "number" ? [code] : code;
  expect({ context, code: codes.includes(outcome.code) ? "as expected" : outcome.code }).toEqual({
    context,
    code: "as expected",
  });
  expect(tookMs).toBeLessThan(withinMs);
}
