import { expect, test } from "bun:test";
import { DEFAULT_POLICY } from "../../../lib/group/view.ts";
import {
  FORMATION_SETTINGS,
  formationChange,
  formationSetting,
  parseMeasure,
  presetOf,
} from "../../../lib/monitor/settings.ts";

test("formationSetting: by the operator's name or the column's, and nothing else", () => {
  for (const setting of FORMATION_SETTINGS) {
    expect(formationSetting(setting.name)).toBe(setting);
    expect(formationSetting(setting.column)).toBe(setting);
  }
  expect(() => formationSetting("dbname")).toThrow("a formation has no such setting");
});

test("parseMeasure: times and sizes with PostgreSQL's units, exactly", () => {
  const times = {
    "2500": 2500,
    "2500ms": 2500,
    "2.5s": 2500,
    "2.5 s": 2500,
    "1min": 60_000,
    "0": 0,
  };
  for (const [text, ms] of Object.entries(times)) expect(parseMeasure("x", "ms", text)).toBe(ms);
  const sizes = { "1": 1, "16MB": 16_777_216, "1.5kB": 1536, "2GB": 2 ** 31, "8 B": 8 };
  for (const [text, bytes] of Object.entries(sizes))
    expect(parseMeasure("x", "bytes", text)).toBe(bytes);
});

test("parseMeasure: what isn't one is refused", () => {
  for (const text of ["", "soon", "-1", "1e3", "0x10", "1.0005s", "2 5", "5sec", "16MB", "9e99s"])
    expect(() => parseMeasure("node-timeout", "ms", text)).toThrow("node-timeout takes a time");
  for (const text of ["16mb", "16MiB", "2s", "0.5B", "99999999TB"])
    expect(() => parseMeasure("x", "bytes", text)).toThrow("x takes a size");
});

test("formationChange: counts and words are the monitor's to judge", () => {
  const columns = (name: string, value: string) => formationChange(name, value).columns;
  expect(columns("durability", "protection")).toEqual({ durability: "protection" });
  expect(columns("number-sync-standbys", "-3")).toEqual({ number_sync_standbys: "-3" });
  expect(columns("node-timeout", "4s")).toEqual({ node_timeout_ms: "4000" });
});

test("formationChange: a preset is columns that exist, and is known again by their values", () => {
  const { columns } = formationChange("preset", "fast");
  const known = FORMATION_SETTINGS.map(({ column }) => column);
  expect(known).toEqual(expect.arrayContaining(Object.keys(columns)));
  expect(columns["node_timeout_ms"]).toBe("1500");
  expect(presetOf(columns)).toBe("fast");
  expect(presetOf({ ...columns, node_timeout_ms: 1501 })).toBeUndefined();
  const { columns: normal } = formationChange("preset", "default");
  expect(normal["heartbeat_ms"]).toBe(String(DEFAULT_POLICY.heartbeatMs));
  expect(() => formationChange("preset", "slow")).toThrow("there is no such preset of timers");
});
