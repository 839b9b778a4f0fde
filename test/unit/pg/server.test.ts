import { expect, test } from "bun:test";
import fc from "fast-check";
import { parsePostmasterPid } from "../../../lib/pg/server.ts";

const READY = "4711\n/data/a\n1795385776\n5432\n/tmp\nlocalhost\n  1234567     65\nready   \n";

test("a running server's postmaster.pid", () => {
  expect(parsePostmasterPid(READY)).toEqual({
    pid: 4711,
    startedAtS: 1795385776,
    port: 5432,
    socketDir: "/tmp",
    listen: "localhost",
    status: "ready",
  });
  expect(parsePostmasterPid(READY.replace("ready   ", "standby "))?.status).toBe("standby");
  expect(parsePostmasterPid(READY.replace("ready   ", "stopping"))?.status).toBe("stopping");
});

test("a server that starts has written five lines, and is starting", () => {
  const begun = READY.split("\n").slice(0, 5).join("\n");
  expect(parsePostmasterPid(`${begun}\n`)).toEqual({
    pid: 4711,
    startedAtS: 1795385776,
    port: 5432,
    socketDir: "/tmp",
    listen: "",
    status: "starting",
  });
});

test("a server without a Unix socket or without TCP has an empty line there", () => {
  const neither = READY.replace("/tmp", "").replace("localhost", "");
  expect(parsePostmasterPid(neither)).toMatchObject({ socketDir: "", listen: "", status: "ready" });
});

test("a text that was cut short never yields another server than the whole one", () => {
  const whole = parsePostmasterPid(READY);
  fc.assert(
    fc.property(fc.nat(READY.length - 1), (length) => {
      const part = parsePostmasterPid(READY.slice(0, length));
      return (
        part === undefined ||
        (part.pid === whole?.pid && part.port === whole.port && part.socketDir === whole.socketDir)
      );
    }),
  );
});

test("no pid that a signal must never go to, and no rubbish", () => {
  for (const pid of ["0", "1", "-1", "-4711", "", "x", "47 11", "99999999999"]) {
    expect(parsePostmasterPid(READY.replace("4711", pid))).toBeUndefined();
  }
  for (const text of ["", "\n", "\n\n\n\n\n\n\n\n", "\0\0\0\0", READY.replace("ready", "tired")]) {
    expect(parsePostmasterPid(text)).toBeUndefined();
  }
  expect(parsePostmasterPid(READY.replace("1795385776", "yesterday"))).toBeUndefined();
  expect(parsePostmasterPid(READY.replace("5432", ""))).toBeUndefined();
});
