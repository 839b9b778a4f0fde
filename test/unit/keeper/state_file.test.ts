import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadState, newState, saveState } from "../../../lib/keeper/state_file.ts";
import type { KeeperState } from "../../../lib/shapes.ts";
import { AppError } from "../../../lib/sys/errors.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "state-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

test("what was saved is what is loaded, for the owner's eyes only", () => {
  const path = join(folder, "state.json");
  const state: KeeperState = {
    ...newState(),
    nodeId: 2,
    state: "secondary",
    following: 1,
    syncMembers: [1, 3],
    promotedFrom: 3,
    promotion: { timeline: 4, forkLsn: "0/5000000" },
    proof: {
      pid: 4711,
      startedAtS: 1795385776,
      set: { version: 6, primaryId: 2, members: [1, 3], number: 1 },
    },
  };
  expect(loadState(path)).toBeUndefined();
  saveState(path, state);
  expect(loadState(path)).toEqual(state);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test("each node has an identity of its own", () => {
  expect(newState().identity).not.toBe(newState().identity);
});

describe("a file that can't be believed is refused, and named", () => {
  const good = { ...newState(), state: "primary" };
  test.each([
    ["torn", JSON.stringify(good).slice(0, 40)],
    ["empty", ""],
    ["of an unknown state", JSON.stringify({ ...good, state: "leading" })],
    ["without a version", JSON.stringify({ ...good, version: undefined })],
    ["without the promise", JSON.stringify({ ...good, following: undefined })],
    [
      "without those that could take its place",
      JSON.stringify({ ...good, syncMembers: undefined }),
    ],
    ["with half a promotion", JSON.stringify({ ...good, promotion: { timeline: 4 } })],
  ])("%s", (name, text) => {
    const path = join(folder, name);
    writeFileSync(path, text);
    expect(() => loadState(path)).toThrow(AppError);
    expect(() => loadState(path)).toThrow(/could not read a file of this node/);
  });
});

test("of a later release: a version that isn't known is refused, a key that isn't known is ignored", () => {
  const path = join(folder, "later.json");
  const state = newState();
  writeFileSync(path, JSON.stringify({ ...state, version: 2 }));
  const refusal = { kind: "config", hint: expect.stringContaining("Run the later release") };
  expect(() => loadState(path)).toThrow(expect.objectContaining(refusal));
  const set = { version: 1, primaryId: 1, members: [2], number: 1 };
  const proof = { pid: 4711, startedAtS: 1795385776, set };
  const added = { ...proof, more: 1, set: { ...set, more: 1 } };
  writeFileSync(path, JSON.stringify({ ...state, proof: added, more: { than: "is known" } }));
  expect(loadState(path)).toEqual({ ...state, proof });
});

test("a write that fails leaves the old file and nothing else", () => {
  const home = join(folder, "full");
  mkdirSync(home);
  const path = join(home, "state.json");
  saveState(path, { ...newState(), state: "secondary" });
  const before = readFileSync(path, "utf8");
  // a directory in the place of the temporary file: also root can't write that
  mkdirSync(`${path}.${process.pid}.tmp`);
  expect(() => saveState(path, { ...newState(), state: "primary" })).toThrow(AppError);
  expect(readFileSync(path, "utf8")).toBe(before);
});

test("a writer that is killed at any moment leaves a whole file, old or new", async () => {
  const home = join(folder, "killed");
  mkdirSync(home);
  const path = join(home, "state.json");
  saveState(path, newState());
  const module = JSON.stringify(join(import.meta.dir, "../../../lib/keeper/state_file.ts"));
  const code = `const { newState, saveState } = require(${module});
    console.log("writing");
    for (let i = 0; ; i++) saveState(${JSON.stringify(path)}, { ...newState(), incarnation: i });`;
  for (let round = 0; round < 3; round += 1) {
    const writer = Bun.spawn([process.execPath, "-e", code], { stdin: "ignore", stdout: "pipe" });
    await writer.stdout.getReader().read();
    // not a wait for a condition: some moment in the middle of a write
    await Bun.sleep(5 + 7 * round);
    writer.kill("SIGKILL");
    await writer.exited;
    expect(loadState(path)?.version).toBe(1);
  }
  saveState(path, newState());
  expect(readdirSync(home).filter((name) => name === "state.json")).toEqual(["state.json"]);
});
