import { expect, test } from "bun:test";
import { type Lookups, nameProblem } from "../../../lib/pg/names.ts";

/** A network in which these names have these addresses, and those addresses these names. */
const network = (
  addresses: Readonly<Record<string, readonly string[]>>,
  names: Readonly<Record<string, string>>,
): Lookups => ({
  addressesOf: async (name) => addresses[name] ?? Promise.reject(new Error("ENOTFOUND")),
  nameOf: async (address) => names[address] ?? Promise.reject(new Error("ENOTFOUND")),
});
const problem = (host: string, lookups: Lookups) => nameProblem(host, { timeoutMs: 1000, lookups });

test("nameProblem: none where both lookups agree, whatever the case of letters", async () => {
  const lookups = network(
    { "db1.example": ["10.0.0.1", "fd00::1"] },
    { "10.0.0.1": "DB1.example.", "fd00::1": "db1.example" },
  );
  expect(await problem("db1.example", lookups)).toBeUndefined();
});

test("nameProblem: an address, and this machine's loopback, are asked nobody about", async () => {
  const nobody: Lookups = {
    addressesOf: () => Promise.reject(new Error("asked")),
    nameOf: () => Promise.reject(new Error("asked")),
  };
  for (const host of ["10.0.0.1", "fd00::1", "localhost", "127.0.0.1"]) {
    expect(await problem(host, nobody)).toBeUndefined();
  }
});

test("nameProblem says what it has found", async () => {
  const lookups = network(
    {
      db1: ["10.0.0.1"],
      db2: ["10.0.0.2", "fd00::2"],
      db3: ["127.0.1.1"],
    },
    { "10.0.0.1": "db1.example", "10.0.0.2": "db2" },
  );
  expect(await problem("db1", lookups)).toBe('"db1" is 10.0.0.1, but 10.0.0.1 is "db1.example"');
  expect(await problem("db2", lookups)).toBe(
    '"db2" is 10.0.0.2 and fd00::2, but fd00::2 is nameless',
  );
  expect(await problem("db3", lookups)).toBe(
    '"db3" is 127.0.1.1, which only this machine can mean',
  );
  expect(await problem("db4", lookups)).toBe('"db4" has no address');
});

test("nameProblem: a lookup that hangs is given up", async () => {
  const hangs: Lookups = { addressesOf: () => new Promise(() => {}), nameOf: async () => "" };
  expect(await nameProblem("db1", { timeoutMs: 20, lookups: hangs })).toBe(
    'looking up "db1" takes longer than 20 ms',
  );
});
