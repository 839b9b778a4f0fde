/** How a script of this folder ends that is run by hand. */

/** A mistake in the command line. */
export class UsageError extends Error {}

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
