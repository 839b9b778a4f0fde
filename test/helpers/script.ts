/** How a script of this folder that is run by hand reads its command line, and how it ends. */
import { type ParseArgsOptionsConfig, parseArgs } from "node:util";

/** A mistake in the command line. */
export class UsageError extends Error {}

/** @throws {UsageError} */
export function parseFlags<T extends ParseArgsOptionsConfig>(options: T) {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

/** @throws {UsageError} */
export function wholeNumber(name: string, text: string, from = 1): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isInteger(value) && value >= from) return value;
  throw new UsageError(`--${name} takes a whole number from ${from}, not "${text}"`);
}

/** @throws {UsageError} */
export function positiveNumber(name: string, text: string): number {
  const value = Number(text);
  if (value > 0 && Number.isFinite(value)) return value;
  throw new UsageError(`--${name} takes a number above 0, not "${text}"`);
}

/** @throws {UsageError} */
export function oneOf<T extends string>(name: string, text: string, known: readonly T[]): T {
  const found = known.find((each) => each === text);
  if (found !== undefined) return found;
  throw new UsageError(`--${name}: there is no "${text}", but ${known.join(", ")}`);
}

/**
 * Ends the process with what `main` yields, with 2 after a mistake in the command line, or by a signal; what is up is
 * removed at the exit.
 */
export async function runScript(name: string, main: () => Promise<number>): Promise<never> {
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const) {
    process.once(signal, () => process.exit(code));
  }
  try {
    process.exit(await main());
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    console.error(`${name}: ${error.message}`);
    process.exit(2);
  }
}
