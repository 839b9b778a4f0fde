import { describe, expect, test } from "bun:test";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { currentUser, findAccount, homeDirectory } from "../../../lib/sys/user.ts";
import { isRoot } from "../../helpers/owner.ts";

const USER = join(import.meta.dir, "../../../lib/sys/user.ts");

/** Runs becomeOwnerOf in a process of its own, perhaps as another user from the start. */
async function become(path: string, options: { uid?: number; env?: Record<string, string> } = {}) {
  const code = `
    const user = await import(${JSON.stringify(USER)});
    if (${options.uid ?? 0}) process.setuid(${options.uid ?? 0});
    try {
      user.becomeOwnerOf(${JSON.stringify(path)});
      const { HOME, USER, LOGNAME, XDG_DATA_HOME } = process.env;
      console.log(JSON.stringify({ uid: process.getuid(), euid: process.geteuid(), gid: process.getgid(),
        groups: process.getgroups(), cwd: process.cwd(), HOME, USER, LOGNAME, XDG_DATA_HOME }));
    } catch ({ kind, message, detail, hint }) {
      console.log(JSON.stringify({ kind, message, detail, hint }));
    }`;
  const env = { PATH: process.env["PATH"], HOME: "/root", ...options.env };
  const child = Bun.spawn([process.execPath, "-e", code], { stdin: "ignore", stdout: "pipe", env });
  return JSON.parse(await child.stdout.text());
}

const postgres = findAccount("postgres");

describe.skipIf(!isRoot || postgres === undefined)("becomeOwnerOf, started as root", () => {
  test("what nobody else owns is postgres's: groups, home and folder are theirs", async () => {
    const found = await become("/nothing/here", { env: { XDG_DATA_HOME: "/tmp/data" } });
    expect(found).toMatchObject({
      uid: postgres?.uid,
      euid: postgres?.uid,
      gid: postgres?.gid,
      cwd: "/",
      HOME: postgres?.home,
      USER: "postgres",
      LOGNAME: "postgres",
      XDG_DATA_HOME: "/tmp/data",
    });
    expect(found.groups).not.toContain(0);
  });

  test("root's own data folder is left behind", async () => {
    const found = await become("/nothing", { env: { XDG_DATA_HOME: "/root/.local/share" } });
    expect(found.XDG_DATA_HOME).toBeUndefined();
  });

  test("the owner of the path, or of the folder above that is there", async () => {
    const folder = mkdtempSync(join(tmpdir(), "user-"));
    try {
      chmodSync(folder, 0o755);
      mkdirSync(join(folder, "games"));
      chownSync(join(folder, "games"), 5, 60);
      for (const path of [join(folder, "games"), join(folder, "games", "a", "b")]) {
        expect(await become(path)).toMatchObject({ uid: 5, USER: findAccount(5)?.name });
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("another user than root changes nothing, and must own the path", async () => {
    expect(await become("/nothing/here", { uid: 5 })).toMatchObject({ uid: 5, HOME: "/root" });
    const name = findAccount(5)?.name;
    expect(await become("/etc", { uid: 5 })).toEqual({
      kind: "permission",
      message: "the directory belongs to another user",
      detail: { path: "/etc", owner: "root", user: name },
      hint: "Run this as root: sudo -u root …",
    });
  });

  test("an owner without an account is refused", async () => {
    const folder = mkdtempSync(join(tmpdir(), "user-"));
    try {
      chownSync(folder, 54_321, 54_321);
      expect(await become(folder)).toMatchObject({
        kind: "permission",
        detail: { owner: "54321" },
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

test("findAccount: by name, by number, or nobody", () => {
  expect(findAccount("root")).toMatchObject({ name: "root", uid: 0, gid: 0 });
  expect(findAccount(0)).toEqual(findAccount("root"));
  expect(findAccount("no such user")).toBeUndefined();
  expect(findAccount("-x")).toBeUndefined();
  expect(findAccount(54_321)).toBeUndefined();
});

test("currentUser and homeDirectory: of this process", () => {
  expect(findAccount(currentUser())?.uid).toBe(process.getuid?.());
  expect(homeDirectory()).toStartWith("/");
});
