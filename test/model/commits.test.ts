/** As explore.test.ts, where applications commit at any moment. */
import { test } from "bun:test";
import { expectUnbroken } from "./explore.ts";
import { SEARCHES } from "./searches.ts";

const TIMEOUT_MS = 400_000;

const searches = SEARCHES.filter(({ isLong, isLongest }) => isLong && !isLongest);
test.each(searches.map((one) => [one.name, one] as const))(
  "S1-S3: %s",
  (_, one) => expectUnbroken(one),
  TIMEOUT_MS,
);
