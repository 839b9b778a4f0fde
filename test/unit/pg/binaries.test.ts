import { expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findBinaries, parseVersion, updateBefore } from "../../../lib/pg/binaries.ts";

test("parseVersion reads releases, betas and packagers' suffixes", () => {
  expect(parseVersion("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n")).toEqual({
    major: 15,
    version: "15.18",
  });
  expect(parseVersion("postgres (PostgreSQL) 18beta1")).toEqual({ major: 18, version: "18beta1" });
  expect(parseVersion("postgres (PostgreSQL) 9.6.24")).toEqual({ major: 9, version: "9.6.24" });
  expect(parseVersion("pg_ctl: command not found")).toBeUndefined();
});

test("updateBefore names the release whose commits wait for standbys from the start on", () => {
  const asked = ["13.20", "13.21", "15.12", "15.18", "16.8", "17.4", "17.5", "18.0", "18beta1"];
  const answers = asked.map((version) =>
    updateBefore({ version, major: Number.parseInt(version, 10) }),
  );
  const none = undefined;
  expect(answers).toEqual(["13.21", none, "15.13", none, "16.9", "17.5", none, none, none]);
});

test("findBinaries refuses a PostgreSQL that nothing is known of, and says which it takes", async () => {
  const bindir = mkdtempSync(join(tmpdir(), "pgaf-binaries-"));
  try {
    const pgctl = join(bindir, "pg_ctl");
    const become = (version: string): void => {
      for (const name of ["postgres", "initdb", "pg_ctl"]) {
        writeFileSync(join(bindir, name), `#!/bin/sh\necho "${name} (PostgreSQL) ${version}"\n`);
        chmodSync(join(bindir, name), 0o755);
      }
    };
    for (const version of ["13.23", "18.6"]) {
      become(version);
      expect(await findBinaries({ pgctl })).toMatchObject({ version });
    }
    for (const version of ["12.22", "19beta1"]) {
      become(version);
      await expect(findBinaries({ pgctl })).rejects.toMatchObject({
        kind: "postgres",
        detail: { pgctl, version, wanted: "13 to 18" },
        hint: "Name the pg_ctl of a PostgreSQL 13 to 18.",
      });
    }
  } finally {
    rmSync(bindir, { recursive: true });
  }
});
