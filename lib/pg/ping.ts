/** Does a server answer a fresh connection? Cheaper than a session, and needs no password. */
import { once } from "node:events";
import { join } from "node:path";
import { sslOf, type TlsParams } from "../sys/sql.ts";
import { openSocket } from "../sys/sql_socket.ts";

/** `refused`: the machine answers, and nothing listens there. `silent`: no word in time. */
export type Ping = "answered" | "refused" | "silent";

export type PingTarget = {
  /** A path is the directory of the server's Unix socket. */
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database: string;
};

const PROTOCOL_3 = 3 << 16;
const TERMINATE = Buffer.from([0x58, 0, 0, 0, 4]);

/** @see PostgreSQL docs, "Message Formats": StartupMessage */
function startupMessage({ user, database }: PingTarget): Buffer {
  const body = Buffer.from(`user\0${user}\0database\0${database}\0\0`);
  const head = Buffer.alloc(8);
  head.writeInt32BE(head.length + body.length, 0);
  head.writeInt32BE(PROTOCOL_3, 4);
  return Buffer.concat([head, body]);
}

/** @see PostgreSQL docs, "Message Formats": AuthenticationOk */
const isLogin = (answer: Buffer): boolean =>
  answer.length >= 9 && answer[0] === 0x52 && answer.readInt32BE(5) === 0;

/**
 * Connects, says who it is, and takes whatever the server says to that as a sign of life: a backend
 * was forked and spoke. A refusal ("too many clients", "starting up", a login that isn't let in)
 * counts, as it does for libpq's PQping.
 *
 * By Bun's own sockets: this runs every second, and a stream of Node's costs three times as much.
 */
export function ping(target: PingTarget, timeoutMs: number): Promise<Ping> {
  const { host, port } = target;
  return new Promise((resolve) => {
    let socket: { terminate(): void } | undefined;
    const settle = (outcome: Ping): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    const timer = setTimeout(() => {
      settle("silent");
      socket?.terminate();
    }, timeoutMs);
    const handler: Bun.SocketHandler<undefined> = {
      open(opened) {
        socket = opened;
        opened.write(startupMessage(target));
      },
      data(opened, answer) {
        settle("answered");
        // asked for a password it waits for nothing else, and would log a good-bye as an error
        if (isLogin(answer)) opened.end(TERMINATE);
        else opened.end();
      },
      // accepted by the kernel, and closed without a word: the server is going or gone
      close: () => settle("refused"),
      error: () => settle("refused"),
      connectError: () => settle("refused"),
    };
    const connecting = host.startsWith("/")
      ? Bun.connect({ unix: join(host, `.s.PGSQL.${port}`), socket: handler })
      : Bun.connect({ hostname: host, port, socket: handler });
    connecting.catch(() => settle("refused"));
  });
}

/** The same of a server that first shows by its certificate that it's the one. @param tls libpq's parameters */
export async function pingVerified(
  target: PingTarget,
  tls: TlsParams,
  timeoutMs: number,
): Promise<Ping> {
  const signal = AbortSignal.timeout(timeoutMs);
  const whom = { ...target, applicationName: "", connectTimeoutMs: timeoutMs, ssl: sslOf(tls) };
  try {
    const socket = await openSocket(whom, signal);
    try {
      socket.write(startupMessage(target));
      await once(socket, "data", { signal });
      return "answered";
    } finally {
      socket.end(() => socket.destroy());
    }
  } catch {
    return signal.aborted ? "silent" : "refused";
  }
}
