import { describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isRoot } from "../../helpers/owner.ts";

const ROOT = join(import.meta.dir, "../../..");
const COMMANDS = "test/unit/sys/cli_commands.ts";

type Outcome = { code: number; out: string; err: string };

async function demo(words: string[], root = ROOT): Promise<Outcome> {
  const child = Bun.spawn([process.execPath, "--no-env-file", join(root, COMMANDS), ...words], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: process.env["PATH"], TZ: "UTC" },
  });
  const [out, err, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { code, out, err: err.replace(/^\d\d:\d\d:\d\d /gm, "") };
}

/** What `demo create WORDS` understood. */
async function understood(...words: string[]): Promise<unknown> {
  const { code, out, err } = await demo(["create", ...words]);
  expect({ code, err }).toEqual({ code: 0, err: "INFO  made pgdata=d\n" });
  return JSON.parse(out);
}

const defaults = { pgdata: "d", pgport: "5432", auth: "trust" };

describe("main: what a command understands", () => {
  test.concurrent("values after a blank or =, defaults, booleans and their negation", async () => {
    expect(await understood("--pgdata", "d")).toEqual(defaults);
    expect(
      await understood(
        "--run",
        "--candidate-priority=-1",
        "--no-json",
        "--pgdata=d",
        "--auth",
        "scram-sha-256",
      ),
    ).toEqual({
      ...defaults,
      auth: "scram-sha-256",
      run: true,
      candidatePriority: "-1",
      json: false,
    });
    expect(await understood("-p", "50", "--pgdata", "d")).toEqual({
      ...defaults,
      candidatePriority: "50",
    });
  });
});

const usage = (message: string, hint: string) => ({
  code: 2,
  out: "",
  err: `error demo ${message}\n  hint: ${hint}\n`,
});

describe("main: what it refuses, before anything is done", () => {
  test.concurrent.each([
    [[], '"the command\'s name must come first"', "One of: create, fail. --help tells more."],
    [
      ["--pgdata", "d", "create"],
      '"the command\'s name must come first"',
      "One of: create, fail. --help tells more.",
    ],
    [["creat"], '"unknown command" command=creat', "Did you mean create?"],
    [
      ["toString"],
      '"unknown command" command=toString',
      "One of: create, fail. --help tells more.",
    ],
    [["create", "--pgdta", "d"], '"unknown flag" flag=--pgdta', "Did you mean --pgdata?"],
    [
      ["create", "--candidate=1"],
      '"unknown flag" flag=--candidate',
      "Did you mean --candidate-priority?",
    ],
    [
      ["create", "--candidatePriority=1"],
      '"unknown flag" flag=--candidatePriority',
      "Did you mean --candidate-priority?",
    ],
    [["create", "--no-pgdata"], '"unknown flag" flag=--no-pgdata', "--help lists the flags."],
    [["create", "--quorum=1"], '"unknown flag" flag=--quorum', "--help lists the flags."],
    [["create", "-x"], '"unknown flag" flag=-x', "--help lists the flags."],
    [
      ["create", "--pgdata"],
      '"a flag has no value" flag=--pgdata',
      'Write --pgdata VALUE, or --pgdata=VALUE if it begins with "-".',
    ],
    [
      ["create", "--pgport", "--pgdata", "d"],
      '"a flag has no value" flag=--pgport',
      'Write --pgport VALUE, or --pgport=VALUE if it begins with "-".',
    ],
    [
      ["create", "--pgport=", "1"],
      '"a flag has an empty value" flag=--pgport',
      "Write --pgport VALUE, or leave it out.",
    ],
    [
      ["create", "--pgdata", ""],
      '"a flag has an empty value" flag=--pgdata',
      "Write --pgdata VALUE, or leave it out.",
    ],
    [
      ["create", "--pgdata=d", "--pgdata=e"],
      '"a flag is given twice" flag=--pgdata',
      "Give it once.",
    ],
    [["create", "--run", "--no-run"], '"a flag is given twice" flag=--no-run', "Give it once."],
    [
      ["create", "--run=true"],
      '"a flag takes no value" flag=--run',
      "Write --run, or leave it out.",
    ],
    [
      ["create", "--auth", "scram"],
      '"a flag can\'t have this value" flag=--auth value=scram',
      "Did you mean scram-sha-256?",
    ],
    [
      ["create", "--auth=md5"],
      '"a flag can\'t have this value" flag=--auth value=md5',
      "One of: trust, scram-sha-256.",
    ],
    [["create"], '"a flag is missing" flag=--pgdata', "Add --pgdata VALUE: the data directory."],
    [["fail"], '"a flag is missing" flag=HOW', "Add HOW."],
    [
      ["create", "--pgdata=d", "e"],
      '"a word too many" word=e',
      "A value belongs to its flag: --flag e",
    ],
    [
      ["create", "--pgdata=d", "--", "-e"],
      '"a word too many" word=-e',
      "A value belongs to its flag: --flag -e",
    ],
  ])("%j", async (words, message, hint) => {
    expect(await demo(words)).toEqual(usage(message, hint));
  });
});

describe("main: help", () => {
  test.concurrent("lists the commands, and a command's flags as they are written", async () => {
    const [top, below] = await Promise.all([demo(["--help"]), demo(["create", "--pgdta", "-h"])]);
    expect([top.code, below.code, top.err, below.err]).toEqual([0, 0, "", ""]);
    expect(top.out).toContain("create    Make a thing");
    expect(below.out).toContain("--candidate-priority=<candidate_priority>");
    expect(below.out).toContain("--pgdata=<pgdata>    the data directory (Required)");
    expect(below.out).toContain("--log-format=<text|logfmt|json>");
    expect(below.out).toBe(Bun.stripANSI(below.out).replace(/ +$/gm, ""));
  });
});

describe("main: how it ends", () => {
  test.concurrent("a known error: one line, its hint, its code; what was held is released", async () => {
    expect(await demo(["fail", "known"])).toEqual({
      code: 6,
      out: "released\n",
      err:
        'error demo "could not reach the monitor" uri=postgres://u:***@h/db attempts=3\n' +
        "  hint: Check that it runs.\n",
    });
  });

  test.concurrent("in logfmt and JSON the hint is a value", async () => {
    const [logfmt, json] = await Promise.all([
      demo(["fail", "known", "--log-format", "logfmt"]),
      demo(["fail", "known", "--log-format", "json"]),
    ]);
    expect(logfmt.err).toBe(
      'error demo "could not reach the monitor" uri=postgres://u:***@h/db attempts=3 hint="Check that\\nit runs."\n',
    );
    expect(JSON.parse(json.err)).toMatchObject({
      level: "error",
      attempts: 3,
      hint: "Check that\nit runs.",
    });
    expect([logfmt.code, json.code]).toEqual([6, 6]);
  });

  test.concurrent("a bug: 12 and where it was; the stack with --verbose", async () => {
    const [short, long] = await Promise.all([
      demo(["fail", "bug"]),
      demo(["fail", "bug", "--verbose"]),
    ]);
    expect([short.code, long.code]).toEqual([12, 12]);
    expect(short.err).toMatch(
      /^error demo "something unforeseen happened" error="undefined is not a function" at=\S+cli_commands\.ts:\d+\n$/,
    );
    expect(long.err).toContain("runCommand");
  });

  test.concurrent("an error stays what it is when a release fails too", async () => {
    const { code, err } = await demo(["fail", "release-fails"]);
    expect(err).toBe('error demo "could not save the state of this node"\n');
    expect(code).toBe(3);
  });

  test.concurrent("exit: its own code, after what was held is released; from a timer too", async () => {
    expect(await demo(["fail", "exit"])).toEqual({ code: 42, out: "released\n", err: "" });
    expect(await demo(["fail", "exit-later"])).toEqual({ code: 43, out: "", err: "" });
  });

  test.concurrent("a rejection that nobody caught is logged and ends nothing", async () => {
    const { code, out, err } = await demo(["fail", "rejection"]);
    expect([code, out]).toEqual([0, "released\n"]);
    expect(err).toStartWith(
      'ERROR a promise was rejected and nobody looked error="nobody looks" at=',
    );
  });

  test.concurrent("an exception that nobody caught ends it with 12", async () => {
    const { code, err } = await demo(["fail", "exception"]);
    expect(code).toBe(12);
    expect(err).toStartWith(
      'error demo "something unforeseen happened" error="nobody catches" at=',
    );
  });

  test.concurrent("who has read enough of an answer makes no noise", async () => {
    const script = `${process.execPath} ${join(ROOT, COMMANDS)} create --help | true; echo \${PIPESTATUS[0]}`;
    const child = Bun.spawn(["bash", "-c", script], {
      stdin: "ignore",
      stderr: "pipe",
      stdout: "pipe",
    });
    expect(await child.stderr.text()).toBe("");
    expect(await child.exited).toBe(0);
  });
});

// A clone that only root can enter: after the change of user no source can be read any more.
test.skipIf(!isRoot)(
  "becoming the owner works from a folder that only root can enter",
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "closed-"));
    try {
      for (const part of ["lib/sys", COMMANDS, "package.json", "tsconfig.json"]) {
        cpSync(join(ROOT, part), join(folder, part), { recursive: true });
      }
      for (const name of ["citty", "consola", "postgres"]) {
        cpSync(join(ROOT, "node_modules", name), join(folder, "node_modules", name), {
          recursive: true,
        });
      }
      const { code, err } = await demo(["fail", "as-owner", "--verbose"], folder);
      expect(err).toMatch(/^WARN {2}still here uid=[1-9]\d* home=\/\S+\n/);
      expect(err).toMatch(
        /something unforeseen happened" error="out of nowhere" at=\S+cli_commands\.ts:\d+\n/,
      );
      expect(err).toContain("RangeError: out of nowhere");
      expect(code).toBe(12);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);
