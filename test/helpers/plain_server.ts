/** An ordinary PostgreSQL server that none of our roles knows. */
import { join } from "node:path";
import { findBinaries } from "../../lib/pg/binaries.ts";
import { cleanEnvironment } from "./command.ts";
import { isRoot, type Owner } from "./owner.ts";
import { within } from "./wait.ts";

export type PlainServer = AsyncDisposable & {
  pgdata: string;
  port: number;
  /** As by `kill -9`. */
  stop(): Promise<void>;
  start(): Promise<void>;
};

/** Makes a stopped cluster in `pgdata`, with trust for everybody on loopback; without checksums, unless `more` asks for them. */
export async function makeCluster(
  owner: Owner,
  pgdata: string,
  more: readonly string[] = [],
): Promise<void> {
  const { bindir, major } = await findBinaries({});
  const flags = ["--pgdata", pgdata, "--auth", "trust", "--no-sync", "--locale", "C"];
  const asBefore18 = major < 18 || more.includes("--data-checksums") ? [] : ["--no-data-checksums"];
  await runAs(owner, [join(bindir, "initdb"), ...flags, ...asBefore18, ...more]);
}

/** Makes a cluster and starts it; disposing stops it. */
export async function startPlainServer(
  owner: Owner,
  pgdata: string,
  port: number,
): Promise<PlainServer> {
  await makeCluster(owner, pgdata);
  const { bindir } = await findBinaries({});
  const pgctl = (...args: string[]): Promise<void> =>
    runAs(owner, [join(bindir, "pg_ctl"), "-D", pgdata, "-w", "-s", ...args]);
  const options = `-p ${port} -c listen_addresses=localhost -c unix_socket_directories=${pgdata}`;
  const start = () => pgctl("-l", `${pgdata}.log`, "-o", options, "start");
  const stop = () => pgctl("-m", "immediate", "stop");
  await start();
  return { pgdata, port, start, stop, [Symbol.asyncDispose]: stop };
}

/** @throws {Error} the command failed, or took longer than 30 s */
export async function runAs(owner: Owner, command: string[]): Promise<void> {
  const child = Bun.spawn(command, {
    cwd: "/",
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    env: cleanEnvironment({}),
    ...(isRoot ? { uid: owner.uid, gid: owner.gid } : {}),
  });
  const code = await within(30_000, command.join(" "), child.exited);
  if (code !== 0)
    throw new Error(`${command.join(" ")}: ${await new Response(child.stderr).text()}`);
}
