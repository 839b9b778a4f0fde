import { expect, test } from "bun:test";
import fc from "fast-check";
import { formationUri, type UriParts } from "../../../lib/group/uri.ts";

const PARTS: UriParts = {
  hosts: [
    { host: "node-a", port: 5432 },
    { host: "2001:db8::2", port: 5433 },
  ],
  database: "app db",
  user: "o'hara",
  parameters: { target_session_attrs: "read-write", sslmode: "prefer" },
};

test("libpq: IPv6 in brackets, everything else escaped", () => {
  expect(formationUri(PARTS)).toBe(
    "postgres://o'hara@node-a:5432,[2001:db8::2]:5433/app%20db?target_session_attrs=read-write&sslmode=prefer",
  );
});

test("jdbc: targetServerType instead of target_session_attrs", () => {
  expect(formationUri(PARTS, "jdbc")).toBe(
    "jdbc:postgresql://node-a:5432,[2001:db8::2]:5433/app%20db?targetServerType=primary&user=o'hara&sslmode=prefer",
  );
});

test("keyword: quotes and backslashes escaped, no brackets", () => {
  expect(formationUri(PARTS, "keyword")).toBe(
    "host=node-a,2001:db8::2 port=5432,5433 dbname='app db' user='o\\'hara' target_session_attrs=read-write sslmode=prefer",
  );
  const slashed = { ...PARTS, user: "a\\b", database: "" };
  expect(formationUri(slashed, "keyword")).toContain("dbname='' user='a\\\\b'");
});

test("json: the parts themselves", () => {
  expect(JSON.parse(formationUri(PARTS, "json"))).toEqual(PARTS as never);
});

test("without a user none is named", () => {
  const { user: _, ...parts } = PARTS;
  expect(formationUri(parts)).toStartWith("postgres://node-a:5432,");
  expect(formationUri(parts, "jdbc")).not.toContain("user=");
  expect(formationUri(parts, "keyword")).not.toContain("user=");
});

test("a URL parser finds any database and user again", () => {
  const name = fc.string({ minLength: 1, unit: "grapheme" });
  // to a URL parser, though not to libpq, these are steps in a path, however they're written
  const database = name.filter((text) => text !== "." && text !== "..");
  fc.assert(
    fc.property(database, name, (database, user) => {
      const hosts = [{ host: "localhost", port: 5432 }];
      const url = new URL(formationUri({ hosts, database, user, parameters: { a: user } }));
      expect(decodeURIComponent(url.pathname.slice(1))).toBe(database);
      expect(decodeURIComponent(url.username)).toBe(user);
      expect(url.searchParams.get("a")).toBe(user);
    }),
  );
});
