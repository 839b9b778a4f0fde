import { expect, test } from "bun:test";
import { baseBackup, parseControlData, parseProgress, rewind } from "../../../lib/pg/commands.ts";

const CONTROL = `pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7711123191376082905
Database cluster state:               in archive recovery
Latest checkpoint location:           16/B374D848
Latest checkpoint's REDO location:    16/B374D810
Latest checkpoint's TimeLineID:       3
Time of latest checkpoint:            Sun Nov 22 21:54:00 2026
Minimum recovery ending location:     16/B374D8C0
Min recovery ending loc's timeline:   3
wal_log_hints setting:                on
max_connections setting:              300
max_prepared_xacts setting:           20
Data page checksum version:           1
`;

test("parseControlData reads what pg_controldata prints", () => {
  expect(parseControlData(CONTROL)).toEqual({
    systemIdentifier: "7711123191376082905",
    state: "in archive recovery",
    timeline: 3,
    checkpointLsn: 0x16b374d848n,
    reachedTimeline: 3,
    minRecoveryLsn: 0x16b374d8c0n,
    checksums: true,
    walLogHints: true,
    catalogVersion: 202209061,
    required: { max_connections: "300", max_prepared_transactions: "20" },
  });
});

test("parseControlData: nothing from a text that lacks a line", () => {
  for (const name of ["Database system identifier", "Latest checkpoint's TimeLineID"]) {
    expect(parseControlData(CONTROL.replace(name, "Something"))).toBeUndefined();
  }
  expect(parseControlData("")).toBeUndefined();
});

test("parseProgress reads pg_basebackup's lines and pg_rewind's", () => {
  const expected = { doneBytes: 12345 * 1024, totalBytes: 67890 * 1024 };
  expect(parseProgress("  12345/67890 kB (18%), 0/1 tablespace")).toEqual(expected);
  expect(parseProgress("12345/ 67890 kB (18%), 1/1 tablespace (/data/a)")).toEqual(expected);
  expect(parseProgress("  12345/67890 kB (18%) copied")).toEqual(expected);
});

test("parseProgress: other lines are none", () => {
  for (const line of ["", "pg_rewind: Done!", "waiting for checkpoint", "1/2 kB"]) {
    expect(parseProgress(line)).toBeUndefined();
  }
});

test("a password never gets onto a command line", async () => {
  const binaries = { bindir: "/nowhere", major: 15, version: "15.0" };
  const common = { binaries, signal: new AbortController().signal, onProgress: () => {} };
  const secret = [
    "host=a password=geheim",
    "host=a password = 'ge heim'",
    "PASSWORD=geheim",
    "postgres://u:geheim@a/postgres",
    "postgresql://a/postgres?sslmode=require&password=geheim",
    "host=a sslpassword=geheim",
  ];
  for (const source of secret) {
    const copy = baseBackup({ ...common, target: "/nowhere/b", conninfo: source, timeoutMs: 100 });
    await expect(copy).rejects.toThrow("must not be on a command line");
    await expect(rewind({ ...common, pgdata: "/nowhere/a", source })).rejects.toThrow(
      "command line",
    );
  }
});
