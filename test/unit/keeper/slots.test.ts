import { expect, test } from "bun:test";
import { slotKeepSize, slotWarnings } from "../../../lib/keeper/slots.ts";
import type { Observation } from "../../../lib/pg/local.ts";

const MB = 1024n ** 2n;

test("slotKeepSize: a quarter of the file system, in powers of two, and never less than 1 GB", () => {
  const gigabytes = 1024 ** 3;
  expect([1, 8, 100, 130, 1000, 4096].map((size) => slotKeepSize(size * gigabytes))).toEqual([
    ...["1GB", "2GB", "16GB", "32GB", "128GB", "1024GB"],
  ]);
});

/** A primary at 1000 MB whose one slot stands somewhere. */
const seen = (
  slot: { name?: string; atMb?: bigint; walStatus?: string },
  limitMb: bigint | undefined = 200n,
): Observation => ({
  inRecovery: false,
  timeline: 1,
  lsn: 1000n * MB,
  replayLsn: undefined,
  receiver: undefined,
  syncNames: "",
  readOnlyDefault: false,
  standbys: [],
  slots: [
    {
      name: slot.name ?? "pgautofailover_standby_2",
      active: false,
      restartLsn: (slot.atMb ?? 950n) * MB,
      walStatus: slot.walStatus ?? "reserved",
    },
  ],
  slotKeepBytes: limitMb === undefined ? undefined : limitMb * MB,
  walWaits: false,
  systemIdentifier: "1",
});
const warned = (view: Observation): string[] => [...slotWarnings(view).values()];

test("slotWarnings: from half of what may be held back on, or when PostgreSQL has let go of it", () => {
  expect(warned(seen({ atMb: 900n }))).toEqual([]);
  expect(warned(seen({ atMb: 899n }))).toEqual([
    'Replication slot "pgautofailover_standby_2" holds back 101 MB of WAL of at most 200 MB: beyond, its standby has to be copied anew',
  ]);
  expect(warned(seen({ walStatus: "unreserved" }))).toHaveLength(1);
});

test("slotWarnings: not of others' slots, nor where an operator has set no bound", () => {
  expect(warned(seen({ name: "theirs", atMb: 1n }))).toEqual([]);
  expect(warned(seen({ atMb: 1n }, undefined))).toHaveLength(1);
});
