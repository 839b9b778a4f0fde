import { describe, expect, test } from "bun:test";
import { delay, monotonicMs } from "../../../lib/sys/clock.ts";
import { waitUntil } from "../../../lib/sys/retry.ts";

/** The error that a promise rejects with. */
async function failure(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

describe("delay", () => {
  test("waits that long", async () => {
    const startMs = monotonicMs();
    await delay(20);
    expect(monotonicMs() - startMs).toBeWithin(19, 200);
  });

  test("ends at once when aborted, before and during", async () => {
    const before = AbortSignal.abort("before");
    const during = new AbortController();
    const startMs = monotonicMs();
    const failures = Promise.all([
      failure(delay(10_000, before)),
      failure(delay(10_000, during.signal)),
    ]);
    during.abort("during");
    expect(await failures).toEqual(["before", "during"]);
    expect(monotonicMs() - startMs).toBeLessThan(500);
  });
});

describe("waitUntil", () => {
  const options = { timeoutMs: 2000, everyMs: 1, what: "the third look" };

  test("looks at once, and again until something is there", async () => {
    let looks = 0;
    expect(await waitUntil(() => (++looks === 3 ? looks : undefined), options)).toBe(3);
    expect(await waitUntil(async () => null, { ...options, timeoutMs: 0 })).toBeNull();
  });

  test("says what it gave up waiting for", async () => {
    const error = await failure(waitUntil(() => undefined, { ...options, timeoutMs: 20 }));
    expect(error).toMatchObject({
      kind: "timeout",
      message: "gave up waiting for the third look",
      detail: { timeout_ms: 20 },
    });
  });

  test("a look that never answers doesn't hold it up", async () => {
    const error = await failure(
      waitUntil(() => new Promise(() => {}), { ...options, timeoutMs: 20 }),
    );
    expect(error).toMatchObject({ kind: "timeout" });
  });

  test("the last look comes at the deadline, however long the period", async () => {
    const startMs = monotonicMs();
    const probe = () => (monotonicMs() - startMs > 10 ? "there" : undefined);
    expect(await waitUntil(probe, { ...options, timeoutMs: 50, everyMs: 10_000 })).toBe("there");
  });

  test("passes on the error of a look, and the reason of an abort", async () => {
    const broken = failure(waitUntil(() => Promise.reject(new Error("broken")), options));
    const thrown = failure(
      waitUntil(() => {
        throw new Error("thrown");
      }, options),
    );
    const aborted = failure(
      waitUntil(() => undefined, { ...options, signal: AbortSignal.abort("stop") }),
    );
    expect(await Promise.all([broken, thrown, aborted])).toEqual([
      new Error("broken"),
      new Error("thrown"),
      "stop",
    ]);
  });
});
