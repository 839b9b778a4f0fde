import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  hasSyncfs,
  readIfExists,
  removeDurably,
  writeDurably,
  writeFully,
} from "../../../lib/sys/files.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "files-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe("writeDurably", () => {
  test("makes and replaces a file with exactly that mode, and leaves nothing else", () => {
    const path = join(folder, "made");
    writeDurably(path, "first", 0o600);
    writeDurably(path, "zweite Zeile äöü\n", 0o666);
    expect(readIfExists(path)).toBe("zweite Zeile äöü\n");
    expect(statSync(path).mode & 0o777).toBe(0o666);
    expect(readdirSync(folder)).toEqual(["made"]);
  });

  test("a failure leaves the old file and no temporary one", () => {
    const path = join(folder, "taken");
    mkdirSync(join(path, "sub"), { recursive: true });
    expect(() => writeDurably(path, "text", 0o600)).toThrow();
    expect(readdirSync(folder).filter((name) => name.includes("tmp"))).toEqual([]);
    expect(() => writeDurably(join(folder, "none", "x"), "text", 0o600)).toThrow("ENOENT");
  });

  test("a temporary file that a killed process left doesn't stand in the way", () => {
    const path = join(folder, "again");
    writeFileSync(`${path}.${process.pid}.tmp`, "half");
    writeDurably(path, "whole", 0o600);
    expect(readIfExists(path)).toBe("whole");
  });

  test("syncs the file, renames it, then syncs the folder", async () => {
    if (Bun.which("strace") === null) return;
    const files = join(import.meta.dir, "../../../lib/sys/files.ts");
    const code = `require(${JSON.stringify(files)}).writeDurably(${JSON.stringify(join(folder, "traced"))}, "x", 0o600)`;
    const traced = Bun.spawn(
      ["strace", "-f", "-e", "trace=fsync,rename,renameat,renameat2", process.execPath, "-e", code],
      { stdin: "ignore", stderr: "pipe" },
    );
    const calls = (await traced.stderr.text()).match(/\b(fsync|rename)(?=\w*\()/g);
    expect(calls).toEqual(["fsync", "rename", "fsync"]);
  });
});

test("removeDurably: a file that is there, and one that isn't", () => {
  const path = join(folder, "gone");
  writeDurably(path, "x", 0o600);
  removeDurably(path);
  removeDurably(path);
  expect(readIfExists(path)).toBeUndefined();
});

test("readIfExists: only a missing file is none", () => {
  writeDurably(join(folder, "plain"), "", 0o600);
  expect(readIfExists(join(folder, "plain"))).toBe("");
  expect(readIfExists(join(folder, "plain", "below"))).toBeUndefined();
  expect(() => readIfExists(folder)).toThrow("EISDIR");
});

test("writeFully: a pipe that is read slowly gets everything", async () => {
  const files = join(import.meta.dir, "../../../lib/sys/files.ts");
  const code = `require(${JSON.stringify(files)}).writeFully(1, "x".repeat(1000000))`;
  const child = Bun.spawn([process.execPath, "-e", code], { stdin: "ignore", stdout: "pipe" });
  expect((await child.stdout.text()).length).toBe(1_000_000);
  expect(await child.exited).toBe(0);
  expect(() => writeFully(-1, "x")).toThrow();
});

test("hasSyncfs: where Linux tells of errors in writing", () => {
  expect(hasSyncfs("5.8.0-1-amd64", "linux")).toBe(true);
  expect(hasSyncfs("6.1.0", "linux")).toBe(true);
  expect(hasSyncfs("5.4.0-150-generic", "linux")).toBe(false);
  expect(hasSyncfs("4.18.0-553.el8", "linux")).toBe(false);
  expect(hasSyncfs("23.5.0", "darwin")).toBe(false);
});
