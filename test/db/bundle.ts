/**
 * lib/pg/server.ts as one file, for a process that the tests start as a user who may be unable to
 * read this tree. Import it before pg_story.ts, which becomes that user; so it isn't awaited.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";

const { stdout } = Bun.spawnSync([
  process.execPath,
  "build",
  "--target=bun",
  join(import.meta.dir, "../../lib/pg/server.ts"),
]);
export const serverBundle = stdout.toString();

/** The way to this very Bun, also where its directory is closed. */
export const bun = existsSync("/proc/self/exe") ? "/proc/self/exe" : process.execPath;
