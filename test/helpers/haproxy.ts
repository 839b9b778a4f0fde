/** A real HAProxy in front of a test's nodes, with the configuration that README.md recommends. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cleanEnvironment, REPOSITORY, RunningRole } from "./command.ts";
import { giveTo, type Owner } from "./owner.ts";
import { freePort } from "./ports.ts";

/** Where it is installed; Debian's place is not on everybody's PATH. */
export const HAPROXY = [Bun.which("haproxy"), "/usr/sbin/haproxy"].find(
  (path) => path !== null && existsSync(path),
);

export type Proxy = AsyncDisposable & { writePort: number; readPort: number };

type Backend = { port: number; httpPort: number };

/** The README's lines, for these three servers on this machine. */
function configOf(backends: readonly Backend[], writePort: number, readPort: number): string {
  const text = readFileSync(join(REPOSITORY, "README.md"), "utf8");
  const [, example = ""] = /```haproxy\n([\s\S]*?)```/.exec(text) ?? [];
  const made = example
    .replace("*:5000", `127.0.0.1:${writePort}`)
    .replace("*:5001", `127.0.0.1:${readPort}`)
    .replace(/db(\d):5432/g, (_, number) => {
      const { port, httpPort } = backends[Number(number) - 1] as Backend;
      return `127.0.0.1:${port} port ${httpPort}`;
    });
  if (made.match(/127\.0\.0\.1/g)?.length !== 8) throw new Error(`unexpected example:\n${example}`);
  return made;
}

/** Starts it below `base`; it is ready when a session comes through. */
export function startHaproxy(base: string, owner: Owner, backends: readonly Backend[]): Proxy {
  const writePort = freePort();
  const readPort = freePort();
  const file = join(base, "haproxy.cfg");
  writeFileSync(file, configOf(backends, writePort, readPort));
  giveTo(owner, file);
  const command = [HAPROXY ?? "haproxy", "-db", "-f", file];
  const running = new RunningRole(command, cleanEnvironment({}), join(base, "haproxy.log"));
  return {
    writePort,
    readPort,
    async [Symbol.asyncDispose]() {
      running.signal("SIGTERM");
      await running.ended(5000);
    },
  };
}
