import { expect, test } from "bun:test";
import { parseVersion } from "../../../lib/pg/binaries.ts";

test("parseVersion reads releases, betas and packagers' suffixes", () => {
  expect(parseVersion("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n")).toEqual({
    major: 15,
    version: "15.18",
  });
  expect(parseVersion("postgres (PostgreSQL) 18beta1")).toEqual({ major: 18, version: "18beta1" });
  expect(parseVersion("postgres (PostgreSQL) 9.6.24")).toEqual({ major: 9, version: "9.6.24" });
  expect(parseVersion("pg_ctl: command not found")).toBeUndefined();
});
