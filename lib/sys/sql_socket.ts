/** Sockets to a PostgreSQL server, encrypted or not, that are ours and not the `postgres` package's. */

import { isIP, type NetConnectOpts, connect as netConnect, type Socket } from "node:net";
import { type ConnectionOptions, connect as tlsConnect } from "node:tls";
import { errorText } from "./errors.ts";
import { noteReached, pluggedIn } from "./link.ts";
import { connectionError, type Ssl, sqlState, type Target } from "./sql_target.ts";
import { currentSsl } from "./sql_tls.ts";

/** TCP keepalive of an idle connection starts after this time. */
const KEEPALIVE_MS = 2000;

/**
 * Connects, and encrypts if asked to. The socket has a listener for errors, so none of them is ever uncaught.
 *
 * @param onReached called when it's accepted on the other side, before it's encrypted
 */
export async function openSocket(
  target: Target,
  signal: AbortSignal,
  onReached?: () => void,
): Promise<Socket> {
  const failed = new AbortController();
  const give = (reason: unknown) => failed.abort(reason);
  const abort = () => give(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  const sockets: Socket[] = [];
  try {
    signal.throwIfAborted();
    const ssl = currentSsl(target);
    await pluggedIn(target.host, failed.signal);
    const plain = await connectFirst(target, failed.signal);
    noteReached(target.host, plain);
    onReached?.();
    sockets.push(plain);
    plain.on("error", give);
    plain.on("close", () =>
      give(connectionError("CONNECTION_CLOSED", target, "the server closed the connection")),
    );
    if (!target.host.startsWith("/")) {
      plain.setNoDelay(true);
      plain.setKeepAlive(true, KEEPALIVE_MS);
    }
    const { mode } = ssl;
    if (mode === "disable" || target.host.startsWith("/")) return plain;
    plain.write(SSL_REQUEST);
    const [answer] = (await event(plain, "data", failed.signal)) as [Buffer];
    if (answer[0] !== "S".charCodeAt(0)) {
      if (mode === "prefer") return plain;
      throw connectionError("NO_TLS", target, "the server has no TLS");
    }
    // Somebody in between could have put it there, to be taken for what comes through the tunnel.
    if (answer.length > 1)
      throw connectionError("TLS_FAILED", target, "clear text before encryption");
    const secure = tlsConnect({ socket: plain, ...tlsOptions(target, ssl) });
    sockets.push(secure);
    secure.on("error", give);
    secure.on("close", () =>
      give(connectionError("CONNECTION_CLOSED", target, "the server closed the connection")),
    );
    await event(secure, "secureConnect", failed.signal);
    return secure;
  } catch (error) {
    for (const socket of sockets) socket.destroy();
    if (signal.aborted || sqlState(error) !== undefined) throw error;
    throw connectionError("TLS_FAILED", target, errorText(error));
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** The kernel repeats the first packet of a connection after a second, which is too late for who waits that long at most. */
const AGAIN_MS = 250;
const ATTEMPTS = 4;

/** The first of several sockets to connect, each begun when those before it have not; one that is refused ends it for all. */
function connectFirst(target: Target, signal: AbortSignal): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const begun: Socket[] = [];
  const begin = () => {
    const socket = netConnect(address(target));
    begun.push(socket);
    socket.on("error", reject);
    socket.once("connect", () => resolve(socket));
    if (begun.length === ATTEMPTS) clearInterval(timer);
  };
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  const timer = target.host.startsWith("/") ? undefined : setInterval(begin, AGAIN_MS);
  begin();
  const end = (winner?: Socket) => {
    clearInterval(timer);
    signal.removeEventListener("abort", abort);
    for (const socket of begun) if (socket !== winner) socket.destroy();
  };
  promise.then(end, () => end());
  return promise;
}

const CRL = /-----BEGIN X509 CRL-----[^-]+-----END X509 CRL-----/g;
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);

function address({ host, port }: Target): NetConnectOpts {
  return host.startsWith("/") ? { path: `${host}/.s.PGSQL.${port}` } : { host, port };
}

function tlsOptions({ host }: Target, { mode, ca, crl, cert, key }: Ssl): ConnectionOptions {
  const verify = mode === "verify-ca" || mode === "verify-full";
  return {
    host,
    ...(isIP(host) ? {} : { servername: host }),
    rejectUnauthorized: verify,
    ...(mode === "verify-full" ? {} : { checkServerIdentity: () => undefined }),
    ...(verify && ca !== undefined ? { ca } : {}),
    // of a text with several lists Bun reads the first only
    ...(verify && crl !== undefined ? { crl: crl.match(CRL) ?? [crl] } : {}),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
}

/** The next event of that name; rejects when `signal` is aborted first. */
function event(
  socket: Socket,
  name: "secureConnect" | "data",
  signal: AbortSignal,
): Promise<unknown[]> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      socket.off(name, done);
      reject(signal.reason);
    };
    const done = (...values: unknown[]) => {
      signal.removeEventListener("abort", abort);
      resolve(values);
    };
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    signal.addEventListener("abort", abort, { once: true });
    socket.once(name, done);
  });
}
