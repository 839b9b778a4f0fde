/** Subscriptions to notifications, kept up for as long as somebody wants them. */

import { delay, monotonicMs } from "./clock.ts";
import { bounded, raceAbort } from "./sql_bounds.ts";
import {
  type Connection,
  type ConnectionEvents,
  quoteIdentifier,
  type Target,
} from "./sql_target.ts";

/** Between two attempts to subscribe again. */
const RELISTEN_MS = 200;

/** A subscription that brings nothing is asked for a sign of life this often, and given this long to answer. */
const LISTEN_CHECK_MS = 3000;
const LISTEN_ANSWER_MS = 2000;

/** All subscriptions of one Db, on one connection. */
export type Subscriptions = {
  /** See `Db.listen`. */
  add(channel: string, onNotify: (payload: string) => void, onListen: () => void): Promise<void>;
  end(): Promise<void>;
};

type Subscription = {
  readonly channel: string;
  readonly onNotify: (payload: string) => void;
  readonly onListen: () => void;
  /** Settles the promise of `listen`, once. */
  readonly settled: (error?: unknown) => void;
  active: boolean;
};

/**
 * @param open makes a connection that is established by its first statement
 * @param closing ends it all
 */
export function makeSubscriptions(
  target: Target,
  open: (events: ConnectionEvents) => Connection,
  closing: AbortSignal,
): Subscriptions {
  const wanted: Subscription[] = [];
  let connection: Connection | undefined;
  let wake = new AbortController();

  const say = (on: Connection, text: string, timeoutMs: number) =>
    bounded(target, timeoutMs, [closing], ({ signal }) =>
      raceAbort(on.script(text), signal, () => on.cut()),
    );

  /** Subscribes what is not yet subscribed on a connection, then watches it until it is lost or something is added. */
  const serve = async (on: Connection): Promise<void> => {
    for (;;) {
      for (const subscription of wanted) {
        if (subscription.active) continue;
        const channel = quoteIdentifier(subscription.channel);
        await say(on, `listen ${channel}`, target.connectTimeoutMs + LISTEN_ANSWER_MS);
        subscription.active = true;
        subscription.settled();
        queueMicrotask(subscription.onListen);
      }
      await sleepUntil(wake.signal, LISTEN_CHECK_MS);
      closing.throwIfAborted();
      if (wake.signal.aborted) wake = new AbortController();
      if (on.ended()) return;
      await say(on, "select 1", LISTEN_ANSWER_MS);
    }
  };

  const keep = async (): Promise<void> => {
    while (!closing.aborted) {
      const openedMs = monotonicMs();
      connection = open({
        onLost: () => wake.abort(),
        onNotify: (channel, payload) => {
          for (const subscription of wanted) {
            // A callback that throws is a bug of its own, and must not look like one of the connection.
            if (subscription.channel === channel)
              queueMicrotask(() => subscription.onNotify(payload));
          }
        },
      });
      try {
        await serve(connection);
      } catch (error) {
        for (const subscription of wanted) subscription.settled(error);
      }
      await connection.end();
      for (const subscription of wanted) subscription.active = false;
      // What has served for a while and is lost is worth a try at once.
      if (monotonicMs() - openedMs < RELISTEN_MS) await sleepUntil(closing, RELISTEN_MS);
    }
    for (const subscription of wanted) subscription.settled(closing.reason);
  };

  let keeping: Promise<void> | undefined;
  return {
    add(channel, onNotify, onListen) {
      return new Promise((resolve, reject) => {
        const settled = (error?: unknown) => (error === undefined ? resolve() : reject(error));
        wanted.push({ channel, onNotify, onListen, settled, active: false });
        wake.abort();
        keeping ??= keep();
      });
    },
    async end() {
      wake.abort();
      await connection?.end();
      await keeping;
    },
  };
}

async function sleepUntil(signal: AbortSignal, ms: number): Promise<void> {
  await delay(ms, signal).catch(() => {});
}
