/** ping against small listeners; a real PostgreSQL stands behind every integration test. */
import { expect, test } from "bun:test";
import { ping } from "../../../lib/pg/ping.ts";

const target = (port: number) => ({ host: "127.0.0.1", port, user: "u", database: "d" });
const listen = (data: (socket: { write(text: string): void; end(): void }, said: Buffer) => void) =>
  Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data } });

test("ping: whatever the server says is an answer", async () => {
  let heard = "";
  using server = listen((socket, said) => {
    heard ||= said.toString("latin1");
    socket.write("E too many clients");
  });
  expect(await ping(target(server.port), 1000)).toBe("answered");
  expect(heard).toContain("user\0u\0database\0d\0\0");
});

test("ping: a server that accepts and says nothing is silent, in time", async () => {
  using server = listen(() => undefined);
  const begin = performance.now();
  expect(await ping(target(server.port), 100)).toBe("silent");
  expect(performance.now() - begin).toBeLessThan(1000);
});

test("ping: a server that hangs up, and one that isn't there, refuse", async () => {
  using server = listen((socket) => socket.end());
  expect(await ping(target(server.port), 1000)).toBe("refused");
  const { port } = server;
  server.stop(true);
  expect(await ping(target(port), 1000)).toBe("refused");
  const socket = { host: "/nowhere", port: 5432, user: "u", database: "d" };
  expect(await ping(socket, 1000)).toBe("refused");
});
