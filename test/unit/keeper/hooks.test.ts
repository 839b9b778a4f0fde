/** hooks: whatever a program does, the keeper goes on, and says what became of it. */
import { afterAll, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NodeState } from "../../../lib/fsm.ts";
import { type Change, openHooks } from "../../../lib/keeper/hooks.ts";
import type { Detail } from "../../../lib/sys/errors.ts";
import type { Logger } from "../../../lib/sys/log.ts";
import { isAlive } from "../../helpers/processes.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";

const base = mkdtempSync(join(tmpdir(), "pgaf-hooks-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let directory = "";
let told = "";
let lines: string[] = [];
let outcomes: string[] = [];
let made = 0;

beforeEach(() => {
  made += 1;
  directory = join(base, String(made));
  told = join(base, `told_${made}`);
  mkdirSync(directory, { mode: 0o755 });
  lines = [];
  outcomes = [];
});

const say = (message: string, detail?: Detail) =>
  void lines.push(`${message} ${JSON.stringify(detail ?? {})}`);
const LOG: Logger = { debug: say, info: say, warn: say, error: say };

function hook(name: string, script: string, mode = 0o755): void {
  writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`);
  chmodSync(join(directory, name), mode);
}

const open = (timeoutMs = 5000) =>
  openHooks({ directory, timeoutMs }, LOG, async (sentence) => {
    await Bun.sleep(1);
    outcomes.push(sentence);
  });

const change = (from: NodeState, to: NodeState): Change => ({
  formation: "default",
  group: 0,
  node: { id: 1, name: "node_1", host: "db1", port: 5432 },
  from,
  to,
  timeline: 2,
  lsn: "0/5000000",
});

const CLOSE_MS = 10_000;
const text = (): string => (existsSync(told) ? readFileSync(told, "utf8") : "");

test("each change is told, in order, to each hook by name; other files are none", async () => {
  hook("20-second", `printf 'second ' >> ${told}`);
  hook("10-first", `cat >> ${told}`);
  hook("30-editor~", `echo wrong >> ${told}`);
  hook("40.dpkg-old", `echo wrong >> ${told}`);
  hook("50-not-executable", `echo wrong >> ${told}`, 0o644);
  mkdirSync(join(directory, "60-directory"));
  const hooks = open();
  hooks.tell(change("wait_primary", "primary"));
  hooks.tell(change("primary", "demote_timeout"));
  await hooks.close(CLOSE_MS);
  const read = text().split("second ").filter(Boolean);
  expect(read.map((each) => JSON.parse(each))).toEqual([
    {
      ...change("wait_primary", "primary"),
      role: "primary",
      role_before: "primary",
      time: expect.stringMatching(/^\d{4}-.*Z$/),
    },
    expect.objectContaining({ to: "demote_timeout", role: "none", role_before: "primary" }),
  ]);
  // what went well is an event only where the role has changed
  expect(outcomes).toEqual(
    ["10-first", "20-second"].map(
      (name) => `Hook "${directory}/${name}" for "primary" → "demote_timeout" is done`,
    ),
  );
});

test("one that fails is told, and the next is called all the same; no secret is in its environment", async () => {
  process.env["PGPASSFILE"] = "/secret/file";
  process.env["PGPASSWORD"] = "secret";
  try {
    hook("1", `env > ${told}; echo 'it said no'; echo 'password=hunter2' >&2; exit 7`);
    hook("2", `echo second >> ${told}; kill -9 $$`);
    const hooks = open();
    hooks.tell(change("primary", "wait_primary"));
    await hooks.close(CLOSE_MS);
  } finally {
    delete process.env["PGPASSFILE"];
    delete process.env["PGPASSWORD"];
  }
  expect(outcomes).toEqual([
    expect.stringContaining('for "primary" → "wait_primary" failed with 7'),
    expect.stringContaining("was killed by a signal"),
  ]);
  expect(outcomes.join()).not.toContain("hunter2");
  expect(lines.join()).toContain("it said no");
  expect(text()).toContain("second");
  expect(text()).toContain("PATH=");
  expect(text()).not.toMatch(/^PG/m);
});

test("one that sleeps for ever, one that ignores SIGTERM, one whose child holds its output", async () => {
  hook("1-sleeps", `sleep 600 & echo $! >> ${told}; wait`);
  hook("2-ignores", `trap '' TERM; echo $$ >> ${told}; while :; do sleep 0.05; done`);
  hook("3-leaves-a-child", `sleep 600 & echo $! >> ${told}`);
  const hooks = open(300);
  const startMs = nowMs();
  hooks.tell(change("secondary", "prepare_promotion"));
  expect(nowMs() - startMs).toBeLessThan(100);
  await hooks.close(CLOSE_MS);
  expect(nowMs() - startMs).toBeLessThan(4000);
  expect(outcomes).toEqual([
    expect.stringContaining(
      '1-sleeps" for "secondary" → "prepare_promotion" was killed after 300 ms',
    ),
    expect.stringContaining(
      '2-ignores" for "secondary" → "prepare_promotion" was killed after 300 ms',
    ),
  ]);
  const pids = text().trim().split("\n").map(Number);
  expect(pids).toHaveLength(3);
  await waitFor("all of them to be gone", 2000, () => !pids.some(isAlive));
}, 10_000);

test("much output is kept in part", async () => {
  hook("1", "head -c 300000 /dev/zero | tr '\\0' x");
  const hooks = open();
  hooks.tell(change("primary", "demoted"));
  await hooks.close(CLOSE_MS);
  const [line = ""] = lines.filter((each) => each.includes("is done"));
  expect(line.match(/x+/g)?.some((run) => run.length === 4096)).toBe(true);
  expect(line.length).toBeLessThan(5000);
});

test("what others may write to is not run", async () => {
  hook("1", `echo wrong >> ${told}`, 0o757);
  const hooks = open();
  hooks.tell(change("primary", "demoted"));
  await hooks.close(CLOSE_MS);
  chmodSync(join(directory, "1"), 0o755);
  chmodSync(directory, 0o777);
  hooks.tell(change("primary", "demoted"));
  await hooks.close(CLOSE_MS);
  expect(text()).toBe("");
  expect(lines).toEqual(
    [join(directory, "1"), directory].map((path) => expect.stringContaining(`"hook":"${path}"`)),
  );
});

test("a directory that vanishes, and comes back", async () => {
  rmSync(directory, { recursive: true });
  const hooks = open();
  hooks.tell(change("primary", "demoted"));
  await waitFor("the word about it", 2000, () => lines.some((line) => line.includes("ENOENT")));
  mkdirSync(directory);
  hook("1", `echo back >> ${told}`);
  hooks.tell(change("demoted", "catchingup"));
  await hooks.close(CLOSE_MS);
  expect(text()).toBe("back\n");
});

test("more changes than hooks can keep up with: the oldest are dropped, and that is said", async () => {
  hook("1", `cat >> ${told}`);
  const hooks = open();
  for (let i = 0; i < 103; i += 1) hooks.tell({ ...change("primary", "demoted"), timeline: i });
  await hooks.close(60_000);
  const timelines = text()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).timeline);
  expect(timelines).toEqual([0, ...Array.from({ length: 100 }, (_, i) => i + 3)]);
  expect(lines.filter((line) => line.includes("Hooks are too slow"))).toHaveLength(2);
}, 60_000);

test("a keeper that ends waits, and not for ever", async () => {
  hook("1", `trap '' TERM; echo $$ >> ${told}; while :; do sleep 0.05; done`);
  hook("2", `echo wrong >> ${told}`);
  const hooks = open(60_000);
  hooks.tell(change("primary", "demoted"));
  await waitFor("the hook to run", 2000, () => text() !== "");
  const startMs = nowMs();
  await hooks.close(100);
  expect(nowMs() - startMs).toBeLessThan(2500);
  expect(isAlive(Number(text()))).toBe(false);
}, 10_000);
