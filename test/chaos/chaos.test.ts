/**
 * Three minutes of chaos, twice at once, each in a process of its own: with a seed that is always the same, and with a new
 * one. What they print, here after the seed, tells the schedule and where the logs of a run that fails are.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { REPOSITORY } from "../helpers/command.ts";
import { diskObstacle } from "../helpers/disk.ts";
import { findObstacle } from "../helpers/netns.ts";
import { removeLeftovers } from "../netns/chaos/hosts.ts";

const RUNS = [
  { nodes: 3, seed: 1 },
  { nodes: 4, seed: Date.now() % 1_000_000 },
];
const MINUTES = 3;
/** The hosts are set up before, and the last round has its end after that. */
const LIMIT_MS = (MINUTES + 4) * 60_000;
const SCRIPT = join(REPOSITORY, "test/netns/chaos/run.ts");

const obstacle = findObstacle() ?? diskObstacle();
if (obstacle !== undefined) console.error(`chaos is skipped: ${obstacle}`);
else removeLeftovers(); // Two at once would both try.

for (const { nodes, seed } of RUNS) {
  test.skipIf(obstacle !== undefined).concurrent(
    `chaos: seed ${seed}, ${nodes} nodes, ${MINUTES} minutes`,
    async () => {
      const flags = ["--minutes", `${MINUTES}`, "--seed", `${seed}`, "--nodes", `${nodes}`];
      const child = Bun.spawn([process.execPath, "--no-env-file", SCRIPT, ...flags], {
        ...{ stdin: "ignore", stdout: "pipe", stderr: "inherit" },
        ...{ timeout: LIMIT_MS, killSignal: "SIGTERM" },
      });
      for await (const line of createInterface({ input: Readable.fromWeb(child.stdout) }))
        console.log(`seed ${seed}: ${line}`);
      expect({ code: await child.exited, signal: child.signalCode }).toEqual({
        code: 0,
        signal: null,
      });
    },
    LIMIT_MS + 10_000,
  );
}
