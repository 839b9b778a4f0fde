/** A host without a link: when it has one again, nothing that was sent meanwhile is in the way. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { findObstacle } from "../helpers/netns.ts";
import { Network } from "../helpers/network.ts";
import { nowMs, waitFor } from "../helpers/wait.ts";

const obstacle = findObstacle();
if (obstacle !== undefined) console.error(`unplugged is skipped: ${obstacle}`);

const SQL = join(import.meta.dir, "../../lib/sys/sql.ts");
/** Until the kernel has given up what was sent at first; had more been sent, it would ask again 350 and 750 ms later. */
const UNPLUGGED_MS = [4200, 4800];

/** Turns to that server again and again, as a keeper does to its monitor. */
const asking = (host: string, port: number): string => `
  const { openDb } = require(${JSON.stringify(SQL)});
  const login = { user: "u", password: "p", database: "d", applicationName: "test" };
  const db = openDb({ host: "${host}", port: ${port}, ...login, connectTimeoutMs: 5000 });
  for (;;) await db.query("select 1", [], { timeoutMs: 500 }).catch(() => undefined);`;

test.skipIf(obstacle !== undefined)(
  "who is plugged in again gets through at once",
  async () => {
    using network = new Network();
    const { prefix } = network.host("host");
    let reachedMs = Number.NEGATIVE_INFINITY;
    const open = () => {
      reachedMs = nowMs();
    };
    using listener = Bun.listen({ hostname: "0.0.0.0", port: 0, socket: { open, data() {} } });
    const code = asking(network.testAddress, listener.port);
    await using child = Bun.spawn([...prefix, process.execPath, "-e", code]);
    const reached = async (sinceMs: number): Promise<number> => {
      await waitFor("the host to get through", 5000, () => reachedMs > sinceMs);
      return reachedMs - sinceMs;
    };
    await reached(0);
    for (const unpluggedMs of UNPLUGGED_MS) {
      network.setPort("host", "down");
      await Bun.sleep(unpluggedMs); // how long it lasts is what is tested
      expect(nowMs() - reachedMs).toBeGreaterThan(unpluggedMs - 500);
      network.setPort("host", "up");
      expect(await reached(nowMs())).toBeLessThan(250);
    }
    child.kill();
    await child.exited;
  },
  40_000,
);
