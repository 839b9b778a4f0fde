/** HTTP as load balancers speak it, and as nobody should. */
import { expect, test } from "bun:test";
import { connect } from "node:net";
import { parseHttpAddress } from "../../../lib/config.ts";
import { json, type Replier, respond, serveHttp } from "../../../lib/sys/http.ts";
import type { Logger } from "../../../lib/sys/log.ts";
import { silentListener } from "../../helpers/listener.ts";
import { freePort } from "../../helpers/ports.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";

const replier: Replier = (path, query) => {
  if (path === "/broken") throw new Error("a bug");
  return path === "/none"
    ? undefined
    : json(path === "/down" ? 503 : 200, [path, query.get("lag")]);
};

const ask = (head: string) => {
  const [first = "", ...rest] = respond(`${head}\r\n\r\n`, replier).split("\r\n");
  return { status: Number(first.split(" ")[1]), body: rest[rest.indexOf("") + 1] ?? "" };
};

test("respond: as HAProxy asks, with and without a version, and people", () => {
  expect(ask("OPTIONS / HTTP/1.0")).toEqual({ status: 200, body: "" });
  expect(ask("HEAD /down HTTP/1.1\r\nHost: x")).toEqual({ status: 503, body: "" });
  expect(ask("GET /a?lag=16MB HTTP/1.1\r\nhost: x")).toEqual({
    status: 200,
    body: '["/a","16MB"]\n',
  });
});

test("respond: what is no question is refused, a bug is no end", () => {
  expect(ask("POST / HTTP/1.1").status).toBe(405);
  expect(ask("GET / HTTP/2").status).toBe(400);
  expect(ask("GET http://elsewhere/ HTTP/1.1").status).toBe(400);
  expect(ask("\u0016\u0003\u0001").status).toBe(400);
  expect(ask("GET /none HTTP/1.1").status).toBe(404);
  expect(ask("GET /broken HTTP/1.1").status).toBe(500);
});

const LOG = (lines: string[]): Logger => {
  const say = (message: string) => void lines.push(message);
  return { debug: say, info: say, warn: say, error: say };
};

test("a port that is taken: said once, and had when it's free", async () => {
  const lines: string[] = [];
  const taken = silentListener();
  using _http = serveHttp({ host: "127.0.0.1", port: taken.port }, replier, LOG(lines));
  await waitFor("the word about it", 2000, () => lines.length > 0);
  taken[Symbol.dispose]();
  const url = `http://127.0.0.1:${taken.port}/primary`;
  await waitFor("an answer", 5000, async () => (await fetch(url)).status === 200);
  expect(lines).toEqual([
    expect.stringContaining("HTTP is not served, it is tried again"),
    "HTTP is served",
  ]);
});

test("hundreds who connect and say nothing, or little, keep nobody out", async () => {
  const port = freePort();
  using _http = serveHttp({ host: "127.0.0.1", port }, replier, LOG([]));
  const url = `http://127.0.0.1:${port}/primary`;
  await waitFor("an answer", 2000, async () => (await fetch(url)).ok);
  let closed = 0;
  const startMs = nowMs();
  for (let i = 0; i < 300; i++) {
    const socket = connect(port, "127.0.0.1", () => socket.write("GET / HTTP/1.1\r\nX"));
    socket.on("error", () => undefined).on("close", () => closed++);
  }
  await waitFor("the oldest to be sent away", 3000, () => closed >= 236);
  expect(nowMs() - startMs).toBeLessThan(1500);
  expect((await fetch(url)).status).toBe(200);
  // the others have their time
  await waitFor("the rest to be sent away", 8000, () => closed === 300);
}, 15_000);

test("headers without an end are cut off", async () => {
  const port = freePort();
  using _http = serveHttp({ host: "127.0.0.1", port }, replier, LOG([]));
  const url = `http://127.0.0.1:${port}/`;
  await waitFor("an answer", 2000, async () => (await fetch(url)).ok);
  const answer = await fetch(url, { headers: { "X-Long": "x".repeat(20_000) } });
  expect(answer.status).toBe(431);
});

test("parseHttpAddress: a port alone is for this machine only", () => {
  expect(parseHttpAddress("8008")).toEqual({ host: "127.0.0.1", port: 8008 });
  expect(parseHttpAddress("*:8008")).toEqual({ host: "0.0.0.0", port: 8008 });
  expect(parseHttpAddress("db1.example:80")).toEqual({ host: "db1.example", port: 80 });
  expect(parseHttpAddress("[::1]:80")).toEqual({ host: "::1", port: 80 });
  for (const wrong of ["", "0", "65536", "http://x:80", "::1:80", "x:", "[x]:80"]) {
    expect(() => parseHttpAddress(wrong)).toThrow("an address to serve HTTP at is [HOST:]PORT");
  }
});
