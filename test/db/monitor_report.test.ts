/** What a report changes in the monitor's database, what it leaves, and what that costs. */
import { expect } from "bun:test";
import { kill } from "node:process";
import type { Report } from "../../lib/shapes.ts";
import type { Db } from "../../lib/sys/sql.ts";
import { waitFor } from "../helpers/wait.ts";
import {
  healthyGroup,
  identityOf,
  PRIMARY,
  register,
  type Scene,
  SECONDARY,
} from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const SET = { version: 1, primaryId: 1, members: [2, 3], number: 1 };

story(here, "node_active: what a report doesn't know is kept", async (world) => {
  const { says, row, monitor } = await healthyGroup(world, 2);
  const promotion = { timeline: 2, forkLsn: "0/2000000" };
  await says(2, { ...SECONDARY, timeline: 2, lsn: "0/4000000", promotion });
  const known = {
    timeline: 2,
    lsn: 0x4000000n,
    inRecovery: true,
    promotion: { timeline: 2, forkLsn: 0x2000000n },
  };
  expect((await row()).nodes[1]).toMatchObject(known);
  const { inRecovery: _, ...unknown } = SECONDARY;
  await says(2, { ...unknown, timeline: 0, lsn: "0/0", pgIsRunning: false, promotion });
  expect((await row()).nodes[1]).toMatchObject({ ...known, pgRunning: false });
  await says(2, { ...SECONDARY, inRecovery: false, promotion: null });
  expect((await row()).nodes[1]).toMatchObject({ inRecovery: false, promotion: undefined });
  await monitor.close();
});

story(here, "node_active: a later keeper may say more, which is ignored", async (world) => {
  const { says, row, monitor } = await healthyGroup(world, 2);
  await says(2, SECONDARY);
  const { nodes } = await row();
  await says(2, { ...SECONDARY, more: { than: ["is known"] } } as typeof SECONDARY);
  const kept = ({ reported, lsn, streaming }: (typeof nodes)[number]) => [reported, lsn, streaming];
  expect((await row()).nodes.map(kept)).toEqual(nodes.map(kept));
  await monitor.close();
});

story(
  here,
  "node_active: a state that was reached without knowing the goal is no news",
  async (world) => {
    const { own, says, row, monitor } = await healthyGroup(world, 2);
    await own.query("update pgautofailover.node set goalversion = 7 where nodeid = 2");
    const late = { ...SECONDARY, state: "catchingup", lsn: "0/4000000", goalVersion: 6 };
    await says(2, late);
    expect((await row()).nodes[1]).toMatchObject({ reported: "secondary", lsn: 0x4000000n });
    await says(2, { ...late, goalVersion: 7 });
    expect((await row()).nodes[1]).toMatchObject({ reported: "catchingup" });
    await monitor.close();
  },
);

story(
  here,
  "node_active: a server that crashed since its promise has not lost what it had",
  async (world) => {
    const { says, row, monitor } = await healthyGroup(world, 2);
    const promised = { state: "report_lsn", inRecovery: true };
    const lsn = async () => (await row()).nodes[1]?.lsn;
    await says(2, SECONDARY);
    await says(2, { ...promised, lsn: "0/6000000" });
    await says(2, { ...promised, lsn: "0/5000000" });
    await says(2, { ...promised, state: "join_secondary", lsn: "0/5000000" });
    expect(await lsn()).toBe(0x6000000n);
    await says(2, { ...promised, state: "fast_forward", lsn: "0/7000000" });
    expect(await lsn()).toBe(0x7000000n);
    // on another timeline it's another position
    await says(2, { ...promised, timeline: 2, lsn: "0/5000000" });
    expect(await lsn()).toBe(0x5000000n);
    await says(2, { ...promised, timeline: 2, lsn: "0/7000000" });
    await says(2, { ...promised, timeline: 2, state: "prepare_promotion", lsn: "0/6000000" });
    expect(await lsn()).toBe(0x6000000n);
    await says(2, { ...SECONDARY, state: "catchingup", lsn: "0/5000000" });
    expect(await lsn()).toBe(0x5000000n);
    await monitor.close();
  },
);

story(
  here,
  "node_active: since when a primary does not send to a standby is kept, until it does",
  async (world) => {
    const { says, row, own, monitor } = await healthyGroup(world, 3);
    const notSent = async () => (await row()).nodes.map(({ notSentToMs }) => notSentToMs);
    await says(1, { ...PRIMARY, sendsTo: [2] });
    await own.query(
      `update pgautofailover.node set notsentto = jsonb_build_object('3', clock_timestamp() - interval '1 hour')
       where nodeid = 1`,
    );
    await says(1, { ...PRIMARY, sendsTo: [2] });
    await says(2, SECONDARY);
    expect(await notSent()).toEqual([0, 0, expect.any(Number)]);
    expect((await notSent())[2]).toBeGreaterThan(3_600_000);
    await says(1, { ...PRIMARY, sendsTo: [3, 2] });
    expect(await notSent()).toEqual([0, 0, 0]);
    await says(1, { ...PRIMARY, sendsTo: [] });
    const silent = await notSent();
    expect(Math.max(...silent)).toBeLessThan(5000);
    expect(silent.slice(1).every((ms) => ms > 0)).toBe(true);
    // not known is not nobody
    await says(1, PRIMARY);
    expect(await notSent()).toEqual([0, 0, 0]);
    await monitor.close();
  },
);

story(
  here,
  "node_active: a crash and its end are an event each, and no other report is",
  async (world) => {
    const { says, news, monitor } = await healthyGroup(world, 2);
    await says(1, PRIMARY);
    await says(1, { ...PRIMARY, pgIsRunning: false });
    await says(1, { ...PRIMARY, pgIsRunning: false });
    await says(1, { ...PRIMARY, lsn: "0/4000000" });
    await says(1, { ...PRIMARY, lsn: "0/5000000" });
    const node = 'Node 1 "node_1" (localhost:5001)';
    expect(await news()).toEqual([
      `${node} reports that PostgreSQL is not running`,
      `${node} reports that PostgreSQL is running again`,
    ]);
    await monitor.close();
  },
);

story(here, "node_active: only the primary says which set is in force", async (world) => {
  const { says, row, own, monitor } = await healthyGroup(world, 3);
  const inForce = async () => (await row()).inForce;
  const shrunk = { ...SET, version: 2, members: [2] };
  await says(1, PRIMARY);
  expect(await inForce()).toEqual(SET);
  await says(1, { ...PRIMARY, syncInForce: shrunk });
  expect(await inForce()).toEqual(shrunk);
  await says(2, SECONDARY);
  await says(2, { ...SECONDARY, syncInForce: null });
  await says(2, { ...SECONDARY, syncInForce: { ...SET, version: 9 } });
  expect(await inForce()).toEqual(shrunk);
  await says(1, { ...PRIMARY, syncInForce: null });
  expect(await inForce()).toBeUndefined();
  await says(1, { ...PRIMARY, syncInForce: shrunk });
  // node 2 is the one that the next set is meant for: the old primary has nothing to say any more
  await own.query(`update pgautofailover."group" set syncprimary = 2`);
  await says(1, { ...PRIMARY, syncInForce: SET });
  expect(await inForce()).toEqual(shrunk);
  await monitor.close();
});

story(here, "node_active: a promise counts from the report that first makes it", async (world) => {
  const { says, row, own, monitor } = await healthyGroup(world, 2);
  const promised = async () => (await row()).nodes[1]?.promisedMs;
  await says(2, SECONDARY);
  expect(await promised()).toBeUndefined();
  await says(2, { ...SECONDARY, state: "report_lsn", streaming: false });
  expect(await promised()).toBeLessThan(5000);
  await own.query(
    "update pgautofailover.node set promisedsince = promisedsince - interval '1 hour' where nodeid = 2",
  );
  for (const state of ["fast_forward", "report_lsn", "join_secondary", "prepare_promotion"]) {
    await says(2, { ...SECONDARY, state, streaming: false });
    expect(await promised()).toBeGreaterThan(3_600_000);
  }
  await says(2, { state: "stop_replication", inRecovery: false });
  expect(await promised()).toBeGreaterThan(3_600_000);
  await says(2, { ...SECONDARY, state: "catchingup" });
  expect(await promised()).toBeUndefined();
  await says(2, { ...SECONDARY, state: "report_lsn" });
  expect(await promised()).toBeLessThan(5000);
  await monitor.close();
});

/** Stops the process that flushes WAL unasked, at a moment at which it holds nothing that others wait for. */
async function stopWalWriter({ own }: Scene): Promise<number> {
  for (;;) {
    const ask = () =>
      own.query<{ pid: number; idle: boolean }>(
        "select pid, wait_event = 'WalWriterMain' as idle from pg_stat_activity where backend_type = 'walwriter'",
      );
    const [found] = await ask();
    if (found === undefined) throw new Error("there is no WAL writer");
    kill(found.pid, "SIGSTOP");
    const [stopped] = await ask();
    if (stopped?.idle) return found.pid;
    kill(found.pid, "SIGCONT");
  }
}

/** Bytes of WAL that the server had to flush for this. */
async function flushedBy(group: Scene, work: () => Promise<unknown>): Promise<bigint> {
  const flushed = async (): Promise<bigint> => {
    const [row] = await group.own.query<{ lsn: string }>(
      "select (pg_current_wal_flush_lsn() - '0/0')::text as lsn",
    );
    return BigInt(row?.lsn ?? "0");
  };
  const writer = await stopWalWriter(group);
  try {
    const before = await flushed();
    await work();
    return (await flushed()) - before;
  } finally {
    kill(writer, "SIGCONT");
  }
}

story(here, "node_active: a heartbeat flushes no WAL, news do", async (world) => {
  const group = await healthyGroup(world, 3);
  const { says } = group;
  const inForce = { ...PRIMARY, syncInForce: SET };
  await says(1, inForce);
  await says(2, SECONDARY);
  const heartbeats = async (): Promise<void> => {
    for (let at = 4; at < 8; at += 1) {
      await says(1, { ...inForce, lsn: `0/${at}000000` });
      await says(2, { ...SECONDARY, lsn: `0/${at}000000` });
    }
  };
  expect(await flushedBy(group, heartbeats)).toBe(0n);
  const news = () => says(1, { ...inForce, syncInForce: { ...SET, version: 2 } });
  expect(await flushedBy(group, news)).toBeGreaterThan(0n);
  const promises = () => says(2, { ...SECONDARY, state: "report_lsn" });
  expect(await flushedBy(group, promises)).toBeGreaterThan(0n);
  await group.monitor.close();
});

/** Says a report in full. @returns says it in short, again and again, but for what is given; and whether that holds */
async function beatsOf({ keeper, own, says }: Scene, nodeId: number, report: Partial<Report>) {
  const full = BigInt((await reportsOf(keeper, nodeId)).reportno) + 1n;
  const { token } = await says(nodeId, { ...report, reportNo: full });
  await looked(own);
  let reportNo = full;
  return async (change: { identity?: string; reportNo?: bigint; lsn?: string } = {}) => {
    reportNo += 1n;
    const rows = await keeper.query(
      "select pgautofailover.heartbeat($1::bigint, $2::uuid, $3::bigint, $4::bigint, $5, $6::text::pg_lsn) as holds",
      [
        nodeId,
        change.identity ?? identityOf(nodeId),
        String(change.reportNo ?? reportNo),
        String(full),
        token,
        change.lsn ?? "0/0",
      ],
      { prepare: true },
    );
    return rows[0]?.["holds"];
  };
}

/** As the monitor's process does at the end of each look. */
const looked = (own: Db): Promise<unknown> =>
  own.query("select pgautofailover.refresh_answer_tokens('default', 0)");

async function reportsOf(db: Db, nodeId: number) {
  const [row] = await db.query<{ reportno: string; lsn: string; silent: boolean }>(
    `select reportno::text, reportedlsn::text as lsn, reporttime < clock_timestamp() - interval '1 minute' as silent
     from pgautofailover.node where nodeid = $1`,
    [nodeId],
  );
  if (row === undefined) throw new Error(`there is no node ${nodeId}`);
  return row;
}

story(here, "heartbeat: it counts as a report, wakes nobody and flushes no WAL", async (world) => {
  const group = await healthyGroup(world, 2);
  const { own, monitor } = group;
  const beat = await beatsOf(group, 2, SECONDARY);
  await own.query(
    "update pgautofailover.node set reporttime = now() - interval '1 hour' where nodeid = 2",
  );
  const heard: string[] = [];
  const listener = monitor.open();
  for (const channel of ["state", "report"]) {
    await new Promise<void>((resolve) => {
      void listener.listen(channel, (text) => heard.push(text), resolve);
    });
  }
  const before = BigInt((await reportsOf(own, 2)).reportno);
  const beats = async (): Promise<void> => {
    expect(await beat({ lsn: "0/4000000" })).toBe(true);
    expect(await beat()).toBe(true);
  };
  expect(await flushedBy(group, beats)).toBe(0n);
  expect(await reportsOf(own, 2)).toEqual({
    reportno: String(before + 2n),
    lsn: "0/4000000",
    silent: false,
  });
  await own.query("select pg_notify('report', 'the end')");
  await waitFor("what is notified last", 2000, () => heard.length > 0);
  expect(heard).toEqual(["the end"]);
  await own.query("update pgautofailover.node set answertoken = ''");
  expect(await beat()).toBe(false);
  expect(await group.decide()).toBe("");
  expect(await beat()).toBe(true);
  await monitor.close();
});

story(here, "heartbeat: refused when anything is new, for either side", async (world) => {
  const group = await healthyGroup(world, 3);
  const { own, keeper, says, monitor } = group;
  const node = (set: string, id: number) => () =>
    own.query(`update pgautofailover.node set ${set} where nodeid = ${id}`);
  const news: Record<string, () => Promise<unknown>> = {
    "its goal": node("goalversion = goalversion + 1", 2),
    "its name": node("nodename = 'two'", 2),
    "the goal of another node": node("goalstate = 'catchingup'", 3),
    "the state of another node": node("reportedstate = 'catchingup'", 3),
    "the name of another node": node("nodename = 'three'", 3),
    "the address of another node": node("nodehost = 'elsewhere'", 3),
    "the port of another node": node("nodeport = 6000", 3),
    "its priority": node("candidatepriority = 70", 2),
    "whether commits wait for another node": node("replicationquorum = false", 3),
    "another node is to be left alone": node("maintenance = true", 3),
    "its report was considered": node("decidedreport = 5", 2),
    "the set": () => own.query(`update pgautofailover."group" set syncversion = syncversion + 1`),
    "a switchover": () =>
      own.query(`update pgautofailover."group" set request = '{"planned": true}'`),
    "a timer": () => own.query("update pgautofailover.formation set heartbeat_ms = 900"),
    "the password": () =>
      own.query(
        "update pgautofailover_private.replication_secret set secretid = gen_random_uuid()",
      ),
    "a node": () => register(keeper, { port: 5004, identity: identityOf(4) }),
    "a node is gone": () => own.query("delete from pgautofailover.node where nodeid = 4"),
    "a later full report": () => says(2, { ...SECONDARY, reportNo: 1000n }),
    "the monitor lost its memory": () =>
      own.query("insert into pgautofailover.recovery (why) values ('lost')"),
  };
  const refusedBy: string[] = [];
  for (const [what, happens] of Object.entries(news)) {
    const beat = await beatsOf(group, 2, SECONDARY);
    expect([what, await beat()]).toEqual([what, true]);
    await happens();
    await looked(own);
    const before = await reportsOf(own, 2);
    if ((await beat()) === false) refusedBy.push(what);
    expect(await reportsOf(own, 2)).toEqual(before);
  }
  expect(refusedBy).toEqual(Object.keys(news));
  await own.query("delete from pgautofailover.recovery");
  const beat = await beatsOf(group, 2, SECONDARY);
  expect(await beat({ identity: identityOf(3) })).toBe(false);
  expect(await beat({ reportNo: 1n })).toBe(false);
  expect(await beat()).toBe(true);
  const moving = await beatsOf(group, 2, { ...SECONDARY, state: "catchingup" });
  expect(await moving()).toBe(false);
  await monitor.close();
});

story(
  here,
  "node_active: a new set in force and a decision don't wait for each other",
  async (world) => {
    const { own, says, row, monitor } = await healthyGroup(world, 3);
    const news = { ...SET, version: 2 };
    const [reported, tookMs] = await own.transaction(async (query) => {
      await query("select pgautofailover.lock_group('default', 0)");
      const begun = performance.now();
      const report = says(1, { ...PRIMARY, syncInForce: news });
      for (let waiting = 0; waiting === 0; ) {
        const rows = await query(
          "select from pg_locks where locktype = 'advisory' and not granted",
        );
        waiting = rows.length;
      }
      // as a decision does: the group's row, then the nodes'
      await query(`update pgautofailover."group" set syncversion = 2`);
      await query("update pgautofailover.node set goalversion = goalversion + 1");
      return [report, performance.now() - begun] as const;
    });
    await reported;
    expect(tookMs).toBeLessThan(900); // deadlock_timeout
    expect((await row()).inForce).toEqual(news);
    await monitor.close();
  },
);
