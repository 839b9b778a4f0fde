import { describe, expect, test } from "bun:test";
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
async function stderrOf(script: string): Promise<string> {
  const log = join(import.meta.dir, "../../../lib/sys/log.ts");
  const code = `import { configureLog, logger } from ${JSON.stringify(log)};\n${script}`;
  const child = Bun.spawn([process.execPath, "--no-env-file", "-e", code], {
    stdin: "ignore",
    stdout: "inherit",
    stderr: "pipe",
  });
  const text = await child.stderr.text();
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
