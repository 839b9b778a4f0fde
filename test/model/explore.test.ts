/**
 * Every world of one and two nodes that some order of events leads to, within the bounds that each
 * search states. Those with commits run beside these, in a file of their own; `bun test/model/run.ts`
 * has a longer one, too.
 */
import { test } from "bun:test";
import { expectUnbroken } from "./explore.ts";
import { SEARCHES } from "./searches.ts";

const TIMEOUT_MS = 240_000;

test.each(SEARCHES.filter(({ isLong }) => !isLong).map((one) => [one.name, one] as const))(
  "S1-S4: %s",
  (_, one) => expectUnbroken(one),
  TIMEOUT_MS,
);
