import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  keeperServices,
  loadMonitorConfig,
  makeNodeDirectory,
  nodeDirectory,
  nodePaths,
  parsePort,
  parseSecurity,
  removeNodeDirectory,
  requireMonitorUri,
  resolvePgdata,
  saveConfig,
} from "../../lib/config.ts";
import { parseAnswer, parseGroupRow, ShapeError } from "../../lib/shapes.ts";
import { AppError } from "../../lib/sys/errors.ts";

let folder: string;
const saved = { ...process.env };
beforeAll(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), "config-")));
  process.env["XDG_DATA_HOME"] = join(folder, "data");
});
afterAll(() => {
  for (const name of ["XDG_DATA_HOME", "PGDATA", "PG_AUTOCTL_MONITOR"]) {
    if (saved[name] === undefined) delete process.env[name];
    else process.env[name] = saved[name];
  }
  rmSync(folder, { recursive: true });
});

function kindOf(body: () => unknown): string {
  try {
    body();
    return "nothing thrown";
  } catch (error) {
    return error instanceof AppError ? error.kind : String(error);
  }
}

describe("flags and environment", () => {
  test("a port", () => {
    expect(parsePort(undefined)).toBe(5432);
    expect(parsePort("1")).toBe(1);
    expect(parsePort("65535")).toBe(65_535);
    for (const wrong of ["0", "65536", "-1", "", "5432x", "54.3", "0x10", " 5432"]) {
      expect({ wrong, kind: kindOf(() => parsePort(wrong)) }).toEqual({ wrong, kind: "usage" });
    }
  });

  test("what a keeper serves: only what was given, with a directory that stays where it is", () => {
    expect(keeperServices({})).toEqual({});
    expect(keeperServices({ http: "*:8008", hooksDir: "hooks", hookTimeout: "2" })).toEqual({
      http: "*:8008",
      hooksDir: join(process.cwd(), "hooks"),
      hookTimeoutMs: 2000,
    });
    for (const wrong of [{ http: "x" }, { hookTimeout: "0" }, { hookTimeout: "3601" }]) {
      expect(kindOf(() => keeperServices(wrong))).toBe("usage");
    }
  });

  test("the data directory: one name however it's written, also before it's there", () => {
    const real = join(folder, "pgdata");
    mkdirSync(real);
    symlinkSync(real, join(folder, "link"));
    expect(resolvePgdata(join(folder, "link"))).toBe(real);
    expect(resolvePgdata(`${real}/`)).toBe(real);
    expect(resolvePgdata(join(folder, "link/new"))).toBe(join(real, "new"));
    expect(resolvePgdata("/none/at/all")).toBe("/none/at/all");
    process.env["PGDATA"] = real;
    expect(resolvePgdata(undefined)).toBe(real);
    delete process.env["PGDATA"];
    expect(kindOf(() => resolvePgdata(undefined))).toBe("usage");
  });

  test("authentication and TLS: what belongs together, and what contradicts", () => {
    const of = (flags: object) => parseSecurity({ auth: "trust", ...flags }, "/own", false);
    const far = (flags: object) => parseSecurity({ auth: "trust", ...flags }, "/own", true).tls;
    expect(far({})).toMatchObject({ mode: "require", selfSigned: true });
    expect(far({ noSsl: true })).toBeUndefined();
    expect(far({ serverCert: "/c", serverKey: "/k" })).toMatchObject({ selfSigned: false });
    const files = { serverCert: "/c", serverKey: "/k" };
    expect(of({})).toEqual({ auth: "trust" });
    expect(of({ noSsl: true, pgHbaLan: true })).toEqual({ auth: "trust", hba: "lan" });
    expect(of({ sslSelfSigned: true }).tls).toEqual({
      ...{ mode: "require", selfSigned: true, cert: "/own/server.crt", key: "/own/server.key" },
    });
    expect(of({ ...files }).tls?.mode).toBe("require");
    expect(of({ ...files, sslCaFile: "ca" }).tls).toEqual({
      ...{ mode: "verify-full", selfSigned: false, cert: "/c", key: "/k" },
      ca: join(process.cwd(), "ca"),
    });
    for (const wrong of [
      { sslMode: "require" },
      { sslSelfSigned: true, noSsl: true },
      { sslSelfSigned: true, ...files },
      { sslSelfSigned: true, sslMode: "verify-full" },
      { ...files, sslMode: "verify-ca" },
      { serverCert: "/c" },
      { sslCaFile: "/ca" },
      { auth: "cert" },
      { auth: "cert", sslSelfSigned: true },
      { skipPgHba: true, pgHbaLan: true },
    ]) {
      expect({ wrong, kind: kindOf(() => of(wrong)) }).toEqual({ wrong, kind: "usage" });
    }
  });

  test("the monitor's URI", () => {
    const uri = "postgres://autoctl_node@localhost:5444/pg_auto_failover";
    expect(requireMonitorUri(uri)).toBe(uri);
    process.env["PG_AUTOCTL_MONITOR"] = uri;
    expect(requireMonitorUri(undefined)).toBe(uri);
    delete process.env["PG_AUTOCTL_MONITOR"];
    expect(kindOf(() => requireMonitorUri(undefined))).toBe("usage");
    expect(kindOf(() => requireMonitorUri("localhost:5444"))).toBe("usage");
  });
});

describe("a node's own files", () => {
  test("never in the data directory, for the owner only, and gone without a trace", () => {
    const paths = nodePaths("/srv/pg/a");
    expect(nodeDirectory("/srv/pg/a")).toBe(join(folder, "data/pg_auto_failover/srv/pg/a"));
    makeNodeDirectory(paths);
    expect(statSync(paths.directory).mode & 0o777).toBe(0o700);
    removeNodeDirectory(paths);
    expect(() => statSync(join(folder, "data/pg_auto_failover"))).toThrow("ENOENT");
  });

  test("a neighbour's files stay", () => {
    const [a, b] = [nodePaths("/srv/pg/a"), nodePaths("/srv/pg/b")];
    makeNodeDirectory(a);
    makeNodeDirectory(b);
    removeNodeDirectory(a);
    expect(statSync(b.directory).isDirectory()).toBe(true);
    removeNodeDirectory(b);
  });

  test("what was saved is loaded; nothing there, and nonsense, are told apart", () => {
    const paths = nodePaths("/srv/pg/m");
    const config = {
      version: 1,
      pgdata: "/srv/pg/m",
      pgport: 5444,
      pgctl: "/usr/bin/pg_ctl",
      nodename: "localhost",
      auth: "trust",
    } as const;
    expect(kindOf(() => loadMonitorConfig("/srv/pg/m"))).toBe("state");
    makeNodeDirectory(paths);
    saveConfig(paths.monitorConfig, config);
    expect(loadMonitorConfig("/srv/pg/m")).toEqual(config);
    for (const wrong of ["{", "[]", JSON.stringify({ ...config, pgport: 0 })]) {
      writeFileSync(paths.monitorConfig, wrong);
      expect({ wrong, kind: kindOf(() => loadMonitorConfig("/srv/pg/m")) }).toEqual({
        wrong,
        kind: "config",
      });
    }
    writeFileSync(paths.monitorConfig, JSON.stringify({ ...config, nodenam: "localhost" }));
    expect(() => loadMonitorConfig("/srv/pg/m")).toThrow(/monitor\.json: nodenam: /);
    writeFileSync(paths.monitorConfig, JSON.stringify({ ...config, version: 2 }));
    expect(() => loadMonitorConfig("/srv/pg/m")).toThrow(/written by a later release/);
    removeNodeDirectory(paths);
  });
});

const ANSWER = {
  nodeId: "7",
  groupId: 0,
  name: "node_7",
  goal: "secondary",
  goalVersion: 3,
  decidedReport: "8589934593",
  dbname: "postgres",
  planned: false,
  fetchFrom: null,
  sync: { version: 2, primaryId: 1, members: ["7"], number: 1 },
  policy: {
    heartbeatMs: 1000,
    networkPartitionTimeoutMs: 2500,
    fenceStopTimeoutMs: 1200,
    nodeTimeoutMs: 4000,
    unreachablePrimaryTimeoutMs: 30_000,
    postgresTimeoutMs: 2000,
    caughtUpBytes: "16777216",
    fastForwardTimeoutMs: 30_000,
    switchoverTimeoutMs: 30_000,
  },
  nodes: [
    {
      nodeId: 1,
      name: "node_1",
      host: "h",
      port: 5432,
      reported: "primary",
      goal: "primary",
      lsn: "83886080",
    },
  ],
};

describe("what crosses a process", () => {
  test("an answer: ids are numbers, bytes and report numbers are exact", () => {
    const answer = parseAnswer(ANSWER);
    expect(answer).toMatchObject({
      nodeId: 7,
      sync: { members: [7] },
      decidedReport: 8_589_934_593n,
    });
    expect(answer.nodes[0]?.lsn).toBe(83_886_080n);
    expect(answer.fetchFrom).toBeUndefined();
    expect(parseAnswer({ ...ANSWER, fetchFrom: "3" }).fetchFrom).toBe(3);
    const large = "18446744073709551615";
    expect(parseAnswer({ ...ANSWER, decidedReport: large }).decidedReport).toBe(BigInt(large));
  });

  test("an answer of a later monitor: what isn't known is ignored, at every depth", () => {
    const more = { more: 1 };
    const later = {
      ...ANSWER,
      ...more,
      sync: { ...ANSWER.sync, ...more },
      policy: { ...ANSWER.policy, ...more },
      nodes: ANSWER.nodes.map((node) => ({ ...node, ...more })),
    };
    expect(parseAnswer(later)).toEqual(parseAnswer(ANSWER));
  });

  test.each([
    ["an unknown state", { ...ANSWER, goal: "elected" }, "goal"],
    ["a missing field", { ...ANSWER, sync: undefined }, "sync"],
    ["not a word on whom to fetch from", { ...ANSWER, fetchFrom: undefined }, "fetchFrom"],
    ["an id that isn't whole", { ...ANSWER, nodeId: "1.5" }, "nodeId"],
    [
      "a port out of range",
      { ...ANSWER, nodes: [{ ...ANSWER.nodes[0], port: 70_000 }] },
      "nodes.0.port",
    ],
    ["nothing", null, "value"],
  ])("%s is refused and named", (_, value, path) => {
    expect(() => parseAnswer(value)).toThrow(ShapeError);
    expect(() => parseAnswer(value)).toThrow(`the monitor's answer: ${path}: `);
  });

  const node = {
    nodeId: 1,
    name: "a",
    host: "h",
    port: 1,
    reported: "init",
    goal: "init",
    pgRunning: false,
    startFailures: 0,
    reportAgeMs: "1.5",
    health: -1,
    healthAgeMs: 0,
    timeline: 0,
    lsn: "0",
    inRecovery: false,
    streaming: false,
    stalledMs: 0,
    notSentToMs: 0,
    promisedMs: null,
    goalAgeMs: "12.25",
    passedOver: false,
    confirmed: true,
    maintenance: false,
    shutdown: null,
    fenceMs: 3700,
    fetchFrom: null,
    promotion: null,
    candidatePriority: 50,
    replicationQuorum: true,
    reportNo: "0",
    decidedReport: "0",
  };
  const row = {
    formation: "f",
    groupId: 0,
    clockMs: "1.5",
    sync: ANSWER.sync,
    pending: [],
    inForce: null,
    policy: ANSWER.policy,
    settings: {
      durability: "availability",
      numberSyncStandbys: 1,
      strictFencing: false,
      maximumLagBytes: "18446744073709551615",
    },
    request: null,
    disputed: false,
    blocked: null,
    history: [],
    nodes: [node],
  };

  test("a group's row: health is a word, what is NULL is undefined", () => {
    const healthOf = (health: number) =>
      parseGroupRow({ ...row, nodes: [{ ...node, health }] }).nodes[0]?.health;
    expect([1, 0, -1].map(healthOf)).toEqual(["good", "bad", "unknown"]);
    const parsed = parseGroupRow(row);
    expect(parsed).toMatchObject({ inForce: undefined, request: undefined, blocked: undefined });
    expect(parsed.settings.maximumLagBytes).toBe(18_446_744_073_709_551_615n);
    expect(parsed.nodes[0]).toMatchObject({
      promisedMs: undefined,
      fetchFrom: undefined,
      promotion: undefined,
      goalAgeMs: 12.25,
      reportAgeMs: 1.5,
      lsn: 0n,
    });
  });

  test("a group's row: sets, timelines, a promise and a request, with exact bytes", () => {
    const set = { version: "3", primaryId: "1", members: ["2", "3"], number: 1 };
    const parsed = parseGroupRow({
      ...row,
      pending: [set],
      inForce: set,
      request: { target: null, allowDataLoss: true, planned: false },
      history: [{ timeline: 2, parent: 1, forkLsn: "9007199254740993" }],
      nodes: [
        {
          ...node,
          promisedMs: "7.5",
          notSentToMs: "2.5",
          fetchFrom: "2",
          promotion: { timeline: 2, forkLsn: "83886080" },
          shutdown: { lsn: "83886080", tookMs: 41 },
        },
      ],
    });
    const expected = { version: 3, primaryId: 1, members: [2, 3], number: 1 };
    expect(parsed.pending).toEqual([expected]);
    expect(parsed.inForce).toEqual(expected);
    expect(parsed.request).toEqual({ target: undefined, allowDataLoss: true, planned: false });
    expect(parsed.history).toEqual([{ timeline: 2, parent: 1, forkLsn: 9_007_199_254_740_993n }]);
    expect(parsed.nodes[0]).toMatchObject({
      promisedMs: 7.5,
      notSentToMs: 2.5,
      fetchFrom: 2,
      promotion: { timeline: 2, forkLsn: 83_886_080n },
    });
  });

  test("a group's row of a later schema: what isn't known is ignored", () => {
    const settings = { ...row.settings, more: 1 };
    const later = { ...row, more: 1, settings, nodes: [{ ...node, more: 1 }] };
    expect(parseGroupRow(later)).toEqual(parseGroupRow(row));
  });

  test.each([
    [
      "an unknown durability",
      { settings: { ...row.settings, durability: "some" } },
      "settings.durability",
    ],
    ["a missing set", { inForce: undefined }, "inForce"],
    ["half a timeline", { history: [{ timeline: 1, parent: 0 }] }, "history.0.forkLsn"],
    ["a request without the word about loss", { request: { target: 2 } }, "request.allowDataLoss"],
    [
      "a node without its promise",
      { nodes: [{ ...node, promisedMs: undefined }] },
      "nodes.0.promisedMs",
    ],
  ])("a group's row: %s is refused and named", (_, change, path) => {
    expect(() => parseGroupRow({ ...row, ...change })).toThrow(`a group's row: ${path}: `);
  });
});
