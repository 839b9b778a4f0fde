/** disk: when a disk that doesn't take WAL counts as hung. */
import { expect, test } from "bun:test";
import { watchDisk } from "../../../lib/keeper/disk.ts";

const POSTGRES_TIMEOUT_MS = 2000;

/** Looks a second apart. @returns what was said, and whether it hangs after each */
function watched(looks: readonly (readonly [lsn: bigint, walWaits: boolean])[], everyMs = 1000) {
  const said: string[] = [];
  const disk = watchDisk(
    () => POSTGRES_TIMEOUT_MS,
    (level, sentence) => said.push(`${level}: ${sentence}`),
  );
  const hung = looks.map(([lsn, walWaits], index) => {
    disk.notice({ lsn, walWaits }, 5000 + index * everyMs);
    return disk.isHung;
  });
  return { disk, said, hung };
}

const stuck = (count: number): [bigint, boolean][] =>
  Array.from({ length: count }, () => [7n, true]);

test("WAL that waits and doesn't get on for five times postgres_timeout: it hangs, until WAL gets on", () => {
  const { said, hung } = watched([...stuck(11), [8n, true]]);
  expect(hung).toEqual([...Array(10).fill(false), true, false]);
  expect(said).toEqual([
    "warn: No WAL has got to the disk for 2 s",
    "error: No WAL has got to the disk for 10 s: PostgreSQL counts as down",
    "info: WAL gets to the disk again",
  ]);
});

test("nobody waits, or WAL gets on: however long it takes, it doesn't hang", () => {
  expect(watched(Array.from({ length: 30 }, () => [7n, false])).hung).not.toContain(true);
  const busy = Array.from({ length: 30 }, (_, index): [bigint, boolean] => [BigInt(index), true]);
  expect(watched(busy)).toMatchObject({ said: [], hung: Array(30).fill(false) });
});

test("looks that are far apart, as of a machine that slept, have nothing to do with each other", () => {
  const { said, hung } = watched(stuck(10), 2 * POSTGRES_TIMEOUT_MS + 1);
  expect(hung).not.toContain(true);
  expect(said).toEqual([]);
});

test("another server begins anew", () => {
  const { disk } = watched(stuck(11));
  expect(disk).toMatchObject({ isHung: true, isHeldUp: true });
  disk.forget();
  expect(disk).toMatchObject({ isHung: false, isHeldUp: false });
});
