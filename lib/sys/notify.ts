/**
 * What the service manager (systemd) is told of this process: that it's ready, reloads, stops, what it does, and that it's
 * alive. Where nobody listens, nothing is sent.
 *
 * Alive is more than an event loop that turns. Whoever runs a loop names what ends by itself, and within which time
 * (`expect`), and takes it back when it has ended (`met`). Once one of these is overdue, a promise that it hangs on will
 * never settle: no more signs of life are given, until it has ended after all, and the manager starts the process anew.
 * What may take any time (a base backup, pg_rewind, crash recovery, a checkpoint) is expected by nobody, and what waits for
 * PostgreSQL, or for another host, is expected after its own deadline only.
 *
 * @see sd_notify(3), sd_watchdog_enabled(3)
 */

import { monotonicMs } from "./clock.ts";
import { oneLine, scrub } from "./errors.ts";
import { logger } from "./log.ts";
import { datagramSender, monotonicMicroseconds } from "./native.ts";

const log = logger("service");

const ALIVE = "WATCHDOG=1";
/** Of its time, a watchdog is fed after each third. */
const FEEDS = 3;
/** Waits with deadlines of a few seconds have ended by then also where everything is slow. */
export const OVERDUE_MS = 20_000;
/** A start that takes long asks for so much more each time. */
const EXTEND_MS = 30_000;
/** Words that could not be sent are kept for the next time, but not all that ever were. */
const UNSENT_MAX = 4096;

export type Notifier = Disposable & {
  /** It serves; the first time counts. */
  ready(): void;
  /** It ends: from here on only the manager's own patience counts. */
  stopping(): void;
  /** What it does, in a line; said when it changes. */
  status(sentence: string): void;
  /** The start may take longer than the manager's patience, until `work` has settled or it's ready. */
  starting(work: Promise<unknown>): void;
  /** It reads its settings again, until `work` has settled. */
  reloading(work: Promise<unknown>): void;
  /** This will be met, or expected again, within so many ms. */
  expect(what: string, withinMs: number): void;
  met(what: string): void;
};

type Environment = Readonly<
  Partial<Record<"NOTIFY_SOCKET" | "WATCHDOG_USEC" | "WATCHDOG_PID", string | undefined>>
>;

/** How often the watchdog wants a sign of life, in ms; undefined: it doesn't, or not from this process. */
export function feedEveryMs(env: Environment, pid: number): number | undefined {
  const us = Number(env.WATCHDOG_USEC);
  if (!Number.isSafeInteger(us) || us <= 0) return undefined;
  if (env.WATCHDOG_PID !== undefined && Number(env.WATCHDOG_PID) !== pid) return undefined;
  return Math.max(1, Math.floor(us / 1000 / FEEDS));
}

/**
 * Opens the way to the service manager that the environment names. It holds nobody up and throws nothing.
 */
export function openNotifier(env: Environment = process.env as Environment): Notifier {
  const address = env.NOTIFY_SOCKET || undefined;
  const deliver = address === undefined ? undefined : senderTo(address);
  const expected = new Map<string, number>();
  let isReady = false;
  let isStopping = false;
  let reloads = 0;
  let said = "";
  let unsent = "";
  let failed = false;
  let overdue: string | undefined;

  function send(words: string): void {
    if (deliver === undefined) return;
    const text = `${unsent}${words}\n`;
    if (deliver(text)) {
      unsent = "";
      return;
    }
    if (words !== ALIVE) unsent = text.length <= UNSENT_MAX ? text : "";
    if (!failed) log.debug("the service manager could not be told", { socket: address });
    failed = true;
  }

  function feed(): void {
    const now = monotonicMs();
    const late = isStopping ? undefined : [...expected].find(([, dueMs]) => now > dueMs);
    if (late?.[0] !== overdue && late !== undefined)
      log.error(`Stuck: ${late[0]} should have ended by now; the watchdog is not fed any more`);
    overdue = late?.[0];
    if (overdue === undefined) send(ALIVE);
  }

  const everyMs = deliver && feedEveryMs(env, process.pid);
  const timer = everyMs === undefined ? undefined : setInterval(feed, everyMs);
  timer?.unref();
  return {
    ready() {
      if (isReady) return;
      isReady = true;
      send("READY=1");
    },
    stopping() {
      if (isStopping) return;
      isStopping = true;
      send("STOPPING=1");
    },
    status(sentence) {
      if (sentence === said) return;
      said = sentence;
      send(`STATUS=${scrub(oneLine(sentence))}`);
    },
    starting(work) {
      if (isReady || deliver === undefined) return;
      const extend = (): void => {
        if (!isReady) send(`EXTEND_TIMEOUT_USEC=${EXTEND_MS * 1000}`);
      };
      extend();
      const extending = setInterval(extend, EXTEND_MS / FEEDS);
      const done = (): void => clearInterval(extending);
      work.then(done, done);
    },
    reloading(work) {
      if (!isReady) return;
      reloads += 1;
      send(`RELOADING=1\nMONOTONIC_USEC=${deliver ? monotonicMicroseconds() : 0}`);
      const done = (): void => {
        reloads -= 1;
        if (reloads === 0) send("READY=1");
      };
      work.then(done, done);
    },
    expect: (what, withinMs) => void expected.set(what, monotonicMs() + withinMs),
    met: (what) => void expected.delete(what),
    [Symbol.dispose]: () => clearInterval(timer),
  };
}

function senderTo(address: string): ((text: string) => boolean) | undefined {
  try {
    const sender = datagramSender(address);
    if (sender === undefined) log.debug("no socket to a service manager", { socket: address });
    return sender;
  } catch (error) {
    log.debug("no socket to a service manager", { socket: address, error: String(error) });
    return undefined;
  }
}
