import { expect, test } from "bun:test";
import fc from "fast-check";
import { PRESETS } from "../../../lib/group/view.ts";
import { couldBeReplaced, fenceAtMs, listeningUntilMs } from "../../../lib/keeper/fence.ts";

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
  const alone = { ...input, couldBeReplaced: false, listeningUntilMs: 10_000 };
  expect(fenceAtMs(alone)).toBeUndefined();
});

test("a keeper that has just started keeps the deadline of the one before, but listens first", () => {
  const restarted = { ...input, lastReplyMs: undefined, listeningUntilMs: 12_000 };
  expect(fenceAtMs(restarted)).toBe(12_500);
  expect(fenceAtMs({ ...restarted, lastContactMs: 5000 })).toBe(12_000);
  expect(fenceAtMs({ ...restarted, lastContactMs: 5000, listeningUntilMs: undefined })).toBe(7500);
  // what it hears meanwhile counts
  expect(fenceAtMs({ ...restarted, lastContactMs: 5000, lastReplyMs: 11_000 })).toBe(13_500);
});

test("listening ends with a look a heartbeat after the first, or with a server that doesn't answer", () => {
  const input = { startedMs: 10_000, looks: undefined, heartbeatMs: 1000, postgresTimeoutMs: 2000 };
  expect(listeningUntilMs(input)).toBe(12_000);
  const looks = { firstMs: 10_100, latestMs: 11_099 };
  expect(listeningUntilMs({ ...input, looks })).toBe(12_000);
  expect(listeningUntilMs({ ...input, looks: { ...looks, latestMs: 11_100 } })).toBeUndefined();
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

test.each(Object.entries(PRESETS))(
  "timers %s: a fenced primary has stopped before anybody may judge it dead, and one late report fences nobody",
  (_, { heartbeatMs, networkPartitionTimeoutMs, fenceStopTimeoutMs, nodeTimeoutMs }) => {
    expect(networkPartitionTimeoutMs + fenceStopTimeoutMs).toBeLessThan(nodeTimeoutMs);
    expect(networkPartitionTimeoutMs).toBeGreaterThanOrEqual(2 * heartbeatMs);
  },
);
