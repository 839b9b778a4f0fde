import { afterEach, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
  clearStandbySettings,
  conninfo,
  hasStandbySignal,
  quoteSetting,
  renderSettings,
  withIncludes,
  withoutSettings,
  writeManagedSettings,
  writeStandbySettings,
} from "../../../lib/pg/settings.ts";

const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) {
    rmSync(path, { recursive: true });
  }
});

/** A directory with an operator's postgresql.conf. */
function dataDirectory(text = "max_connections = 50\n"): string {
  const path = mkdtempSync(join(tmpdir(), "settings-"));
  made.push(path);
  writeFileSync(join(path, "postgresql.conf"), text);
  chmodSync(join(path, "postgresql.conf"), 0o640);
  return path;
}
const read = (pgdata: string, name: string): string => readFileSync(join(pgdata, name), "utf8");

test("quoteSetting escapes what PostgreSQL's file would take for something else", () => {
  expect(quoteSetting("it's")).toBe("'it''s'");
  expect(quoteSetting("a\\b\nc")).toBe("'a\\\\b\\nc'");
  expect(quoteSetting("")).toBe("''");
  expect(() => quoteSetting("a\0b")).toThrow(RangeError);
});

/** libpq's rules for keyword=value, as its documentation has them. */
function readConninfo(text: string): Record<string, string> {
  const parts = [...text.matchAll(/(\w+)=('(?:[^'\\]|\\.)*'|[^\s']+)(?: |$)/gs)];
  expect(parts.map(([part]) => part).join("")).toBe(text);
  return Object.fromEntries(
    parts.map(([, keyword = "", value = ""]) => [
      keyword,
      (value.startsWith("'") ? value.slice(1, -1) : value).replaceAll(/\\(.)/gs, "$1"),
    ]),
  );
}

test("conninfo: any value comes back from what libpq would read", () => {
  fc.assert(
    fc.property(fc.string(), (value) => {
      fc.pre(!value.includes("\0"));
      expect(readConninfo(conninfo({ host: "a", password: value, port: 5432 }))).toEqual({
        host: "a",
        password: value,
        port: "5432",
      });
    }),
  );
});

test("conninfo refuses a keyword that would be read as something else", () => {
  expect(() => conninfo({ "host=b port": "1" })).toThrow(RangeError);
  expect(() => conninfo({ host: "a\0" })).toThrow(RangeError);
});

test("renderSettings refuses a name that isn't one", () => {
  expect(renderSettings({ port: "1", "pg_stat.x": "a" })).toContain(
    "port = '1'\npg_stat.x = 'a'\n",
  );
  expect(() => renderSettings({ "port = 1\nfsync": "off" })).toThrow(RangeError);
});

test("withIncludes: whatever the file, ours come last, once, and nothing else changes", () => {
  const ours = withIncludes("").trimEnd().split("\n");
  const line = fc.constantFrom(
    "max_connections = 50",
    "# include_if_exists 'postgresql-auto-failover.conf'",
    "include_dir 'conf.d'",
    "include 'postgresql-auto-failover.conf'  # mine",
    "INCLUDE_IF_EXISTS = 'postgresql-auto-failover-standby.conf'",
    "",
    ...ours,
  );
  const foreign = (text: string) =>
    text
      .split("\n")
      .filter(
        (each) => each !== "" && !/^(include|INCLUDE)\w* .*auto-failover|^# pg_auto/.test(each),
      );
  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), fc.boolean(), (lines, newline) => {
      const before = lines.join("\n") + (newline ? "\n" : "");
      const after = withIncludes(before);
      expect(after.trimEnd().split("\n").slice(-3)).toEqual(ours);
      expect(foreign(after)).toEqual(foreign(before));
      expect(withIncludes(after)).toBe(after);
    }),
  );
});

test("withoutSettings takes out exactly the named settings", () => {
  const text = "# Do not edit\nprimary_conninfo = 'a'\nPrimary_Slot_Name = 'b'\nwork_mem = '1MB'\n";
  const names = new Set(["primary_conninfo", "primary_slot_name", "work"]);
  expect(withoutSettings(text, names)).toBe("# Do not edit\nwork_mem = '1MB'\n");
});

test("writeManagedSettings: the second time there is nothing to do", () => {
  const pgdata = dataDirectory();
  expect(writeManagedSettings(pgdata, { wal_log_hints: "on" })).toBe(true);
  const conf = read(pgdata, "postgresql.conf");
  expect(conf.startsWith("max_connections = 50\n")).toBe(true);
  expect(writeManagedSettings(pgdata, { wal_log_hints: "on" })).toBe(false);
  expect(read(pgdata, "postgresql.conf")).toBe(conf);
  expect(writeManagedSettings(pgdata, { wal_log_hints: "off" })).toBe(true);
  expect(statSync(join(pgdata, "postgresql-auto-failover.conf")).mode & 0o777).toBe(0o600);
});

test("writeManagedSettings: an operator's edits stay, and our lines come back to the end", () => {
  const pgdata = dataDirectory();
  writeManagedSettings(pgdata, { wal_log_hints: "on" });
  const edited = `work_mem = '8MB'\n${read(pgdata, "postgresql.conf")}wal_log_hints = off\n`;
  writeFileSync(join(pgdata, "postgresql.conf"), edited);
  expect(writeManagedSettings(pgdata, { wal_log_hints: "on" })).toBe(true);
  const lines = read(pgdata, "postgresql.conf").trimEnd().split("\n");
  expect(lines.filter((line) => /^(work_mem|max_conn|wal_log)/.test(line))).toEqual([
    "work_mem = '8MB'",
    "max_connections = 50",
    "wal_log_hints = off",
  ]);
  expect(lines.slice(-2)).toEqual([
    "include_if_exists 'postgresql-auto-failover.conf'",
    "include_if_exists 'postgresql-auto-failover-standby.conf'",
  ]);
});

test("writeManagedSettings keeps mode and link of postgresql.conf", () => {
  const pgdata = dataDirectory();
  const elsewhere = dataDirectory("port = 1\n");
  rmSync(join(pgdata, "postgresql.conf"));
  symlinkSync(join(elsewhere, "postgresql.conf"), join(pgdata, "postgresql.conf"));
  writeManagedSettings(pgdata, {});
  expect(lstatSync(join(pgdata, "postgresql.conf")).isSymbolicLink()).toBe(true);
  expect(statSync(join(elsewhere, "postgresql.conf")).mode & 0o777).toBe(0o640);
  expect(read(elsewhere, "postgresql.conf")).toContain("include_if_exists");
});

test("what ALTER SYSTEM wrote must not win over what we manage", () => {
  const pgdata = dataDirectory();
  writeFileSync(
    join(pgdata, "postgresql.auto.conf"),
    "primary_conninfo = 'host=old'\nsynchronous_standby_names = '*'\nwork_mem = '4MB'\n",
  );
  expect(writeManagedSettings(pgdata, { synchronous_standby_names: "" })).toBe(true);
  writeStandbySettings(pgdata, { primaryConninfo: "", primarySlotName: "" });
  expect(read(pgdata, "postgresql.auto.conf")).toBe("work_mem = '4MB'\n");
});

test("a standby's settings come and go", () => {
  const pgdata = dataDirectory();
  const primaryConninfo = conninfo({ host: "a", application_name: "it's b" });
  writeStandbySettings(pgdata, { primaryConninfo, primarySlotName: "s_1" });
  expect(hasStandbySignal(pgdata)).toBe(true);
  const conf = read(pgdata, "postgresql-auto-failover-standby.conf");
  expect(conf).toContain("primary_conninfo = 'host=a application_name=''it\\\\''s b'''\n");
  expect(conf).toContain("primary_slot_name = 's_1'\nrecovery_target_timeline = 'latest'\n");
  expect(read(pgdata, "postgresql.conf")).toContain("auto-failover-standby.conf");
  clearStandbySettings(pgdata);
  expect(hasStandbySignal(pgdata)).toBe(false);
  expect(read(pgdata, "postgresql-auto-failover-standby.conf")).not.toContain("primary_conninfo");
});

test("clearStandbySettings finds nothing to do on a server that was never a standby", () => {
  const pgdata = dataDirectory();
  clearStandbySettings(pgdata);
  expect(existsSync(join(pgdata, "postgresql-auto-failover-standby.conf"))).toBe(false);
});
