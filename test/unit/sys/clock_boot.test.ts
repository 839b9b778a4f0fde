/** The clock that fences go by: what it says is what the system says of its own boot. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { bootId, monotonicMs } from "../../../lib/sys/clock.ts";

const CLOCK = JSON.stringify(join(import.meta.dir, "../../../lib/sys/clock.ts"));
const SUSPENDED_MS = 1_000_000;

/** What a new process says of its clock. */
function askChild(prefix: readonly string[]): { exitCode: number; stdout: string; stderr: string } {
  const script = `const { monotonicMs } = require(${CLOCK}); console.log(monotonicMs())`;
  const { exitCode, stdout, stderr } = Bun.spawnSync(
    [...prefix, process.execPath, "--no-env-file", "-e", script],
    { timeout: 10_000 },
  );
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

const unshare = ["unshare", "--time", "--boottime", String(SUSPENDED_MS / 1000)];
const isLinux = process.platform === "linux";
const why = !isLinux
  ? "time namespaces are Linux's"
  : Bun.which("unshare") === null
    ? "there is no unshare (util-linux)"
    : Bun.spawnSync([...unshare, "true"]).exitCode === 0
      ? ""
      : "no time namespace can be made here; that needs root";
if (why) console.log(`skipping the clock of a suspended machine: ${why}`);

test.skipIf(why !== "")("monotonicMs counts the time for which a machine was suspended", () => {
  // in the namespace CLOCK_BOOTTIME has gone on for longer than CLOCK_MONOTONIC, as a suspended machine's has
  const before = monotonicMs();
  const child = askChild(unshare);
  expect(child).toMatchObject({ exitCode: 0, stderr: "" });
  expect(Number(child.stdout) - SUSPENDED_MS).toBeWithin(before, monotonicMs());
});

test.skipIf(!isLinux)("monotonicMs is the machine's uptime, in each process", () => {
  const uptimeMs = () => Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) * 1000;
  const before = uptimeMs();
  expect(monotonicMs()).toBeWithin(before, uptimeMs() + 10.001); // It's told in hundredths of a second.
  const child = Number(askChild([]).stdout);
  expect(child).toBeWithin(before, monotonicMs());
});

test("monotonicMs is cheap enough to be asked at each turn", () => {
  const begin = monotonicMs();
  for (let count = 0; count < 10_000; count += 1) monotonicMs();
  expect(monotonicMs() - begin).toBeLessThan(500);
});

test("bootId: the same for every process of this boot, where the system tells", () => {
  const path = "/proc/sys/kernel/random/boot_id";
  expect(bootId()).toBe(existsSync(path) ? readFileSync(path, "utf8").trim() : undefined);
});
