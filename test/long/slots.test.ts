/** A standby that is away may not fill its primary's disk: its slot is bounded, and it's copied anew. */
import { expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import { nothingLost, telling } from "../helpers/scenario.ts";

const END_MS = 30_000;
/** Segments of 16 MB: some more than wal_keep_size keeps in any case. */
const SEGMENTS = 72;

test("the slot of a standby that is away too long is given up, and it comes back by a new copy", async () => {
  await using cluster = await Cluster.twoNodes("slots");
  await telling(cluster, async () => {
    const primary = await cluster.healthy(5000);
    const away = cluster.other(primary);
    const [{ limit } = {}] = await primary.ask(
      "select setting::int as limit from pg_settings where name = 'max_slot_wal_keep_size'",
    );
    expect(limit).toBeGreaterThanOrEqual(1024); // MB; without us it's -1: no bound

    await primary.ask("alter system set max_slot_wal_keep_size = '64MB'");
    await primary.ask("alter system set wal_init_zero = off"); // only to be quick
    await primary.ask("select pg_reload_conf()");
    await using writer = await cluster.writer();
    await away.die();
    await cluster.waitForStates({ [primary.label]: "wait_primary" }, END_MS);
    const mark = primary.mark();
    const data = away.dataDirectoryIdentity();
    const fill = (segments: number) =>
      primary.ask(
        `do $$ begin for i in 1..${segments} loop
           perform pg_switch_wal() from pg_logical_emit_message(false, '', ''); end loop; end $$`,
        [],
        END_MS,
      );
    await fill(3);
    await primary.waitForLog(/Replication slot "\w+" holds back \d+ MB of WAL/, 15_000, mark);
    await fill(SEGMENTS);
    await primary.ask("checkpoint", [], 20_000);
    await primary.waitForLog(/Replication slot "\w+" is lost/, 15_000, mark);
    expect(await primary.ask("show max_slot_wal_keep_size")).toEqual([
      { max_slot_wal_keep_size: "64MB" },
    ]);

    away.start();
    expect(await cluster.healthy(END_MS)).toBe(primary);
    expect(away.dataDirectoryIdentity()).not.toBe(data);
    expect(primary.log(mark).match(/holds back/g)).toHaveLength(1);
    await nothingLost(cluster, writer);
  });
}, 120_000);
