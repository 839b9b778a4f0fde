/** `npm run local` on this machine, with ports and a directory of its own: made, repeated, removed. */
import { afterAll, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { livePostmaster } from "../../lib/pg/server.ts";
import { cleanEnvironment, type Outcome, REPOSITORY, runCommand } from "../helpers/command.ts";
import { isRoot } from "../helpers/owner.ts";
import { freePort } from "../helpers/ports.ts";
import { killUnder, processesUnder, signal } from "../helpers/processes.ts";
import { waitFor } from "../helpers/wait.ts";

const reason = !isRoot
  ? "it installs packages and runs services, which takes root"
  : existsSync("/etc/debian_version")
    ? undefined
    : "it is written for Debian's packages";
if (reason) console.error(`skipped: npm run local is not tried here: ${reason}`);

const UP_MS = 240_000; // The first run may have to install Ansible and PostgreSQL.
const work = reason ? "" : mkdtempSync(join(tmpdir(), "local-test-"));
const base = join(work, "base");
const [monitorPort, primaryPort, secondaryPort] = [freePort(), freePort(), freePort()];
const LOCAL = ["sh", join(REPOSITORY, "ansible/local.sh")];
const NAMES = ["-e", "local_name=local-test", "-e", `local_base_dir=${base}`];
const PORTS = ["monitor", "primary", "secondary"].flatMap((name, index) => [
  "-e",
  `local_${name}_port=${[monitorPort, primaryPort, secondaryPort][index]}`,
]);
const UP = [...NAMES, ...PORTS];

/** What the run that made everything has printed. */
let closingLines = "";

/** TMPDIR: what a killed run could not clean up is found and removed here. */
const env = { ...cleanEnvironment({}), TMPDIR: work, INIT_CWD: REPOSITORY };
const local = (args: readonly string[]): Promise<Outcome> =>
  runCommand([...LOCAL, ...args], { env, timeoutMs: UP_MS });
const changes = ({ stdout }: Outcome): number => Number(/changed=(\d+)/.exec(stdout)?.[1]);
const data = (name: string): string => join(base, "data", name);

if (work) chmodSync(work, 0o1777);

afterAll(async () => {
  if (!work) return;
  if (existsSync(base)) await local(["down", ...NAMES]).catch(() => undefined);
  killUnder(work);
  rmSync(work, { recursive: true, force: true });
}, UP_MS);

const trial = test.skipIf(reason !== undefined);

trial(
  "a port that another program has is named, and nothing is made",
  async () => {
    using _taken = Bun.listen({
      hostname: "127.0.0.1",
      port: secondaryPort,
      socket: { data: () => undefined },
    });
    const refused = await local(UP);
    expect(refused.code).not.toBe(0);
    expect(refused.stdout).toContain(`in use by another program: port ${secondaryPort}.`);
    expect(changes(refused)).toBe(0);
    expect(existsSync(base)).toBe(false);
  },
  UP_MS,
);

trial(
  "a run that was killed in the middle is continued by the next one",
  async () => {
    const child = Bun.spawn([...LOCAL, ...UP], {
      env,
      cwd: "/",
      stdio: ["ignore", Bun.file(join(work, "killed.log")), "ignore"],
      detached: true,
    });
    await waitFor(
      "the primary to be in the making",
      UP_MS,
      () => child.exitCode !== null || existsSync(`${data("primary")}.initdb`),
    );
    expect(child.exitCode).toBe(null);
    process.kill(-child.pid, "SIGKILL");
    await child.exited;

    const done = await local(UP);
    closingLines = done.stdout;
    expect(done.code).toBe(0);
    expect(done.stdout).toMatch(/localhost:\d+ .* read-write .* primary \| +primary/);
    expect(done.stdout).toMatch(/localhost:\d+ .* read-only .* secondary \| +secondary/);
    expect(done.stdout).toContain(`localhost:${primaryPort},localhost:${secondaryPort}/postgres`);
  },
  2 * UP_MS,
);

trial(
  "the command that it prints writes through the client's URI",
  async () => {
    const command = /^ +(\S*psql ".*")$/m.exec(closingLines)?.[1];
    const psql = `cd '${REPOSITORY}' && ${command} -Atc 'create table local_test as select 41 + 1 as answer' -c 'table local_test'`;
    expect((await runCommand(["sh", "-c", psql], { env })).stdout).toBe("SELECT 1\n42\n");
  },
  60_000,
);

trial(
  "a second run changes nothing, in check mode neither",
  async () => {
    for (const mode of [[], ["--check"]]) {
      const again = await local([...NAMES, ...mode]);
      expect([again.code, changes(again)]).toEqual([0, 0]);
    }
  },
  2 * UP_MS,
);

trial(
  "a keeper that is killed is started again, and its PostgreSQL stays",
  async () => {
    const keepers = () =>
      processesUnder(base).filter(({ command }) =>
        command.includes(`run --pgdata ${data("primary")}`),
      );
    const [before] = keepers();
    const postgres = livePostmaster(data("primary"))?.pid;
    expect([typeof before?.pid, typeof postgres]).toEqual(["number", "number"]);
    signal(before?.pid ?? 0, "SIGKILL");
    await waitFor("a new keeper", 10_000, () => keepers().some(({ pid }) => pid !== before?.pid));
    expect(livePostmaster(data("primary"))?.pid).toBe(postgres);
  },
  30_000,
);

trial(
  "down leaves no process, no directory and no service",
  async () => {
    const removed = await local(["down", ...NAMES]);
    expect(removed.code).toBe(0);
    expect(processesUnder(base).map(({ command }) => command)).toEqual([]);
    expect(existsSync(base)).toBe(false);
    const units = "/etc/systemd/system";
    expect(
      existsSync(units) ? readdirSync(units).filter((unit) => unit.startsWith("local-test")) : [],
    ).toEqual([]);
    expect(changes(await local(["down", ...NAMES]))).toBe(0);
  },
  UP_MS,
);

test.skipIf(Bun.which("ansible-lint") === null)(
  "ansible-lint finds nothing, by its strictest profile",
  async () => {
    const lint = ["ansible-lint", "--offline", "--profile", "production", "--nocolor", "-p"];
    const { stdout, code } = await runCommand(
      ["sh", "-c", `cd '${REPOSITORY}/ansible' && ANSIBLE_CONFIG=ansible.cfg ${lint.join(" ")}`],
      {
        env: { ...env, ANSIBLE_HOME: join(work || tmpdir(), "ansible"), LC_ALL: "C.UTF-8" },
        timeoutMs: 120_000,
      },
    );
    expect([stdout, code]).toEqual(["", 0]);
  },
  130_000,
);
