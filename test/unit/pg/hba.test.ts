import { afterEach, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
  localLines,
  nodeLines,
  tlsOnlyLines,
  withHbaBlock,
  writeHbaBlock,
} from "../../../lib/pg/hba.ts";

const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) {
    rmSync(path, { recursive: true });
  }
});

const OURS = ["host all all 127.0.0.1/32 trust", "host replication r 10.0.0.2/32 scram-sha-256"];
const THEIRS = "# mine\nlocal all all peer\n";
const [BEGIN = "", , , END = ""] = withHbaBlock("", OURS).split("\n");

test("our lines are the first that PostgreSQL reads", () => {
  expect(withHbaBlock(THEIRS, OURS)).toBe([BEGIN, ...OURS, END, THEIRS].join("\n"));
});

test("new lines replace the old ones, wherever the operator has moved the block", () => {
  const moved = `host all all 10.0.0.9/32 reject\n${withHbaBlock(THEIRS, ["host a b c trust"])}`;
  expect(withHbaBlock(moved, OURS)).toBe(
    [BEGIN, ...OURS, END, "host all all 10.0.0.9/32 reject", THEIRS].join("\n"),
  );
});

test("without its end marker only our own lines are taken for ours", () => {
  const cut = withHbaBlock(THEIRS, OURS).replace(`${END}\n`, "");
  expect(withHbaBlock(cut, OURS)).toBe([BEGIN, ...OURS, END, THEIRS].join("\n"));
});

test("whatever was there, the operator's lines stay in order and a second time changes nothing", () => {
  const line = fc.constantFrom(BEGIN, END, "local all all peer", "# c", "", "host x y z trust");
  const foreign = (text: string) => text.split("\n").filter((each) => /^(local|# c)/.test(each));
  fc.assert(
    fc.property(fc.array(line, { maxLength: 10 }), (lines) => {
      const once = withHbaBlock(lines.join("\n"), OURS);
      expect(withHbaBlock(once, OURS)).toBe(once);
      expect(once.split("\n").filter((each) => each === BEGIN)).toHaveLength(1);
      if (!lines.includes(BEGIN)) {
        expect(foreign(once)).toEqual(foreign(lines.join("\n")));
      }
    }),
  );
});

test("a line break can't smuggle in a second line", () => {
  for (const line of ["a\nhost all all 0/0 trust", "a\r", BEGIN, END]) {
    expect(() => withHbaBlock("", [line])).toThrow(RangeError);
  }
});

test("writeHbaBlock tells whether the file changed, and keeps its mode", () => {
  const pgdata = mkdtempSync(join(tmpdir(), "hba-"));
  made.push(pgdata);
  const path = join(pgdata, "pg_hba.conf");
  writeFileSync(path, THEIRS);
  chmodSync(path, 0o640);
  expect(writeHbaBlock(pgdata, OURS)).toBe(true);
  expect(writeHbaBlock(pgdata, OURS)).toBe(false);
  expect(readFileSync(path, "utf8")).toBe(withHbaBlock(THEIRS, OURS));
  expect(statSync(path).mode & 0o777).toBe(0o640);
});

test("without trust a node's login comes by TLS only, whatever the operator's lines allow", () => {
  const access = { auth: "cert", type: "hostssl", lan: false } as const;
  expect(nodeLines(access, "r", ["10.0.0.2/32"], ["replication", "postgres"])).toEqual([
    "hostssl replication r 10.0.0.2/32 cert map=pgautofailover",
    "hostssl postgres r 10.0.0.2/32 cert map=pgautofailover",
  ]);
  expect(tlsOnlyLines(access, "r")).toEqual(["hostnossl all,replication r all reject"]);
  // people have passwords
  expect(localLines(access, "localhost", "all", ["all"])[0]).toBe(
    "hostssl all all 127.0.0.1/32 scram-sha-256",
  );
});

test("trust is for this machine: others have a password asked of them", () => {
  const access = { auth: "trust", type: "hostssl", lan: false } as const;
  expect(nodeLines(access, "r", ["10.0.0.2/32"], ["postgres"])).toEqual([
    "hostssl postgres r 10.0.0.2/32 scram-sha-256",
  ]);
  expect(localLines(access, "localhost", "all", ["all"])[0]).toBe(
    "host all all 127.0.0.1/32 trust",
  );
  expect(tlsOnlyLines({ ...access, type: "host" }, "r")).toEqual([]);
});
