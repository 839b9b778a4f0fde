import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { acquireLock, isLock, lockHolder } from "../../../lib/sys/lock.ts";
import { waitUntil } from "../../../lib/sys/retry.ts";
import { isRoot } from "../../helpers/owner.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "lock-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const LOCK = join(import.meta.dir, "../../../lib/sys/lock.ts");

/** A process that takes the lock, says so, and does `then`. */
function holder(path: string, then: string) {
  const code = `
    const lock = require(${JSON.stringify(LOCK)}).acquireLock(${JSON.stringify(path)});
    ${then}`;
  return Bun.spawn([process.execPath, "-e", code], { stdin: "pipe", stdout: "pipe" });
}

const within = { timeoutMs: 4000, everyMs: 2 };

test("acquireLock: one holder at a time, in this process too", () => {
  const path = join(folder, "one");
  const lock = acquireLock(path);
  if (!isLock(lock)) throw new Error("nobody else can hold it");
  expect(readFileSync(path, "utf8")).toBe(`${process.pid}\n`);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(acquireLock(path)).toEqual({ heldBy: process.pid });
  expect(lockHolder(path)).toBe(process.pid);
  lock[Symbol.dispose]();
  lock[Symbol.dispose]();
  expect(lockHolder(path)).toBeUndefined();
  const again = acquireLock(path);
  expect(isLock(again)).toBeTrue();
  if (isLock(again)) again[Symbol.dispose]();
});

test("lockHolder: a pid that nobody holds the lock with doesn't count", () => {
  const path = join(folder, "stale");
  expect(lockHolder(path)).toBeUndefined();
  writeFileSync(path, `${process.pid}\n`);
  expect(lockHolder(path)).toBeUndefined();
});

test("acquireLock: the lock of a killed process is free, although its child lives", async () => {
  const path = join(folder, "killed");
  const held = holder(
    path,
    `
    const child = Bun.spawn(["sleep", "20"], { stdio: ["ignore", "ignore", "ignore"], detached: true });
    console.log(child.pid);`,
  );
  const child = Number(new TextDecoder().decode((await held.stdout.getReader().read()).value));
  try {
    expect(acquireLock(path)).toEqual({ heldBy: held.pid });
    held.kill("SIGKILL");
    await held.exited;
    await waitUntil(() => (lockHolder(path) === undefined ? true : undefined), {
      ...within,
      what: "the lock to be free",
    });
    process.kill(child, 0);
    const lock = acquireLock(path);
    expect(isLock(lock)).toBeTrue();
    if (isLock(lock)) lock[Symbol.dispose]();
  } finally {
    process.kill(child, "SIGKILL");
  }
});

const why = !isRoot ? "only root can make" : Bun.which("chattr") ? "" : "without chattr there is";
if (why) console.log(`skipping a test of locks: ${why} no file that can't be emptied`);

test.skipIf(why !== "")(
  "a lock whose file can't be emptied any more is let go of all the same",
  () => {
    const path = join(folder, "kept");
    const lock = acquireLock(path);
    Bun.spawnSync(["chattr", "+a", path]);
    try {
      if (isLock(lock)) lock[Symbol.dispose]();
      expect(readFileSync(path, "utf8")).toBe(`${process.pid}\n`);
      expect(lockHolder(path)).toBeUndefined();
    } finally {
      Bun.spawnSync(["chattr", "-a", path]);
    }
  },
);

test("acquireLock: a process that only asks who holds it doesn't get in the way", async () => {
  const path = join(folder, "asked");
  writeFileSync(path, "");
  const asking = holder(
    path,
    `
    lock[Symbol.dispose]();
    console.log("asking");
    const until = performance.now() + 300;
    while (performance.now() < until) require(${JSON.stringify(LOCK)}).lockHolder(${JSON.stringify(path)});`,
  );
  await asking.stdout.getReader().read();
  let refused = 0;
  for (let i = 0; i < 50; i++) {
    const lock = acquireLock(path);
    if (isLock(lock)) lock[Symbol.dispose]();
    else refused++;
    await Bun.sleep(1);
  }
  expect(refused).toBe(0);
  expect(await asking.exited).toBe(0);
});
