import { describe, expect, test } from "bun:test";
import { closeSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type LogRecord, renderRecord } from "../../../lib/sys/log.ts";

const record: LogRecord = {
  at: new Date(2024, 0, 2, 3, 4, 5),
  level: "info",
  area: "keeper",
  message: 'FSM transition from "primary" to "wait_primary": Secondary became unhealthy',
  detail: { took_ms: 12, lsn: 16777216n, uri: "postgres://u:x@h", skipped: undefined },
};

describe("renderRecord", () => {
  test("text: the time, the level, the sentence, the values", () => {
    expect(renderRecord(record, "text", false)).toBe(
      '03:04:05 INFO  FSM transition from "primary" to "wait_primary": Secondary became unhealthy' +
        " took_ms=12 lsn=16777216 uri=postgres://u:***@h",
    );
  });

  test("text: on a terminal the level's word has a colour, and nothing else", () => {
    const line = renderRecord({ ...record, message: "a", detail: {} }, "text", true);
    expect(line).toBe("03:04:05 \u001b[32mINFO \u001b[0m a");
  });

  test("journal: no time, which journald has, but its priority", () => {
    const line = (level: LogRecord["level"]) =>
      renderRecord({ ...record, level, message: "a\n<0>b", detail: { n: 1 } }, "journal", false);
    expect((["error", "warn", "info", "debug"] as const).map(line)).toEqual([
      "<3>ERROR a <0>b n=1",
      "<4>WARN  a <0>b n=1",
      "<6>INFO  a <0>b n=1",
      "<7>DEBUG a <0>b n=1",
    ]);
  });

  test("logfmt: level, area, the message in quotes, the values", () => {
    expect(renderRecord({ ...record, message: 'say "a"\nb' }, "logfmt", false)).toBe(
      'info keeper "say \\"a\\"\\nb" took_ms=12 lsn=16777216 uri=postgres://u:***@h',
    );
  });

  test("json: one object", () => {
    expect(JSON.parse(renderRecord(record, "json", false))).toEqual({
      time: record.at.toISOString(),
      level: "info",
      area: "keeper",
      message: record.message,
      took_ms: 12,
      lsn: "16777216",
      uri: "postgres://u:***@h",
    });
  });
});

/** Runs a script that logs, and yields what it wrote. */
async function stderrOf(
  script: string,
  stderr: "pipe" | number = "pipe",
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  const log = join(import.meta.dir, "../../../lib/sys/log.ts");
  const code = `import { configureLog, logger } from ${JSON.stringify(log)};\n${script}`;
  const child = Bun.spawn([process.execPath, "--no-env-file", "-e", code], {
    stdin: "ignore",
    stdout: "inherit",
    stderr,
    env: { ...process.env, ...env },
  });
  const text = child.stderr instanceof ReadableStream ? await child.stderr.text() : "";
  expect(await child.exited).toBe(0);
  return text.replace(/^\d\d:\d\d:\d\d /gm, "");
}

test("logger: repeated lines are all there, debug only when asked for", async () => {
  const script = `
    const log = logger("x");
    log.debug("hidden");
    for (let i = 0; i < 8; i++) log.warn("again");
    configureLog({ verbose: true });
    log.debug("shown", { n: 1 });
    configureLog({ verbose: false, format: "logfmt" });
    log.debug("hidden");
    log.error("last");`;
  const warned = "WARN  again\n".repeat(8);
  expect(await stderrOf(script)).toBe(`${warned}DEBUG shown n=1\nerror x "last"\n`);
});

test("logger: a closed standard error doesn't end the process", async () => {
  const script = `
    require("node:fs").closeSync(2);
    logger("x").info("to nobody");`;
  expect(await stderrOf(script)).toBe("");
});

test("logger: as the journal wants it where standard error is the journal, unless told otherwise", async () => {
  const directory = mkdtempSync(join(tmpdir(), "pgaf-log-"));
  const file = join(directory, "stderr");
  const fd = openSync(file, "a");
  try {
    const { dev, ino } = fstatSync(fd);
    const script = `logger("x").warn("a");`;
    await stderrOf(script, fd, { JOURNAL_STREAM: `${dev}:${ino}` });
    await stderrOf(`configureLog({ format: "logfmt" }); ${script}`, fd, {
      JOURNAL_STREAM: `${dev}:${ino}`,
    });
    await stderrOf(script, fd, { JOURNAL_STREAM: `${dev}:${ino + 1}` });
    const lines = readFileSync(file, "utf8").replace(/^\d\d:\d\d:\d\d /gm, "TIME ");
    expect(lines).toBe('<4>WARN  a\nwarn x "a"\nTIME WARN  a\n');
  } finally {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  }
});
