import { expect, test } from "bun:test";
import {
  isAlive,
  isPostgres,
  parseProcStat,
  parsePsLine,
  readProcess,
  sendSignal,
  stillAlive,
} from "../../../lib/pg/processes.ts";

const STAT = `4711 (postgres) S 1 4711 4711 0 -1 4194560 998 2211 0 3 7 5 6 3 20 0 1 0 250 226 5 1`;

test("/proc/PID/stat: start time, parent and processor time", () => {
  expect(parseProcStat(STAT, () => 1000)).toEqual({
    pid: 4711,
    parentPid: 1,
    state: "S",
    command: "postgres",
    started: "250",
    startedAtS: 1002.5,
    cpuTicks: 12,
  });
});

test("/proc/PID/stat: a command with spaces and parentheses", () => {
  const odd = parseProcStat(STAT.replace("(postgres)", "(a) S 9 (b c)"), () => 0);
  expect(odd).toMatchObject({ pid: 4711, parentPid: 1, command: "a) S 9 (b c", started: "250" });
});

test("/proc/PID/stat: no process in a line that isn't one", () => {
  for (const line of ["", "4711", "4711 (postgres) S 1", "4711 postgres S"]) {
    expect(parseProcStat(line, () => 0)).toBeUndefined();
  }
});

test("ps: name without its path, state without its flags", () => {
  expect(
    parsePsLine(
      " 4711     1 Ss   Sun Nov 22 21:54:00 2026     /usr/lib/postgresql/15/bin/postgres",
    ),
  ).toMatchObject({ pid: 4711, parentPid: 1, state: "S", command: "postgres" });
  expect(parsePsLine("  PID  PPID STAT")).toBeUndefined();
});

test("isPostgres takes the server's names only", () => {
  const named = (command: string) => {
    const parsed = parseProcStat(STAT.replace("postgres", command), () => 0);
    return parsed !== undefined && isPostgres(parsed);
  };
  expect(["postgres", "postmaster"].every(named)).toBe(true);
  expect(["bash", "postgresql-thing", "pg_ctl", "postgres_export"].some(named)).toBe(false);
});

test("a zombie and a dead process are not alive", () => {
  const inState = (state: string) => {
    const parsed = parseProcStat(STAT.replace(" S ", ` ${state} `), () => 0);
    return parsed !== undefined && isAlive(parsed);
  };
  expect(["R", "S", "D", "T", "t", "I"].every(inState)).toBe(true);
  expect(["Z", "X", "x"].some(inState)).toBe(false);
});

test("another process under the same pid is another process, and gets no signal", () => {
  const own = readProcess(process.pid);
  if (!own) {
    throw new Error("this process doesn't see itself");
  }
  expect(stillAlive(own)).toBe(true);
  const before = { ...own, started: "1" };
  expect(stillAlive(before)).toBe(false);
  expect(sendSignal(before, "SIGKILL")).toBe(false);
});

test("a signal goes to one process, never to all", () => {
  const own = readProcess(process.pid);
  for (const pid of [1, 0, -1, -4711, Number.NaN]) {
    expect(() => own && sendSignal({ ...own, pid }, "SIGKILL")).toThrow("checked pid");
  }
});
