import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  AppError,
  detailText,
  EXIT_CODES,
  errorText,
  invariant,
  oneLine,
  scrub,
} from "../../../lib/sys/errors.ts";

test("EXIT_CODES: every kind has its documented code", () => {
  expect(EXIT_CODES).toEqual({
    usage: 2,
    config: 2,
    state: 3,
    postgres: 4,
    permission: 5,
    monitor: 6,
    conflict: 7,
    timeout: 8,
    internal: 12,
    dropped: 121,
  });
});

test("invariant: what holds passes, what doesn't is an internal error", () => {
  invariant(1, "one is something");
  expect(() => invariant(0, "zero is nothing")).toThrow(
    expect.objectContaining({ kind: "internal", message: "zero is nothing" }),
  );
});

describe("errorText", () => {
  test("message, values and cause stand on one line", () => {
    const cause = new Error("connect\nECONNREFUSED");
    const error = new AppError("monitor", "could not reach the monitor", {
      detail: { host: "a b", port: 5432, password: undefined, lag: 7n },
      cause,
    });
    expect(errorText(error)).toBe(
      'could not reach the monitor host="a b" port=5432 lag=7: connect ECONNREFUSED',
    );
  });

  test("a reason in the values makes the cause's text superfluous", () => {
    const cause = new Error("ECONNREFUSED");
    const error = new AppError("postgres", "no connection", {
      detail: { reason: "refused" },
      cause,
    });
    expect(errorText(error)).toBe("no connection reason=refused");
  });

  test("anything can be thrown", () => {
    const unprintable = {
      toString() {
        throw new Error("no");
      },
    };
    expect(["text", 7, null, undefined, unprintable, new Error("")].map(errorText)).toEqual([
      "text",
      "7",
      "null",
      "undefined",
      "an error that can't be printed",
      "Error",
    ]);
  });

  test("errors that cause each other end", () => {
    const a = new Error("a");
    a.cause = new Error("b", { cause: a });
    expect(errorText(a)).toBe("a: b: a: b");
  });
});

describe("scrub", () => {
  test.each([
    ["postgres://u:secret@h:1/db", "postgres://u:***@h:1/db"],
    ["at postgresql://u:se%40c@h and http://x:y@z.", "at postgresql://u:***@h and http://x:***@z."],
    ["postgres://u:p@ss@h/db", "postgres://u:***@h/db"],
    ["postgres://:secret@h/db", "postgres://:***@h/db"],
    ["host=h password=secret user=u", "host=h password=*** user=u"],
    ["password = 'it''s \\' me' user=u", "password = '***' user=u"],
    ["sslpassword=x PGPASSWORD=y", "sslpassword=*** PGPASSWORD=***"],
    ["/db?user=u&password=x&sslmode=require", "/db?user=u&password=***&sslmode=require"],
    ["ALTER ROLE r PASSWORD 'x y'", "ALTER ROLE r PASSWORD '***'"],
    ['{"password":"a\\"b","user":"u"}', '{"password":"***","user":"u"}'],
  ])("%s", (text, expected) => {
    expect(scrub(text)).toBe(expected);
  });

  test.each([
    "postgres://u@h:5432/db?sslmode=require",
    'password authentication failed for user "u"',
    "password_encryption = scram-sha-256",
    "08:15:00 INFO  transition done from=primary to=wait_primary",
  ])("leaves %s", (text) => {
    expect(scrub(text)).toBe(text);
  });

  test("a secret of any letters is gone from an error's line", () => {
    // Without upper case, so that no part of the line's own words is taken for it.
    const secret = fc.stringMatching(/^[A-Z!$%&()*+,;<=>^_`{|}~.-]{4,20}$/);
    fc.assert(
      fc.property(secret, (word) => {
        const uri = `postgres://u:${encodeURIComponent(word)}@h/db`;
        const error = new AppError("monitor", "no connection", { detail: { uri } });
        expect(errorText(error)).toBe("no connection uri=postgres://u:***@h/db");
      }),
    );
  });

  test("a second time changes nothing", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (a, b) => {
        const once = scrub(`${a}password='${b}' postgres://${a}:${b}@h`);
        expect(scrub(once)).toBe(once);
      }),
    );
  });
});

test("oneLine: a server's text can't break the line or move the cursor", () => {
  expect(oneLine(" a\r\n  b\tc\u001b[2Jd\u0007 ")).toBe("a b c [2Jd");
});

test("detailText: values are quoted when they have to be", () => {
  expect(
    detailText({ a: 1, b: "", c: 'x"y', d: "x=y", e: undefined, f: false, g: "plain/1.2" }),
  ).toBe('a=1 b="" c="x\\"y" d="x=y" f=false g=plain/1.2');
});
