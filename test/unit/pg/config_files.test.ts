import { afterEach, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  completeConfig,
  configFile,
  configTexts,
  debianConfig,
  hbaFile,
  leaveStartToKeeper,
  settingIn,
} from "../../../lib/pg/config_files.ts";

const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) rmSync(path, { recursive: true });
});
function directory(): string {
  const path = mkdtempSync(join(tmpdir(), "config-"));
  made.push(path);
  return path;
}

test("settingIn: the last line that sets it, as PostgreSQL reads it", () => {
  const text = [
    "# data_directory = '/commented'",
    "data_directory = '/first'",
    "  Data_Directory '/it''s here'\t# a comment",
    "data_directory_mode = 0700",
    "port = 5433 # another",
  ].join("\n");
  expect(settingIn(text, "data_directory")).toBe("/it's here");
  expect(settingIn(text, "port")).toBe("5433");
  expect(settingIn(text, "hba_file")).toBeUndefined();
});

/** Debian's folders with two clusters, of which the second is `pgdata`'s. */
function debian(): { root: string; pgdata: string; own: string } {
  const root = directory();
  const pgdata = directory();
  const etc = join(root, "etc");
  for (const [name, data] of [
    ["main", "/var/lib/postgresql/15/main"],
    ["other", pgdata],
  ] as const) {
    mkdirSync(join(etc, "15", name), { recursive: true });
    writeFileSync(join(etc, "15", name, "postgresql.conf"), `data_directory = '${data}'\n`);
    writeFileSync(join(etc, "15", name, "start.conf"), "# automatic startup\n\nauto\n");
  }
  return { root: etc, pgdata, own: join(etc, "15/other") };
}

test("debianConfig: the file that names the data directory, also through a link, and no other", () => {
  const { root, pgdata, own } = debian();
  expect(debianConfig(pgdata, root)).toBe(join(own, "postgresql.conf"));
  const link = join(directory(), "link");
  symlinkSync(pgdata, link);
  expect(debianConfig(link, root)).toBe(join(own, "postgresql.conf"));
  // what a base backup has brought along is not what Debian starts this server with
  writeFileSync(join(pgdata, "postgresql.conf"), "");
  expect(debianConfig(pgdata, root)).toBe(join(own, "postgresql.conf"));
  expect(debianConfig(directory(), root)).toBeUndefined();
  expect(debianConfig(pgdata, join(root, "nowhere"))).toBeUndefined();
});

test("leaveStartToKeeper: auto becomes manual, once, and the rest of the file stays", () => {
  const { root, pgdata, own } = debian();
  expect(leaveStartToKeeper(pgdata, root)).toBe(true);
  expect(readFileSync(join(own, "start.conf"), "utf8")).toBe("# automatic startup\n\nmanual\n");
  expect(leaveStartToKeeper(pgdata, root)).toBe(false);
  writeFileSync(join(own, "start.conf"), "disabled\n");
  expect(leaveStartToKeeper(pgdata, root)).toBe(false);
  expect(leaveStartToKeeper(directory(), root)).toBe(false);
});

test("hbaFile: where postgresql.conf says, else in the data directory", () => {
  const pgdata = directory();
  expect(configFile(pgdata)).toBe(join(pgdata, "postgresql.conf"));
  expect(hbaFile(pgdata)).toBe(join(pgdata, "pg_hba.conf"));
  writeFileSync(join(pgdata, "postgresql.conf"), "hba_file = '/etc/elsewhere/pg_hba.conf'\n");
  expect(hbaFile(pgdata)).toBe("/etc/elsewhere/pg_hba.conf");
});

const options = { sample: "# sample\n", required: { max_connections: "300" } };

test("completeConfig: fresh files for a copy that has none, with what a standby must have", () => {
  const pgdata = directory();
  expect(completeConfig(pgdata, { ...options, before: new Map() })).toBe(true);
  expect(readFileSync(join(pgdata, "postgresql.conf"), "utf8")).toBe(
    "# sample\nmax_connections = 300\n",
  );
  expect(readFileSync(join(pgdata, "pg_hba.conf"), "utf8")).toStartWith("local all all peer\n");
  for (const name of readdirSync(pgdata)) {
    expect(statSync(join(pgdata, name)).mode & 0o777).toBe(0o600);
  }
});

test("completeConfig: this node's own files come back, and those that were copied stay", () => {
  const before = directory();
  writeFileSync(join(before, "postgresql.conf"), "work_mem = '1GB'\n");
  writeFileSync(join(before, "pg_hba.conf"), "host a b 10.0.0.1/32 reject\n");
  const copy = directory();
  writeFileSync(join(copy, "pg_hba.conf"), "copied\n");
  expect(completeConfig(copy, { ...options, before: configTexts(before) })).toBe(false);
  expect(readFileSync(join(copy, "postgresql.conf"), "utf8")).toBe("work_mem = '1GB'\n");
  expect(readFileSync(join(copy, "pg_hba.conf"), "utf8")).toBe("copied\n");
  expect(existsSync(join(copy, "pg_ident.conf"))).toBe(true);
});
