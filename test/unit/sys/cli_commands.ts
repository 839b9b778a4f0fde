/** A command tree that the tests of cli.ts run as a process. */

import { defineCommand } from "citty";
import { answer, commonArgs, exit, main } from "../../../lib/sys/cli.ts";
import { AppError } from "../../../lib/sys/errors.ts";
import { logger } from "../../../lib/sys/log.ts";
import { becomeOwnerOf } from "../../../lib/sys/user.ts";

const log = logger("demo");

const create = defineCommand({
  meta: { name: "create", description: "Make a thing" },
  args: {
    ...commonArgs,
    pgdata: { type: "string", required: true, description: "the data directory" },
    pgport: { type: "string", default: "5432", description: "The port" },
    auth: { type: "enum", options: ["trust", "scram-sha-256"], default: "trust" },
    run: { type: "boolean", description: "Stay in the foreground" },
    candidatePriority: { type: "string", alias: "p" },
  },
  run({ args }) {
    const { pgdata, pgport, auth, run, candidatePriority, json } = args;
    log.info("made", { pgdata });
    log.debug("made verbosely");
    answer(JSON.stringify({ pgdata, pgport, auth, run, candidatePriority, json }));
  },
});

const fail = defineCommand({
  meta: { name: "fail", description: "End in some way" },
  args: { ...commonArgs, how: { type: "positional" } },
  async run({ args }) {
    await using _held = {
      async [Symbol.asyncDispose]() {
        answer("released");
      },
    };
    await ways[String(args.how)]?.();
  },
});

const ways: Record<string, () => unknown> = {
  known() {
    throw new AppError("monitor", "could not reach the monitor", {
      detail: { uri: "postgres://u:secret@h/db", attempts: 3, port: undefined },
      hint: "Check that\nit runs.",
    });
  },
  "release-fails"() {
    using _held = {
      [Symbol.dispose]() {
        throw new Error("EROFS: read-only file system, ftruncate");
      },
    };
    throw new AppError("state", "could not save the state of this node");
  },
  bug() {
    throw new TypeError("undefined is\nnot a function");
  },
  exit: () => exit(42),
  rejection: async () => {
    void Promise.reject(new Error("nobody looks"));
    await Bun.sleep(20);
  },
  exception: async () => {
    setTimeout(() => {
      throw new Error("nobody catches");
    }, 1);
    await Bun.sleep(5000);
  },
  "exit-later": async () => {
    setTimeout(() => exit(43), 1);
    await Bun.sleep(5000);
  },
  "as-owner": async () => {
    becomeOwnerOf("/nothing/here");
    log.warn("still here", { uid: process.getuid?.() ?? 0, home: process.env["HOME"] ?? "" });
    setTimeout(() => {
      throw new RangeError("out of nowhere");
    }, 1);
    await Bun.sleep(5000);
  },
};

await main(
  defineCommand({
    meta: { name: "demo", description: "For tests" },
    subCommands: { create, fail },
  }),
);
