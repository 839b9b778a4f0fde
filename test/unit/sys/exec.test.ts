import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { monotonicMs } from "../../../lib/sys/clock.ts";
import { run } from "../../../lib/sys/exec.ts";
import { waitUntil } from "../../../lib/sys/retry.ts";
import { isAlive } from "../../helpers/processes.ts";

const timeoutMs = 5000;
const sh = (script: string) => ["sh", "-c", script];

const gone = (pid: number) =>
  waitUntil(() => (isAlive(pid) ? undefined : true), {
    timeoutMs: 4000,
    everyMs: 5,
    what: "its end",
  });

describe("run", () => {
  test("yields the code and both outputs; a failure is a result", async () => {
    const result = await run(sh("echo out; echo err >&2; exit 3"), { timeoutMs });
    expect(result).toEqual({ code: 3, stdout: "out\n", stderr: "err\n" });
  });

  test("a signal has no code", async () => {
    expect(await run(sh("kill -9 $$"), { timeoutMs })).toMatchObject({ code: null });
  });

  test("environment, folder, input and arguments arrive as they are; messages are untranslated", async () => {
    process.env["RUN_TEST_GONE"] = "there";
    const script =
      'echo "$A,$RUN_TEST_GONE,$LC_ALL,$(printenv LANGUAGE || echo unset),$(pwd),$1,$(cat)"';
    const result = await run([...sh(script), "sh", "a b $(c)"], {
      timeoutMs,
      env: { A: "1", RUN_TEST_GONE: undefined },
      cwd: "/",
      input: "in",
    });
    expect(result.stdout).toBe("1,,C,unset,/,a b $(c),in\n");
    expect(await run(["cat"], { timeoutMs })).toMatchObject({ code: 0, stdout: "" });
  });

  test("a password that this process was given is nobody else's", async () => {
    process.env["PGPASSWORD"] = "ours";
    try {
      const { stdout } = await run(sh("printenv PGPASSWORD || echo unset"), { timeoutMs });
      expect(stdout).toBe("unset\n");
    } finally {
      delete process.env["PGPASSWORD"];
    }
  });

  test("lines of standard error come as they are written, also those that overwrite each other", async () => {
    const lines: string[] = [];
    const script = "printf 'a\\rb\\r\\nc\\n' >&2; printf 'ü d' >&2";
    await run(sh(script), { timeoutMs, onStderrLine: (line) => lines.push(line) });
    expect(lines).toEqual(["a", "b", "c", "ü d"]);
  });

  test("much output doesn't block", async () => {
    const result = await run(sh("head -c 3000000 /dev/zero | tr '\\0' x"), { timeoutMs });
    expect(result.stdout.length).toBe(3_000_000);
  });

  test("a program that isn't there is a matter of configuration", async () => {
    for (const program of ["no-such-program", "/no/such/program", "/etc/passwd"]) {
      const failed = run([program], { timeoutMs, dieWithParent: true });
      await expect(failed).rejects.toMatchObject({ kind: "config", detail: { program } });
    }
  });

  test("at the deadline it is terminated", async () => {
    const startMs = monotonicMs();
    const failed = run(["sleep", "60"], { timeoutMs: 50 });
    await expect(failed).rejects.toMatchObject({
      kind: "timeout",
      detail: { program: "sleep", timeout_ms: 50 },
    });
    expect(monotonicMs() - startMs).toBeLessThan(900);
  });

  test.concurrent("what ignores SIGTERM is killed a second later", async () => {
    const startMs = monotonicMs();
    const pids: number[] = [];
    const script = 'trap "" TERM; echo $$ >&2; while :; do sleep 0.05; done';
    const options = { timeoutMs: 300, onStderrLine: (line: string) => pids.push(Number(line)) };
    await expect(run(sh(script), options)).rejects.toMatchObject({ kind: "timeout" });
    expect(monotonicMs() - startMs).toBeWithin(1200, 2500);
    expect(pids.map(isAlive)).toEqual([false]);
  });

  test("an abort ends it with the signal's reason, before and during", async () => {
    const stop = new AbortController();
    const running = run(["sleep", "60"], { timeoutMs, signal: stop.signal });
    stop.abort(new Error("the goal changed"));
    await expect(running).rejects.toThrow("the goal changed");
    await expect(run(["true"], { timeoutMs, signal: stop.signal })).rejects.toThrow(
      "the goal changed",
    );
  });

  test.concurrent("a grandchild that keeps the pipes open doesn't hold up the result", async () => {
    const startMs = monotonicMs();
    const result = await run(sh("sleep 5 & echo $!"), { timeoutMs });
    expect(monotonicMs() - startMs).toBeLessThan(2500);
    process.kill(Number(result.stdout), "SIGKILL");
  });

  test("ownGroup: what it has started ends with it, and holds nothing up", async () => {
    const startMs = monotonicMs();
    const left = await run(sh("sleep 60 & echo $!"), { timeoutMs, ownGroup: true });
    expect(monotonicMs() - startMs).toBeLessThan(900);
    await gone(Number(left.stdout));
    const pids: number[] = [];
    const killed = run(sh("sleep 60 & echo $! >&2; wait"), {
      timeoutMs: 200,
      ownGroup: true,
      onStderrLine: (line) => pids.push(Number(line)),
    });
    await expect(killed).rejects.toMatchObject({ kind: "timeout" });
    expect(pids).toHaveLength(1);
    await gone(pids[0] ?? 0);
  });

  test("outputMax: the rest is read, and forgotten", async () => {
    const script = "head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2";
    const result = await run(sh(script), { timeoutMs, outputMax: 10 });
    expect(result).toEqual({ code: 0, stdout: "xxxxxxxxxx", stderr: "end\n" });
  });

  test("dieWithParent: it dies when this process is killed; otherwise it doesn't", async () => {
    if (Bun.which("setpriv") === null) return;
    const exec = join(import.meta.dir, "../../../lib/sys/exec.ts");
    for (const dieWithParent of [true, false]) {
      const code = `
        const { run } = require(${JSON.stringify(exec)});
        await run(["sh", "-c", "echo $$ >&2; exec sleep 20"], {
          timeoutMs: 20000, dieWithParent: ${dieWithParent}, onStderrLine: (pid) => console.log(pid) });`;
      const parent = Bun.spawn([process.execPath, "-e", code], { stdin: "ignore", stdout: "pipe" });
      const child = Number(
        new TextDecoder().decode((await parent.stdout.getReader().read()).value),
      );
      parent.kill("SIGKILL");
      await parent.exited;
      if (dieWithParent) await gone(child);
      else process.kill(child, "SIGKILL");
    }
  });
});
