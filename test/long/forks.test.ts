/** Servers that have left the group's history behind the monitor's back. */
import { expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import { runRole } from "../helpers/command.ts";
import { scenariosOf, telling } from "../helpers/scenario.ts";

const scenario = scenariosOf("forks", [[], [], []]);
const TIMEOUT_MS = 90_000;
const TABLE_STRAY = "select 1 from pg_class where relname = 'stray'";

scenario(
  "a standby is promoted by hand, and written to: it's taken back",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [stray = primary] = standbys;
    const mark = stray.mark();
    const since = await cluster.lastEventId();
    stray.process?.signal("SIGSTOP"); // its keeper would be quicker
    await stray.ask("select pg_promote()");
    await stray.ask("begin read write; create table stray (id int); commit");
    stray.process?.signal("SIGCONT");
    await stray.waitForLog(/promoted behind the monitor's back, to timeline \d+/, 10_000, mark);
    await cluster.waitFor("it to be stopped", 10_000, async () => {
      return (await cluster.events(since)).some(({ rule }) => rule === "R203");
    });
    await writer.waitForWrites(20, 5000);
    expect(await cluster.healthy(30_000)).toBe(primary);
    expect(stray.log(mark)).toMatch(/pg_rewind/);
    expect(await stray.ask(TABLE_STRAY)).toEqual([]);
  },
);

scenario(
  "two standbys are promoted by hand, one after the other, to the same timeline",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    await Promise.all(standbys.map((standby) => standby.ask("select pg_promote()")));
    await writer.waitForWrites(20, 20_000);
    expect(await cluster.healthy(40_000)).toBe(primary);
  },
);

scenario(
  "a standby is promoted by hand while its keeper is away, and the group fails over to the same timeline",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [stray = primary, other = primary] = standbys;
    await stray.kill();
    await stray.ask("select pg_promote()");
    await stray.ask("begin read write; create table stray (id int); commit");
    // it is given up, so that the other one has all there is
    await cluster.waitFor("the monitor to give it up", 20_000, async () => {
      const names = await primary.ask("select current_setting('synchronous_standby_names') as n");
      return (
        !String(names[0]?.["n"]).includes(",") && (await cluster.healthy(10_000, [primary, other]))
      );
    });
    primary.killPostgres();
    await writer.waitForWrites(20, 15_000);
    const mark = stray.mark();
    stray.start();
    expect(await cluster.healthy(40_000)).toBe(other);
    expect(stray.log(mark)).toMatch(/pg_basebackup/);
    expect(await stray.ask(TABLE_STRAY)).toEqual([]);
  },
);

scenario(
  "nobody may be promoted, and somebody does it by hand: an operator says that the group goes on with it",
  TIMEOUT_MS,
  async (scene) => {
    const { cluster, primary, standbys, writer } = scene;
    const [stray = primary, other = primary] = standbys;
    // what it has when it leaves is the group's from then on
    await writer.stop();
    await cluster.waitFor("all rows on the standby", 5000, async () => {
      return (await writer.compareWith(stray.address)).lost.length === 0;
    });
    const since = await cluster.lastEventId();
    const isBlocked = (word: string) =>
      cluster.waitFor(`the group to be blocked: ${word}`, 15_000, async () => {
        return (await cluster.blocked(since)).some((text) => text.includes(word));
      });
    await Promise.all([primary.die(), other.die()]);
    await isBlocked("can't be asked");
    await stray.ask("select pg_promote()");
    await isBlocked("accept-timeline");
    const where = ["--monitor", cluster.monitorUri];
    const shown = await runRole("state", ["timeline", ...where], { env: cluster.env });
    expect(shown.stdout).toContain("Disputed");
    const name = await cluster.nameOf(stray);
    const accepted = await runRole("formation", ["accept-timeline", ...where, name], {
      env: cluster.env,
    });
    expect(accepted).toMatchObject({ code: 0, stderr: "" });
    await cluster.waitFor("it to take writes", 15_000, async () => {
      return (await cluster.writableNodes()).includes(stray);
    });
    primary.start();
    other.start();
    expect(await cluster.healthy(40_000)).toBe(stray);
  },
);

test(
  "the new primary is lost for good: an operator goes on with the old one",
  async () => {
    await using cluster = await Cluster.twoNodes("lost");
    await telling(cluster, async () => {
      const old = await cluster.healthy(10_000);
      const lost = cluster.other(old);
      await using writer = await cluster.writer();
      await writer.stop();
      // its keeper dies with it, and WAL that nobody else has stays on its disk
      old.process?.signal("SIGSTOP");
      await old.killWithUnsentWal();
      await old.kill();
      await cluster.waitForStates({ [lost.label]: "wait_primary" }, 20_000);
      await lost.die();
      old.start();
      await old.waitForLog(/current state is now "demoted"/, 20_000);

      const where = ["--monitor", cluster.monitorUri];
      const run = (...words: string[]) => runRole("formation", words, { env: cluster.env });
      await cluster.waitFor("the new primary to be given up", 20_000, async () => {
        return (await cluster.blocked(0)).length > 0;
      });
      expect((await run("failover", ...where, "--allow-data-loss", "--yes")).code).toBe(0);
      await cluster.waitForStates({ [old.label]: "report_lsn" }, 20_000);
      const name = await cluster.nameOf(old);
      await cluster.waitFor("the word that it has left the history", 10_000, async () => {
        return (await cluster.blocked(0)).some((text) => text.includes("accept-timeline"));
      });
      const accepted = await run("accept-timeline", ...where, "--json", name);
      expect(accepted).toMatchObject({ code: 0, stderr: "" });
      expect(JSON.parse(accepted.stdout)).toMatchObject({ nodeName: name });
      await cluster.waitFor("it to take writes", 20_000, async () => {
        return (await cluster.writableNodes()).includes(old);
      });
      expect((await writer.compareWith(old.address)).lost).toEqual([]);
      lost.start();
      expect(await cluster.healthy(40_000)).toBe(old);
    });
  },
  TIMEOUT_MS,
);
