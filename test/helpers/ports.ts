/**
 * Free TCP ports for servers that a test starts and starts again.
 *
 * Taken below the range from which systems draw the source ports of outgoing connections: there, a
 * writer's connection could sit on the port of a server that is just being restarted. Each process
 * has its own block, so that test files can run side by side.
 */
const LOWEST = 11_000;
const BLOCK = 40;
const BLOCKS = 500;

let given = 0;

/** A port on which nobody listens now, and which this process has not handed out lately. */
export function freePort(): number {
  for (let tries = 0; tries < BLOCK; tries += 1) {
    const port = LOWEST + (process.pid % BLOCKS) * BLOCK + (given % BLOCK);
    given += 1;
    if (isFree(port)) return port;
  }
  throw new Error(`no free port in this process's block of ${BLOCK}`);
}

function isFree(port: number): boolean {
  try {
    Bun.listen({ hostname: "0.0.0.0", port, socket: { data() {} } }).stop(true);
    return true;
  } catch {
    return false;
  }
}
