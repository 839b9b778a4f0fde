import { expect, test } from "bun:test";
import fc from "fast-check";
import { DEFAULT_POLICY, FENCE_STOP_MS } from "../../../lib/group/view.ts";
import { couldBeReplaced, fenceAtMs } from "../../../lib/keeper/fence.ts";

const input = {
  lastContactMs: 10_000,
  lastReplyMs: 9_000,
  couldBeReplaced: true,
  networkPartitionTimeoutMs: 2500,
};

test("the fence counts from whoever was heard of last", () => {
  expect(fenceAtMs(input)).toBe(12_500);
  expect(fenceAtMs({ ...input, lastReplyMs: 11_000 })).toBe(13_500);
  expect(fenceAtMs({ ...input, lastReplyMs: undefined })).toBe(12_500);
});

test("who can't be replaced is never fenced", () => {
  expect(fenceAtMs({ ...input, couldBeReplaced: false })).toBeUndefined();
});

test("couldBeReplaced: a primary with standbys, or with names of some in its settings", () => {
  for (const state of ["primary", "apply_settings"] as const)
    expect(couldBeReplaced(state, 0)).toBe(true);
  expect(couldBeReplaced("wait_primary", 1)).toBe(true);
  expect(couldBeReplaced("wait_primary", 0)).toBe(false);
  expect(couldBeReplaced("single", 0)).toBe(false);
  expect(couldBeReplaced("secondary", 2)).toBe(false);
});

test("news never brings the fence nearer", () => {
  const ms = fc.integer({ min: 0, max: 1e9 });
  fc.assert(
    fc.property(ms, ms, ms, (lastContactMs, lastReplyMs, laterMs) => {
      const before = fenceAtMs({ ...input, lastContactMs, lastReplyMs }) ?? 0;
      const heard = { lastContactMs: lastContactMs + laterMs, lastReplyMs };
      expect(fenceAtMs({ ...input, ...heard })).toBeGreaterThanOrEqual(before);
    }),
  );
});

test("by default a fenced primary has stopped before anybody may judge it dead", () => {
  const { networkPartitionTimeoutMs, nodeTimeoutMs } = DEFAULT_POLICY;
  expect(networkPartitionTimeoutMs + FENCE_STOP_MS).toBeLessThan(nodeTimeoutMs);
});
