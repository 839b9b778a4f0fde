import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NodePaths } from "../../../lib/config.ts";
import {
  passfileOf,
  readSecret,
  writeMonitorPassword,
  writeSecret,
} from "../../../lib/keeper/passfile.ts";
import { passwordIn } from "../../../lib/sys/passfile.ts";

let paths: NodePaths;
beforeEach(() => {
  paths = { directory: mkdtempSync(join(tmpdir(), "passfile-")) } as NodePaths;
});
afterEach(() => rmSync(paths.directory, { recursive: true }));

const asked = (user: string) =>
  passwordIn(passfileOf(paths), { host: "h", port: 5432, database: "replication", user });

test("both passwords are kept, whichever is written, with any character, for the owner only", () => {
  expect(readSecret(paths)).toBeUndefined();
  const odd = "a:b\\c d'#e";
  writeMonitorPassword(paths, "first");
  writeSecret(paths, { id: "1", password: "old" });
  writeSecret(paths, { id: "2", password: odd });
  writeMonitorPassword(paths, `${odd}:pgautofailover_replicator:`);
  expect(readSecret(paths)).toEqual({ id: "2", password: odd });
  expect(asked("pgautofailover_replicator")).toBe(odd);
  expect(asked("autoctl_node")).toBe(`${odd}:pgautofailover_replicator:`);
  expect(asked("postgres")).toBeUndefined();
  expect(statSync(passfileOf(paths)).mode & 0o777).toBe(0o600);
  expect(readFileSync(passfileOf(paths), "utf8").split("\n")).toHaveLength(4);
  writeSecret(paths, { id: "3", password: "new" });
  expect(asked("autoctl_node")).toBe(`${odd}:pgautofailover_replicator:`);
});
