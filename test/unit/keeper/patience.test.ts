import { expect, test } from "bun:test";
import { impatience } from "../../../lib/keeper/patience.ts";

const LIMITS = { goalTimeoutMs: 1000, joinTimeoutMs: 5000 };
const said = (waitedMs: number, state: "init" | "wait_standby", goal: typeof state | "single") =>
  impatience(LIMITS, waitedMs, { state, goal }, "node_1")?.message;

test("impatience: for a goal, and for the primary, each for as long as it may take", () => {
  expect(said(1000, "init", "init")).toBeUndefined();
  expect(said(1001, "init", "init")).toMatch(/nobody assigns this node a goal/);
  expect(said(9999, "init", "single")).toBeUndefined();
  expect(said(5000, "wait_standby", "wait_standby")).toBeUndefined();
  expect(said(5001, "wait_standby", "wait_standby")).toBe("the primary is not ready for a standby");
});
