import { expect, test } from "bun:test";
import {
  hasPendingHangup,
  isVerifierOf,
  localTarget,
  scramVerifier,
} from "../../../lib/pg/local.ts";
import type { Postmaster } from "../../../lib/pg/server.ts";

const postmaster: Postmaster = {
  pid: 4711,
  startedAtS: 1795385776,
  port: 5433,
  socketDir: "/tmp",
  listen: "*",
  status: "ready",
};
const login = { user: "postgres", database: "postgres", applicationName: "keeper" };
const hostOf = (change: Partial<Postmaster>) =>
  localTarget({ ...postmaster, ...change }, login).host;

test("localTarget prefers the Unix socket", () => {
  expect(localTarget(postmaster, login)).toMatchObject({ host: "/tmp", port: 5433, ...login });
});

test("localTarget: without a Unix socket it's an address that reaches this machine", () => {
  for (const listen of ["*", "0.0.0.0", ""]) {
    expect(hostOf({ socketDir: "", listen })).toBe("127.0.0.1");
  }
  expect(hostOf({ socketDir: "", listen: "::" })).toBe("::1");
  expect(hostOf({ socketDir: "", listen: "10.0.0.1" })).toBe("10.0.0.1");
  expect(hostOf({ socketDir: "@pg", listen: "localhost" })).toBe("localhost");
});

test("hasPendingHangup: signal 1 is the lowest bit, of either mask", () => {
  const status = (sig: string, shd: string) =>
    `Name:\tpostgres\nSigPnd:\t${sig}\nShdPnd:\t${shd}\n`;
  expect(hasPendingHangup(status("0000000000000000", "0000000000000000"))).toBe(false);
  expect(hasPendingHangup(status("0000000000000000", "0000000000000001"))).toBe(true);
  expect(hasPendingHangup(status("0000000000000001", "0000000000000000"))).toBe(true);
  expect(hasPendingHangup(status("8000000000000000", "0000000000000006"))).toBe(false);
});

test("hasPendingHangup: a status that doesn't tell is no proof", () => {
  expect(hasPendingHangup("")).toBe(true);
  expect(hasPendingHangup("ShdPnd:\t0000000000000000\n")).toBe(true);
});

test("scramVerifier: the example of RFC 7677 in PostgreSQL's form", () => {
  // Salt, iterations and password of RFC 7677, section 3; the keys follow from its proofs.
  const salt = Buffer.from("W22ZaJ0SNY7soEsUEjb6gQ==", "base64");
  expect(scramVerifier("pencil", salt)).toBe(
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
  );
});

test("isVerifierOf tells the right password from others, and from other forms", () => {
  const stored = scramVerifier("geheim", Buffer.from("0123456789abcdef"));
  expect(isVerifierOf("geheim", stored)).toBe(true);
  expect(isVerifierOf("geheim2", stored)).toBe(false);
  expect(isVerifierOf("geheim", "md5e8a48653851e28c69d0506508fb27fc5")).toBe(false);
  expect(isVerifierOf("geheim", "")).toBe(false);
});
