import { expect } from "bun:test";
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { serverProcesses } from "../../lib/pg/processes.ts";
import {
  adoptServer,
  livePostmaster,
  readPostmaster,
  startServer,
  stopServer,
} from "../../lib/pg/server.ts";
import { writeStandbySettings } from "../../lib/pg/settings.ts";
import { AppError } from "../../lib/sys/errors.ts";
import { isAlive } from "../helpers/processes.ts";
import { waitFor } from "../helpers/wait.ts";
import { bun, serverBundle } from "./bundle.ts";
import { BOUNDS, failure, measured, median, story } from "./pg_story.ts";

const here = import.meta.path;

story(here, "a server starts, is found again, and stops", async ({ primary }) => {
  const node = await primary("a");
  const postmaster = livePostmaster(node.pgdata);
  expect(postmaster).toMatchObject({ port: node.port, listen: "127.0.0.1", status: "ready" });
  expect(adoptServer(node.pgdata)).toMatchObject({ pid: postmaster?.pid });
  expect(adoptServer(node.pgdata)?.alive()).toBe(true);
  expect(statSync(node.logFile).mode & 0o777).toBe(0o600);
  expect((await failure(node.start())).kind).toBe("conflict");
  const adopted = adoptServer(node.pgdata);
  expect(await stopServer(node.pgdata, BOUNDS)).toBe("fast");
  expect(adopted?.alive()).toBe(false);
  expect(adoptServer(node.pgdata)).toBeUndefined();
  expect(await stopServer(node.pgdata, BOUNDS)).toBe("not running");
  const starts: number[] = [];
  const stops: number[] = [];
  for (let round = 0; round < 9; round++) {
    starts.push((await measured("start", () => node.start()))[1]);
    stops.push((await measured("stop", () => stopServer(node.pgdata, BOUNDS)))[1]);
  }
  expect(median("start", starts)).toBeLessThan(500);
  expect(median("stop", stops)).toBeLessThan(500);
});

story(
  here,
  "the end of a killed postmaster is noticed at once, own child or adopted",
  async ({ primary }) => {
    const node = await primary("a");
    await stopServer(node.pgdata, BOUNDS);
    const own: number[] = [];
    const adopted: number[] = [];
    for (let round = 0; round < 9; round++) {
      // Orphans of the round before may still be there: it has to start all the same.
      const server = await node.start();
      const broken = Promise.withResolvers<void>();
      const db = node.open(() => broken.resolve());
      await db.query("SELECT 1");
      const begin = performance.now();
      process.kill(server.pid, "SIGKILL");
      await Promise.all([
        server.exited.then(() => own.push(performance.now() - begin)),
        broken.promise.then(() => adopted.push(performance.now() - begin)),
      ]);
      expect(server.alive()).toBe(false);
      expect(livePostmaster(node.pgdata)).toBeUndefined();
      await db.close();
    }
    expect(median("exit of a child", own)).toBeLessThan(100);
    expect(median("broken connection", adopted)).toBeLessThan(100);
  },
);

story(here, "PostgreSQL outlives a keeper that is killed", async ({ dir, binaries, primary }) => {
  const node = await primary("a");
  await stopServer(node.pgdata, BOUNDS);
  const script = `
    import { startServer } from ${JSON.stringify(join(dir, "server.js"))};
    const server = await startServer(${JSON.stringify({ binaries, pgdata: node.pgdata, port: node.port, logFile: node.logFile, timeoutMs: 10_000 })});
    console.log(server.pid);
    await server.exited;`;
  writeFileSync(join(dir, "server.js"), serverBundle);
  writeFileSync(join(dir, "keeper.ts"), script);
  const keeper = Bun.spawn([bun, join(dir, "keeper.ts")], {
    stdout: "pipe",
    env: { ...process.env, NOTIFY_SOCKET: "/nowhere", PGOPTIONS: "-c work_mem=1MB" },
  });
  const live = await waitFor("the server", 10_000, () => {
    const found = livePostmaster(node.pgdata);
    return found?.status === "ready" ? found : undefined;
  });
  keeper.kill("SIGKILL");
  await keeper.exited;
  const server = adoptServer(node.pgdata);
  expect(server).toMatchObject({ pid: live.pid });
  const environment = readFileSync(`/proc/${live.pid}/environ`, "utf8");
  expect(environment).not.toContain("NOTIFY_SOCKET");
  expect(environment).not.toContain("PGOPTIONS");
  const db = node.open();
  await db.query("DO $$ BEGIN RAISE LOG 'still writing'; END $$");
  expect(readFileSync(node.logFile, "utf8")).toContain("still writing");
  expect(server?.alive()).toBe(true);
});

story(
  here,
  "a pid that belongs to something else is no server, and gets no signal",
  async ({ dir, primary, place }) => {
    const other = await primary("b");
    const node = place("a");
    mkdirSync(node.pgdata, { mode: 0o700 });
    const pidFile = join(node.pgdata, "postmaster.pid");
    const lines = readFileSync(join(other.pgdata, "postmaster.pid"), "utf8").split("\n").slice(1);
    const claim = (pid: number) => writeFileSync(pidFile, [pid, ...lines].join("\n"));

    copyFileSync(join(other.pgdata, "postmaster.pid"), pidFile);
    expect(readPostmaster(node.pgdata)?.pid).toBe(livePostmaster(other.pgdata)?.pid);
    expect(livePostmaster(node.pgdata)).toBeUndefined();
    expect(await stopServer(node.pgdata, BOUNDS)).toBe("not running");
    expect(livePostmaster(other.pgdata)?.status).toBe("ready");

    claim(process.pid);
    expect(livePostmaster(node.pgdata)).toBeUndefined();
    writeFileSync(pidFile, "");
    expect(livePostmaster(node.pgdata)).toBeUndefined();
    writeFileSync(pidFile, `-${process.pid}\n${lines.join("\n")}`);
    expect(await stopServer(node.pgdata, BOUNDS)).toBe("not running");

    // A zombie with a server's name, in the right directory: its parent never waits for it.
    copyFileSync("/bin/cat", join(dir, "postgres"));
    chmodSync(join(dir, "postgres"), 0o755);
    const script = `exec 3<&0; ${join(dir, "postgres")} <&3 & echo $!; exec sleep 60 3<&- </dev/null`;
    const parent = Bun.spawn(["sh", "-c", script], {
      cwd: node.pgdata,
      stdin: "pipe",
      stdout: "pipe",
    });
    try {
      const { value } = await parent.stdout.getReader().read();
      const zombie = Number(new TextDecoder().decode(value));
      // a shell might still take notice of the end
      const isSleep = () => readFileSync(`/proc/${parent.pid}/comm`, "utf8") === "sleep\n";
      await waitFor("the parent that never waits", 5000, isSleep);
      await parent.stdin.end();
      const stat = () => readFileSync(`/proc/${zombie}/stat`, "utf8");
      await waitFor("the zombie", 2000, () => stat().includes("(postgres) Z"));
      claim(zombie);
      expect(livePostmaster(node.pgdata)).toBeUndefined();
      expect(await stopServer(node.pgdata, BOUNDS)).toBe("not running");
    } finally {
      parent.kill("SIGKILL");
      await parent.exited;
    }
  },
);

story(
  here,
  "a recycled pid in postmaster.pid doesn't keep the server from starting",
  async ({ primary }) => {
    const node = await primary("a");
    const pidFile = join(node.pgdata, "postmaster.pid");
    const lines = readFileSync(pidFile, "utf8").split("\n").slice(1);
    await stopServer(node.pgdata, BOUNDS);
    const sleeper = Bun.spawn(["sleep", "60"], { cwd: "/" });
    try {
      writeFileSync(pidFile, [sleeper.pid, ...lines].join("\n"), { mode: 0o600 });
      const server = await node.start();
      expect(livePostmaster(node.pgdata)?.pid).toBe(server.pid);
      expect(sleeper.exitCode).toBeNull();
    } finally {
      sleeper.kill("SIGKILL");
      await sleeper.exited;
    }
  },
);

story(
  here,
  "a killed postmaster that nobody waits for doesn't keep the server from starting",
  async ({ binaries, primary }) => {
    const node = await primary("a");
    await stopServer(node.pgdata, BOUNDS);
    const command = `${join(binaries.bindir, "postgres")} -D ${node.pgdata} -p ${node.port}`;
    const parent = Bun.spawn(["sh", "-c", `${command} & exec sleep 60`], { stderr: "ignore" });
    try {
      const killed = await waitFor("the server", 5000, () => {
        const found = livePostmaster(node.pgdata);
        return found?.status === "ready" ? found : undefined;
      });
      process.kill(killed.pid, "SIGKILL");
      await waitFor("the zombie", 2000, () =>
        readFileSync(`/proc/${killed.pid}/stat`, "utf8").includes("(postgres) Z"),
      );
      expect(livePostmaster(node.pgdata)).toBeUndefined();
      expect(await stopServer(node.pgdata, BOUNDS)).toBe("not running");
      const server = await node.start();
      expect(livePostmaster(node.pgdata)?.pid).toBe(server.pid);
    } finally {
      parent.kill("SIGKILL");
      await parent.exited;
    }
  },
);

story(here, "a clock that was set doesn't hide a running server", async ({ primary }) => {
  const node = await primary("a");
  const pidFile = join(node.pgdata, "postmaster.pid");
  const lines = readFileSync(pidFile, "utf8").split("\n");
  writeFileSync(pidFile, lines.with(2, String(Number(lines[2]) - 86_400)).join("\n"));
  expect(livePostmaster(node.pgdata)?.pid).toBe(Number(lines[0]));
});

story(here, "a busy port is named", async ({ primary }) => {
  const node = await primary("a");
  await stopServer(node.pgdata, BOUNDS);
  const squatter = Bun.listen({ hostname: "127.0.0.1", port: node.port, socket: { data() {} } });
  const error = await failure(node.start());
  squatter.stop(true);
  expect(error).toMatchObject({ kind: "conflict", detail: { port: node.port } });
  expect(serverProcesses(node.pgdata, undefined)).toEqual([]);
  await node.start();
});

story(here, "a server that can't start says why", async ({ primary }) => {
  const node = await primary("a");
  await stopServer(node.pgdata, BOUNDS);
  const conf = join(node.pgdata, "postgresql-auto-failover.conf");
  appendFileSync(conf, "no_such_setting = 1\n");
  const error = await failure(node.start());
  expect(error.kind).toBe("postgres");
  expect(String(error.detail["log"])).toContain("no_such_setting");
  expect(String(error.detail["reason"])).toContain("FATAL");
  expect(error.hint).toContain(node.logFile);
});

story(here, "a frozen server is killed with all its processes", async ({ primary }) => {
  const node = await primary("a");
  await node.open().query("SELECT 1");
  const all = serverProcesses(node.pgdata, undefined);
  expect(all.length).toBeGreaterThan(5);
  for (const { pid } of all) {
    process.kill(pid, "SIGSTOP");
  }
  const [outcome] = await measured("stop of a frozen server", () =>
    stopServer(node.pgdata, BOUNDS),
  );
  expect(outcome).toBe("killed");
  expect(all.filter(({ pid }) => isAlive(pid))).toEqual([]);
  await node.start();
});

story(here, "a frozen backend holds no stop up for longer than its bounds", async ({ primary }) => {
  const node = await primary("a");
  const [row] = await node.open().query<{ pid: number }>("SELECT pg_backend_pid() AS pid");
  process.kill(row?.pid ?? 0, "SIGSTOP");
  const bounds = { fastMs: 300, immediateMs: 300, killMs: 3000 };
  const [outcome, tookMs] = await measured("stop with a frozen backend", () =>
    stopServer(node.pgdata, bounds),
  );
  expect(outcome).toBe("killed");
  expect(tookMs).toBeLessThan(2000);
});

story(here, "sessions that wait don't hold up a fast stop", async ({ primary }) => {
  const node = await primary("a");
  const asleep = node.open().query("SELECT pg_sleep(60)", [], { timeoutMs: 30_000 });
  const ended = asleep.then(
    () => "answered",
    () => "broken",
  );
  await waitFor("the query", 2000, async () => {
    const [row] = await node
      .open()
      .query<{ n: number }>(
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
      );
    return row?.n === 1;
  });
  expect(await stopServer(node.pgdata, BOUNDS)).toBe("fast");
  expect(await ended).toBe("broken");
});

story(here, "a frozen orphan blocks a start until it is stopped", async ({ primary }) => {
  const node = await primary("a");
  const [row] = await node.open().query<{ pid: number }>("SELECT pg_backend_pid() AS pid");
  const orphan = row?.pid ?? 0;
  process.kill(orphan, "SIGSTOP");
  process.kill(livePostmaster(node.pgdata)?.pid ?? 0, "SIGKILL");
  await waitFor("the postmaster's end", 2000, () => livePostmaster(node.pgdata) === undefined);
  const error = await failure(node.start(300));
  expect(error).toMatchObject({ kind: "timeout", detail: { pids: String(orphan) } });
  expect(await stopServer(node.pgdata, { ...BOUNDS, immediateMs: 300 })).toBe("killed");
  expect(isAlive(orphan)).toBe(false);
  await node.start();
});

story(here, "recovery without WAL to go on is given up, and can be stopped", async (world) => {
  const source = await world.primary("a");
  const node = await world.standby("b", source);
  await stopServer(node.pgdata, BOUNDS);
  // A copy without the WAL that makes it consistent, and nobody to get that from.
  rmSync(node.pgdata, { recursive: true });
  const copy = Bun.spawnSync([
    join(world.binaries.bindir, "pg_basebackup"),
    ...["-D", node.pgdata, "-d", source.conninfo("b"), "-X", "none", "-c", "fast"],
  ]);
  expect(copy.exitCode).toBe(0);
  writeStandbySettings(node.pgdata, {
    primaryConninfo: "host=127.0.0.1 port=1",
    primarySlotName: "",
  });
  const error = await failure(node.start(2500));
  expect(error.kind).toBe("timeout");
  expect(livePostmaster(node.pgdata)?.status).toBe("starting");
  expect(await stopServer(node.pgdata, BOUNDS)).toBe("fast");
});

story(here, "recovery that outlasts its timeout, and gets on, is waited for", async (world) => {
  const SEGMENTS = 7;
  const TIMEOUT_MS = 2000;
  const source = await world.primary("a");
  const node = await world.standby("b", source);
  const db = source.open();
  await db.query("create table filler (id int)");
  for (let count = 0; count < SEGMENTS; count++) {
    await db.query("insert into filler select generate_series(1, 1000)");
    await db.query("select pg_switch_wal()");
  }
  const [end] = await db.query<{ lsn: string }>("select pg_current_wal_flush_lsn()::text as lsn");
  const standby = node.open();
  await waitFor("the standby to replay it all", 10_000, async () => {
    const text = "select pg_last_wal_replay_lsn() >= $1::pg_lsn as all";
    return (await standby.query<{ all: boolean }>(text, [end?.lsn]))[0]?.all;
  });
  // It has to replay up to there again, from an archive that takes its time for each file.
  await stopServer(node.pgdata, BOUNDS);
  const archive = join(world.dir, "archive");
  renameSync(join(node.pgdata, "pg_wal"), archive);
  for (const path of ["pg_wal", "pg_wal/archive_status"]) mkdirSync(join(node.pgdata, path));
  const restore = `restore_command = 'sleep 0.5; cp "${archive}/%f" "%p"'\n`;
  appendFileSync(join(node.pgdata, "postgresql.conf"), restore);
  const [, tookMs] = await measured("a long recovery", () => node.start(TIMEOUT_MS));
  expect(tookMs).toBeGreaterThan(TIMEOUT_MS);
  expect(livePostmaster(node.pgdata)?.status).toBe("ready");
});

story(here, "a server is stopped at any moment of its start", async ({ primary, binaries }) => {
  const node = await primary("a");
  await stopServer(node.pgdata, BOUNDS);
  const { pgdata, port, logFile } = node;
  for (let waitMs = 0; waitMs < 40; waitMs++) {
    const controller = new AbortController();
    const { signal } = controller;
    const options = { binaries, pgdata, port, logFile, timeoutMs: 10_000, signal };
    const starting = startServer(options).then(
      () => {},
      () => {},
    );
    // Not a wait for something to happen: every moment of a start has its turn.
    await Bun.sleep(waitMs);
    controller.abort(new AppError("state", "something else to do"));
    expect(["fast", "not running"]).toContain(await stopServer(pgdata, BOUNDS));
    expect(serverProcesses(pgdata, undefined)).toEqual([]);
    await starting;
    expect(livePostmaster(pgdata)).toBeUndefined();
  }
});
