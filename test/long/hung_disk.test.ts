/** A disk that hangs: whoever writes waits, and can't be killed, while everything else goes on. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { Cluster } from "../helpers/cluster.ts";
import { Disk, diskObstacle } from "../helpers/disk.ts";
import { giveTo } from "../helpers/owner.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";
import type { Writer } from "../helpers/writer.ts";

const why = diskObstacle();
if (why !== undefined) console.log(`skipping the tests of a hung disk: ${why}`);

/** Five times postgres_timeout, and node_timeout where the keeper hangs with its own files; on a busy machine. */
const STALL_LIMIT_MS = 20_000;
const PLACES = [["too"], ["not"]] as const;

type Scene = { cluster: Cluster; disk: Disk; writer: Writer; hanging: Service; other: Service };

test.skipIf(why !== undefined).each(PLACES)(
  "the primary's disk hangs, its keeper's files are on it %s: the standby takes over",
  async (place) => {
    await onDisk(0, place, async ({ cluster, disk, writer, hanging, other }) => {
      const fromMs = nowMs();
      const mark = hanging.mark();
      disk.freeze();
      await cluster.waitFor("a write on the other node", STALL_LIMIT_MS, () => {
        return writer.firstElsewhere(hanging.port, fromMs) !== undefined;
      });
      await writer.waitForWrites(20, 5000);
      expect(writer.longestGapMs(fromMs)).toBeLessThan(STALL_LIMIT_MS);
      await hanging.waitForLog(
        /No WAL has got to the disk for \d+ s: PostgreSQL counts/,
        1000,
        mark,
      );
      disk.thaw();
      await nothingLost(cluster, writer);
      expect(await cluster.healthyPrimary()).toBe(other);
    });
  },
  90_000,
);

test.skipIf(why !== undefined).each(PLACES)(
  "the secondary's disk hangs, its keeper's files are on it %s: writes go on without it",
  async (place) => {
    await onDisk(1, place, async ({ cluster, disk, writer, hanging, other }) => {
      const fromMs = nowMs();
      disk.freeze();
      await cluster.waitForStates({ [other.label]: "wait_primary" }, STALL_LIMIT_MS);
      await writer.waitForWrites(20, 5000);
      expect(writer.longestGapMs(fromMs)).toBeLessThan(STALL_LIMIT_MS);
      disk.thaw();
      await nothingLost(cluster, writer);
      expect([await cluster.healthyPrimary(), hanging.process?.running]).toEqual([other, true]);
    });
  },
  90_000,
);

/** Two nodes, the primary first; one has its data on a disk of its own, and its keeper's files there too or not. */
async function onDisk(
  index: 0 | 1,
  place: "too" | "not",
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  await using cluster = new Cluster(`hung${index}${place}`);
  using disk = new Disk(join(cluster.base, "disk"));
  giveTo(cluster.owner, disk.path);
  await telling(cluster, async () => {
    try {
      await cluster.startMonitor();
      for (const each of [0, 1]) {
        const env = { XDG_DATA_HOME: join(disk.path, "share") };
        const options = { data: disk.path, ...(place === "too" && { env }) };
        const node = cluster.addNode(`node${each + 1}`, [], each === index ? options : {});
        await node.create();
        node.start();
      }
      await cluster.healthy(30_000);
      const [hanging, other] = [cluster.nodes[index], cluster.nodes[1 - index]];
      if (!hanging || !other) throw new Error("there are two nodes");
      await using writer = await cluster.writer();
      await body({ cluster, disk, writer, hanging, other });
    } finally {
      disk.thaw();
    }
  });
}
