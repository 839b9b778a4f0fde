import { expect, test } from "bun:test";
import fc from "fast-check";
import { formatLsn, parseLsn } from "../../../lib/group/lsn.ts";

const anyLsn = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });

test("an LSN survives its text", () => {
  fc.assert(fc.property(anyLsn, (lsn) => parseLsn(formatLsn(lsn)) === lsn));
});

test("the order of LSNs is the order of their bytes, not of their texts", () => {
  expect(parseLsn("A/0") > parseLsn("9/FFFFFFFF")).toBe(true);
  expect(parseLsn("10/0") > parseLsn("9/0")).toBe(true);
});

test("known texts", () => {
  expect(parseLsn("0/0")).toBe(0n);
  expect(parseLsn("0/5000000")).toBe(0x5000000n);
  expect(parseLsn("16/B374D848")).toBe(0x16b374d848n);
  expect(parseLsn("16/b374d848")).toBe(0x16b374d848n);
  expect(parseLsn("00000016/0374D848")).toBe(0x160374d848n);
  expect(formatLsn(0x160374d848n)).toBe("16/374D848");
  expect(formatLsn((1n << 64n) - 1n)).toBe("FFFFFFFF/FFFFFFFF");
});

test("parseLsn refuses what isn't an LSN, and says what it got", () => {
  for (const text of ["", "0", "/", "0/", "/0", "0/G", "123456789/0", "0/0 ", "-1/0", "0/0/0"]) {
    expect(() => parseLsn(text)).toThrow(
      new RangeError(`not an LSN such as 16/B374D848: "${text}"`),
    );
  }
});

test("formatLsn refuses a number that no LSN has", () => {
  for (const lsn of [-1n, 1n << 64n]) {
    expect(() => formatLsn(lsn)).toThrow(RangeError);
  }
});
