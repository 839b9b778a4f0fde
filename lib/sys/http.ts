/**
 * HTTP for health checks and pages: questions without a body, answers from memory, one a connection.
 *
 * Not Bun.serve, which bounds neither how many connections it takes nor how long one may send its
 * headers: whoever can reach the port could take all file descriptors from the process behind it.
 */
import { createServer, type Server, type Socket } from "node:net";
import { errorText } from "./errors.ts";
import type { Logger } from "./log.ts";

export type HttpAddress = { readonly host: string; readonly port: number };

export type Reply = { readonly status: number; readonly type: string; readonly body: string };

/** @returns undefined when there is nothing at that path */
export type Replier = (path: string, query: URLSearchParams) => Reply | undefined;

/** From the first byte of a connection to its last. */
const CONNECTION_MS = 2000;
/** With one more the oldest has to go: an honest one is over within milliseconds. */
const CONNECTIONS_MAX = 64;
const HEADERS_MAX_BYTES = 8192;
const BIND_AGAIN_MS = 1000;

const REASONS: Readonly<Record<number, string>> = {
  200: "OK",
  400: "Bad Request",
  404: "Not Found",
  405: "Method Not Allowed",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  503: "Service Unavailable",
};
const METHODS = ["GET", "HEAD", "OPTIONS"];

const plain = (status: number): Reply => ({
  status,
  type: "text/plain; charset=utf-8",
  body: `${REASONS[status]}\n`,
});

export const json = (status: number, value: unknown): Reply => ({
  status,
  type: "application/json",
  body: `${JSON.stringify(value, (_, each) => (typeof each === "bigint" ? each.toString() : each))}\n`,
});

/** A request's head → the whole response. */
export function respond(head: string, replier: Replier): string {
  const [, method = "", target = ""] = /^([A-Z]+) (\/\S*) HTTP\/1\.[01]\r?\n/.exec(head) ?? [];
  const reply = (): Reply => {
    if (method === "") return plain(400);
    if (!METHODS.includes(method)) return plain(405);
    try {
      const { pathname, searchParams } = new URL(`http://host${target}`);
      return replier(pathname, searchParams) ?? plain(404);
    } catch {
      return plain(500);
    }
  };
  const { status, type, body } = reply();
  return [
    `HTTP/1.1 ${status} ${REASONS[status]}`,
    `Content-Type: ${type}`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    `Allow: ${METHODS.join(", ")}`,
    "Cache-Control: no-store",
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'",
    "Connection: close",
    "",
    method === "HEAD" || method === "OPTIONS" ? "" : body,
  ].join("\r\n");
}

function serve(socket: Socket, replier: Replier): void {
  let head = "";
  socket.on("data", (chunk: Buffer) => {
    head += chunk.toString("latin1");
    const isWhole = /\r?\n\r?\n/.test(head);
    if (!isWhole && head.length <= HEADERS_MAX_BYTES) return;
    socket.removeAllListeners("data");
    socket.resume();
    socket.end(
      head.length > HEADERS_MAX_BYTES
        ? respond("GET / HTTP/1.0\n", () => plain(431))
        : respond(head, replier),
    );
  });
}

/**
 * Serves until it's disposed. A port that can't be had is said, and tried again every second: it must
 * not stop whoever serves.
 */
export function serveHttp(address: HttpAddress, replier: Replier, log: Logger): Disposable {
  const { host, port } = address;
  const open = new Set<Socket>();
  let again: ReturnType<typeof setTimeout> | undefined;
  let server: Server;
  let isSaid = false;

  const take = (socket: Socket): void => {
    const [oldest] = open;
    if (oldest !== undefined && open.size >= CONNECTIONS_MAX) {
      open.delete(oldest);
      oldest.destroy();
    }
    open.add(socket);
    const deadline = setTimeout(() => socket.destroy(), CONNECTION_MS);
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      clearTimeout(deadline);
      open.delete(socket);
    });
    serve(socket, replier);
  };
  const bind = (): void => {
    server = createServer(take);
    server.on("error", (error) => {
      if (!isSaid) log.warn(`HTTP is not served, it is tried again: ${errorText(error)}`, address);
      isSaid = true;
      server.close();
      clearTimeout(again);
      again = setTimeout(bind, BIND_AGAIN_MS);
    });
    server.listen(port, host, () => {
      isSaid = false;
      log.info("HTTP is served", address);
    });
  };
  bind();
  return {
    [Symbol.dispose]() {
      clearTimeout(again);
      server.removeAllListeners("error");
      server.on("error", () => undefined);
      server.close();
      for (const socket of open) socket.destroy();
    },
  };
}
