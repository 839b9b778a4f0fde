/** TCP listeners that are no PostgreSQL. */
import { freePort } from "./ports.ts";

export type Listener = Disposable & { port: number };

/** Accepts connections and never says a word. */
export function silentListener(port = freePort()): Listener {
  const server = Bun.listen({ hostname: "0.0.0.0", port, socket: { data() {} } });
  return { port, [Symbol.dispose]: () => server.stop(true) };
}

/** Answers whatever comes with text of another protocol. */
export function talkingListener(): Listener {
  const port = freePort();
  const server = Bun.listen({
    hostname: "0.0.0.0",
    port,
    socket: {
      data(socket) {
        socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
      },
    },
  });
  return { port, [Symbol.dispose]: () => server.stop(true) };
}
