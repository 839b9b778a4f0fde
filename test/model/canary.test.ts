/** The model must find what is broken on purpose; a mutant that survives fails its test. */
import { expect, test } from "bun:test";
import { caughtBy, MUTANTS } from "./mutants.ts";

const TIMEOUT_MS = 120_000;

test.each(MUTANTS.map((mutant) => [mutant.name, mutant] as const))(
  "%s",
  async (_, mutant) => {
    const caught = await caughtBy(mutant);
    console.log(`  ${caught?.where}: ${caught?.failure.message.split("\n")[0]}`);
    expect(caught ? "caught" : "survived").toBe("caught");
  },
  TIMEOUT_MS,
);
