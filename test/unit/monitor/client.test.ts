import { expect, test } from "bun:test";
import { monitorError } from "../../../lib/monitor/client.ts";
import { MIGRATIONS } from "../../../lib/monitor/schema/migrations.ts";
import { AppError } from "../../../lib/sys/errors.ts";

const TARGET = {
  host: "h",
  port: 1,
  user: "u",
  database: "d",
  applicationName: "t",
  connectTimeoutMs: 1,
};
const refusedWith = (code: string): AppError =>
  monitorError(new AppError("postgres", "the reason", { detail: { code } }), TARGET);

test("monitorError: every code that the schema raises has a hint, and its kind", () => {
  const schema = MIGRATIONS.join("");
  const codes = new Set([...schema.matchAll(/errcode = '(PA\d+)'/g)].map(([, code = ""]) => code));
  codes.delete("PA011"); // for a keeper, which goes on with a later report
  expect(codes.size).toBeGreaterThan(12);
  for (const code of codes) {
    expect({ code, hint: refusedWith(code).hint }).toEqual({
      code,
      hint: expect.stringMatching(/^[A-Za-z].*[.?]$/),
    });
  }
  const kinds = { PA001: "monitor", PA008: "monitor", PA009: "usage", PA010: "dropped" };
  for (const [code, kind] of Object.entries(kinds)) {
    expect({ code, kind: refusedWith(code).kind as string }).toEqual({ code, kind });
  }
  for (const code of ["PA020", "PA021", "PA030", "PA031", "PA032", "PA033"]) {
    expect({ code, kind: refusedWith(code).kind }).toEqual({ code, kind: "conflict" });
  }
});

test("monitorError: who was removed ends, whom the monitor doesn't know goes on without it", () => {
  expect(refusedWith("PA010").kind).toBe("dropped");
  expect(refusedWith("PA012").kind).toBe("monitor");
});
