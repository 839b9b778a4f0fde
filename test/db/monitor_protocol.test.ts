/** What a keeper may ask of the monitor's database, and what it's refused. */
import { expect } from "bun:test";
import { migrate } from "../../lib/monitor/instance.ts";
import { MIGRATIONS } from "../../lib/monitor/schema/migrations.ts";
import { queryOnce } from "../../lib/sys/sql.ts";
import { waitFor } from "../helpers/wait.ts";
import {
  healthyGroup,
  identityOf,
  monitorOf,
  NODE_A,
  NODE_B,
  refusal,
  refused,
  register,
  report,
  SECONDARY,
} from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;
const NODE_UNHEARD_OF = "7f1b8e2e-0000-4000-8000-000000000009";

story(
  here,
  "register_node may be called again, and refuses who is somebody else",
  async (world) => {
    const monitor = await monitorOf(world);
    const db = monitor.open("autoctl_node");
    const first = await register(db, { system: "7000000000000000001", dbname: "app" });
    expect(first).toMatchObject({
      nodeId: 1,
      goal: "init",
      name: "node_1",
      dbname: "app",
      nodes: [],
    });
    expect(await register(db, { system: "7000000000000000001" })).toEqual(first);
    expect(await refusal(register(db, { formation: "none", identity: NODE_B }))).toBe("PA001");
    expect(await refusal(register(db, { port: 5002 }))).toBe("PA002");
    expect(await refusal(register(db, { identity: NODE_B }))).toBe("PA003");
    const other = { port: 5002, identity: NODE_B };
    expect(await refusal(register(db, { ...other, system: "8" }))).toBe("PA004");
    expect(await refusal(register(db, { ...other, dbname: "other" }))).toBe("PA006");
    expect(await refusal(register(db, { ...other, name: "node_1" }))).toBe("PA007");
    expect((await register(db, other)).nodes).toMatchObject([{ nodeId: 1, port: 5001 }]);
    const third = { port: 5003, identity: "7f1b8e2e-0000-4000-8000-000000000003" };
    // node 2 never got as far as having data: a create over it begins anew
    const again = { port: 5002, identity: third.identity };
    expect((await register(db, again)).nodeId).toBeGreaterThan(2);
    await monitor.close();
  },
);

story(here, "node_active: numbers only grow, the identity counts, news are told", async (world) => {
  const monitor = await monitorOf(world);
  const db = monitor.open("autoctl_node");
  const { nodeId } = await register(db, {});
  const heard: string[] = [];
  const woken: string[] = [];
  const listener = monitor.open();
  const other = monitor.open();
  await Promise.all([
    new Promise<void>(
      (resolve) => void listener.listen("state", (text) => heard.push(text), resolve),
    ),
    new Promise<void>(
      (resolve) => void other.listen("report", (text) => woken.push(text), resolve),
    ),
  ]);

  expect(
    await report(db, nodeId, { reportNo: 5n, state: "single", pgIsRunning: true }),
  ).toMatchObject({
    nodeId,
    goal: "init",
  });
  await waitFor("the news", 2000, () => heard.length === 1 && woken.length === 1);
  expect(JSON.parse(heard[0] ?? "")).toMatchObject({ nodeId, reportedState: "single" });
  expect(woken).toEqual(["default/0"]);

  for (const reportNo of [5n, 4n]) {
    expect(await refusal(report(db, nodeId, { reportNo, state: "primary" }))).toBe("PA011");
  }
  const stranger = { reportNo: 9n, identity: NODE_B };
  expect(await refusal(report(db, nodeId, stranger))).toBe("PA012");
  expect(await refusal(report(db, nodeId + 1, { reportNo: 9n }))).toBe("PA012");
  const [row] = await db.query("select reportedstate, reportno from pgautofailover.node");
  expect(row).toMatchObject({ reportedstate: "single" });
  expect(Number(row?.["reportno"])).toBe(5);

  // 0 and 0/0 say nothing: a stopped server has not lost its position
  await report(db, nodeId, { reportNo: 6n, state: "single", timeline: 0, lsn: "0/0" });
  const [kept] = await db.query(
    "select reportedtli, reportedlsn::text as lsn from pgautofailover.node",
  );
  expect(kept).toEqual({ reportedtli: 1, lsn: "0/3000000" });
  await monitor.close();
});

story(
  here,
  "node_active: a report without news wakes nobody and waits for no fsync",
  async (world) => {
    const monitor = await monitorOf(world);
    const db = monitor.open("autoctl_node");
    const own = monitor.open();
    const { nodeId } = await register(db, {});
    const same = { state: "single", pgIsRunning: true };
    await report(db, nodeId, { ...same, reportNo: 1n });
    await own.query("update pgautofailover.node set goalstate = 'single'");
    const heard: string[] = [];
    const listener = monitor.open();
    await new Promise<void>((resolve) => {
      void listener.listen("state", (text) => heard.push(text), resolve);
    });
    // the setting of the transaction that recorded it, as it was when it ended
    const recorded = async (reportNo: bigint, change: object): Promise<unknown> => {
      const payload = {
        identity: NODE_A,
        goalVersion: 1,
        timeline: 1,
        lsn: "0/3000000",
        syncState: "",
        streaming: false,
        startFailures: 0,
        promotion: null,
        systemIdentifier: null,
        ...same,
        ...change,
        reportNo: String(reportNo),
      };
      return own.transaction(async (query) => {
        await query("select pgautofailover.node_active('default', $1, $2::text::jsonb)", [
          nodeId,
          JSON.stringify(payload),
        ]);
        const [row] = await query("select current_setting('synchronous_commit') as value");
        return row?.["value"];
      });
    };
    expect(await recorded(2n, {})).toBe("off");
    expect(await recorded(3n, { lsn: "0/4000000" })).toBe("off");
    expect(heard).toEqual([]);
    expect(await recorded(4n, { pgIsRunning: false })).toBe("on");
    await waitFor("the news", 2000, () => heard.length === 1);
    const [row] = await own.query("select reportedlsn::text as lsn from pgautofailover.node");
    expect(row).toEqual({ lsn: "0/3000000" });
    await monitor.close();
  },
);

story(
  here,
  "report_event: a node's own keeper only; what it says is bounded, and one line",
  async (world) => {
    const monitor = await monitorOf(world);
    const db = monitor.open("autoctl_node");
    const { nodeId } = await register(db, {});
    const say = (identity: string, text: string) =>
      db.query("select pgautofailover.report_event('default', $1, $2, $3)", [
        nodeId,
        identity,
        text,
      ]);
    await say(NODE_A, `a\n\u001b[31m${"ü".repeat(1000)}`);
    expect(await refusal(say(NODE_B, "a stranger"))).toBe("PA012");
    const events = await db.query(
      "select description from pgautofailover.last_events('default', 10) order by eventid",
    );
    expect(events.slice(1)).toEqual([{ description: `Node 1 "node_1": a [31m${"ü".repeat(494)}` }]);
    await monitor.close();
  },
);

story(here, "remove_node: never the primary of another node, nor its successor", async (world) => {
  const monitor = await monitorOf(world);
  const db = monitor.open("autoctl_node");
  const own = monitor.open();
  const { nodeId: a } = await register(db, {});
  const { nodeId: b } = await register(db, { port: 5002, identity: NODE_B });
  const remove = (nodeId: number, force = false): Promise<string> =>
    refusal(
      db.query("select pgautofailover.remove_node($1::bigint, $2::boolean)", [nodeId, force]),
    );
  const goals = (goalA: string, goalB: string): Promise<unknown> =>
    own.query(
      "update pgautofailover.node set goalstate = case nodeid when $1 then $2 else $3 end",
      [a, goalA, goalB],
    );
  const needed = [
    "single",
    "wait_primary",
    "primary",
    "apply_settings",
    "draining",
    "demote_timeout",
  ];
  for (const state of [...needed, "prepare_promotion", "stop_replication", "fast_forward"]) {
    await goals(state, "catchingup");
    expect({ state, refused: await remove(a) }).toEqual({ state, refused: "PA020" });
    expect({ state, refused: await remove(a, true) }).toEqual({ state, refused: "PA020" });
  }
  for (const state of ["report_lsn", "join_secondary"]) {
    await goals("draining", state);
    expect({ state, refused: await remove(b) }).toEqual({ state, refused: "PA021" });
  }
  await goals("primary", "secondary");
  expect(await remove(b)).toBe("");
  expect(await remove(b)).toBe("");
  const left = (): Promise<unknown> =>
    own.query("select nodeid::int as id, goalstate as goal from pgautofailover.node order by 1");
  expect(await left()).toEqual([
    { id: a, goal: "primary" },
    { id: b, goal: "dropped" },
  ]);
  expect(await remove(b, true)).toBe("");
  expect(await left()).toEqual([{ id: a, goal: "primary" }]);
  const [gone] = await db.query("select pgautofailover.remove_node($1::bigint) as value", [b]);
  expect(gone).toEqual({ value: false });
  expect(await remove(a)).toBe("");
  await monitor.close();
});

story(
  here,
  "node_active: who was removed is told so, whom nobody has heard of is only unknown",
  async (world) => {
    const { keeper, says, decide, monitor } = await healthyGroup(world, 4);
    const told = (nodeId: number): Promise<string> => refused(says(nodeId, SECONDARY));
    await keeper.query("select pgautofailover.remove_node(2)");
    await says(2, { state: "dropped", pgIsRunning: false });
    expect(await decide()).toMatch(/^R103/);
    expect(await told(2)).toBe('PA010: node 2 was removed from formation "default"');
    await keeper.query("select pgautofailover.remove_node(3, true)");
    expect(await told(3)).toBe('PA010: node 3 was removed from formation "default"');
    expect(await told(4)).toBe("");
    // a monitor that was made anew: node 9 may have been registered after the backup
    const unknown = report(keeper, 9, { reportNo: 99n, identity: NODE_UNHEARD_OF });
    expect(await refused(unknown)).toBe(
      'PA012: the monitor does not know node 9 of formation "default"',
    );
    // what was removed may come back, if it's created again
    const { nodeId } = await register(keeper, { port: 5003, identity: identityOf(3) });
    const again = report(keeper, nodeId, { reportNo: 1n, identity: identityOf(3) });
    expect(await refused(again)).toBe("");
    await monitor.close();
  },
);

story(here, "autoctl_node calls and reads, and can do nothing else", async (world) => {
  const monitor = await monitorOf(world);
  const db = monitor.open("autoctl_node");
  await register(db, {});
  await queryOnce(monitor.target, "create table public.theirs (id int)");
  for (const table of [
    "node",
    "formation",
    '"group"',
    "event",
    "timeline_history",
    "removed_node",
  ]) {
    expect(await refusal(db.query(`select * from pgautofailover.${table}`))).toBe("");
    expect(await refusal(db.query(`delete from pgautofailover.${table}`))).toBe("42501");
  }
  expect((await db.query("select * from pgautofailover.current_state()")).length).toBe(1);
  expect((await db.query("select * from pgautofailover.last_events('default', 5)")).length).toBe(1);
  for (const forbidden of [
    "update pgautofailover.node set goalstate = 'primary'",
    "insert into pgautofailover.formation (formationid) values ('mine')",
    "select * from pg_authid",
    "select pgautofailover.log_event(n, 'R1', 'x') from pgautofailover.node n",
    "select pgautofailover.notify_state(n) from pgautofailover.node n",
    "create table pgautofailover.mine (id int)",
    "insert into pgautofailover.removed_node (nodeid, identity) select nodeid, identity from pgautofailover.node",
    "select pg_read_file('/etc/passwd')",
    "select * from pgautofailover_private.replication_secret",
    "select pgautofailover.answer(1)",
    "create table public.mine (id int)",
    "create temporary table mine (id int)",
    "select * from theirs",
  ]) {
    expect({ forbidden, state: await refusal(db.query(forbidden)) }).toEqual({
      forbidden,
      state: "42501",
    });
  }
  await monitor.close();
});

story(
  here,
  "a node's report, and the replication password, take what only the node knows",
  async (world) => {
    const monitor = await monitorOf(world);
    const db = monitor.open("autoctl_node");
    const first = await register(db, { system: "7000000000000000001" });
    const second = await register(db, { port: 5002, identity: NODE_B });
    expect(first.secret?.password).toHaveLength(64);
    expect(second.secret).toEqual(first.secret);
    const known = { secretId: first.secret?.id };
    const a = (reportNo: bigint, more = {}) =>
      report(db, 1, { reportNo, identity: NODE_A, ...known, ...more });
    expect((await a(1n)).secret).toBeUndefined();
    expect((await a(2n, { secretId: NODE_B })).secret).toEqual(first.secret);

    // all that can be read
    const tables = await db.query<{ name: string }>(
      `select format('%I.%I', n.nspname, c.relname) as name
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'v') and has_schema_privilege(n.oid, 'usage')
          and (n.nspname not in ('pg_catalog', 'information_schema') or c.relname = 'pg_stat_activity')
          and has_table_privilege(c.oid, 'select') order by 1`,
    );
    expect(tables.map(({ name }) => name)).toContain("pgautofailover.node");
    let text = "";
    for (const { name } of tables) text += JSON.stringify(await db.query(`select * from ${name}`));
    for (const secret of [NODE_A, NODE_B, first.secret?.password ?? ""]) {
      expect(text).not.toContain(secret);
      expect(text).not.toContain(secret.replaceAll("-", ""));
    }
    const [row] = await db.query<{ identity: Buffer }>(
      "select identity from pgautofailover.node where nodeid = 1",
    );
    const digest = row?.identity.toString("hex") ?? "";
    for (const identity of [
      NODE_B,
      `${digest.slice(0, 8)}-${digest.slice(8, 12)}-4000-8000-${digest.slice(0, 12)}`,
    ]) {
      expect(await refusal(report(db, 1, { reportNo: 9n, identity }))).toBe("PA012");
    }
    expect(await refusal(report(db, 1, { reportNo: 9n, identity: undefined as never }))).toBe(
      "PA012",
    );
    expect(await refusal(a(9n, { systemIdentifier: "8" }))).toBe("PA004");

    const rotate = (password: string | null) =>
      db.query("select pgautofailover.set_replication_password('default', 0, $1)", [password]);
    await rotate(null);
    const generated = (await a(10n)).secret;
    expect(generated?.password).toHaveLength(64);
    expect(generated?.password).not.toBe(first.secret?.password);
    await rotate("it's:a\\secret");
    expect((await a(11n)).secret?.password).toBe("it's:a\\secret");
    expect(await refusal(rotate("two\nlines"))).toBe("PA009");
    expect(await refusal(rotate(""))).toBe("PA009");
    const events = await db.query("select * from pgautofailover.event");
    expect(JSON.stringify(events)).toContain("The replication password of group 0 was changed");
    expect(JSON.stringify(events)).not.toContain("secret");
    await monitor.close();
  },
);

story(here, "migrations run once, in order, and never backwards", async (world) => {
  const monitor = await monitorOf(world);
  expect(await migrate(monitor.target)).toBe(0);
  const more = [...MIGRATIONS, "create table pgautofailover.later (id int);"];
  expect(await migrate(monitor.target, more)).toBe(1);
  expect(await migrate(monitor.target, more)).toBe(0);
  const broken = [...more, "create table pgautofailover.half (id int);", "select 1 / 0;"];
  expect(await refusal(migrate(monitor.target, broken))).not.toBe("");
  const db = monitor.open();
  expect(await db.query("select to_regclass('pgautofailover.half') as half")).toEqual([
    { half: null },
  ]);
  const versions = await db.query("select version from public.pg_auto_failover_schema order by 1");
  expect(versions).toEqual(more.map((_, index) => ({ version: index + 1 })));
  await expect(migrate(monitor.target, MIGRATIONS)).rejects.toThrow("later version");
  await monitor.close();
});
