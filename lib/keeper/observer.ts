/** The keeper's look at its PostgreSQL: whether it lives and answers, streams, and is replied to. */
import { canTakeWrites, RECEIVING, STATE_TRAITS } from "../fsm.ts";
import { standbyName, synchronousStandbyNames } from "../group/quorum.ts";
import { flushSomeWal, type Observation, walProgress } from "../pg/local.ts";
import { ping } from "../pg/ping.ts";
import { livePostmaster } from "../pg/server.ts";
import { monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { OVERDUE_MS } from "../sys/notify.ts";
import type { Db, Target } from "../sys/sql.ts";
import { promotionOf } from "./ancestry.ts";
import { watchDisk } from "./disk.ts";
import { CHORES, type LoopState } from "./loop_state.ts";
import {
  adoptNode,
  closeLocalDb,
  isInForce,
  localDb,
  log,
  look,
  receiverTimeoutMs,
  save,
  upstreamOf,
} from "./node.ts";
import { isStreaming } from "./report.ts";

const CHECK_TIMEOUT_MS = 1000;
const OBSERVATION = "the look at PostgreSQL";
/** A standby that has not been seen to stream for so many heartbeats is cut off; a walreceiver may restart meanwhile. */
const STREAMS_HEARTBEATS = 2.5;
/** A standby that has not streamed for this long looks whether it still can. */
const ADRIFT_MS = 5000;
/** Files are looked through this often although nothing has changed that we know of. */
const CHORES_EVERY_MS = 10_000;
/** A dying postmaster lets go of its files, and so of its sessions, before the kernel shows it as dead. */
const SUSPECT_EVERY_MS = 5;
const SUSPECT_FOR_MS = 300;
/** A standby that has just been started is looked at this often, until it streams; a new set, until it's in force. */
const EAGER_MS = 50;
const EAGER_FOR_MS = 5000;
/** A walreceiver asks a silent primary for a sign of life at half of its timeout; one that got none is about to end. */
const UNANSWERED = 0.6;

export type Observer = {
  readonly postgres: (nowMs: number) => "up" | "down" | "hung";
  /** When standbys last replied, and from when to when that has been looked at. */
  readonly lastReplyMs: number | undefined;
  readonly looks: { readonly firstMs: number; readonly latestMs: number } | undefined;
  /** It streams, or has until just now. */
  readonly streams: (nowMs: number) => boolean;
  /** A standby that is to catch up, but streams from another node than the primary, or can't any more. */
  readonly isAdrift: (nowMs: number) => boolean;
  /** Whether there is a server, at each turn: one has ended, or another was started behind our back. */
  readonly noticeServer: (nowMs: number) => void;
  /** Looks beside everything else, when that is due. */
  readonly observe: (nowMs: number) => void;
  /** When this has anything to say next. */
  readonly dueMs: (nowMs: number) => readonly number[];
  /** The server may be gone: look before anything else. */
  readonly suspect: () => void;
  /** Whether it has answered says nothing of the server that is there now. */
  readonly forgetSilence: () => void;
  /** It gets ADRIFT_MS to stream from here on. */
  readonly awaitStream: () => void;
  /** Something is about to show: it is looked at more often. */
  readonly hurry: () => void;
};

/**
 * @param loop what it shares
 * @param fence whether the fence hangs on the standbys' replies alone
 * @param isUnheard whether the monitor has not been heard since the start, or since the fence
 */
export function makeObserver(
  loop: LoopState,
  fence: { readonly isCutOff: (nowMs: number) => boolean; readonly isUnheard: () => boolean },
): Observer {
  const { node, policy, notifier } = loop;
  let isObserving = false;
  let lastObservedMs = Number.NEGATIVE_INFINITY;
  let isSuspected = true;
  let suspectedUntilMs = Number.NEGATIVE_INFINITY;
  let unansweredSinceMs: number | undefined;
  const disk = watchDisk(
    () => policy().postgresTimeoutMs,
    (level, sentence) => log[level](sentence),
  );
  /** A look, too, waits for who waits for the disk. */
  let isLookHeldUp = false;
  let eagerUntilMs = loop.startedMs + EAGER_FOR_MS;
  /** When it streamed last, or last tried to get there again. */
  let streamedMs = loop.startedMs;
  let lastStreamedMs: number | undefined;
  let lastReplyMs: number | undefined;
  const replies = new Map<string, string>();
  let looks: { readonly firstMs: number; readonly latestMs: number } | undefined;
  let isStranger = false;

  function postgres(nowMs: number): "up" | "down" | "hung" {
    if (node.server === undefined) return "down";
    const isSilent =
      unansweredSinceMs !== undefined && nowMs - unansweredSinceMs >= policy().postgresTimeoutMs;
    return isSilent || disk.isHung ? "hung" : "up";
  }

  const askProgress = async (target: Target, nowMs: number): Promise<void> =>
    disk.notice(await walProgress(target, CHECK_TIMEOUT_MS), nowMs);

  /** Each look that is held up leaves a session of the server behind: there is none until WAL gets on. */
  async function lookAt(target: Target, nowMs: number): Promise<Observation | undefined> {
    if (isLookHeldUp) {
      await askProgress(target, nowMs);
      isLookHeldUp = disk.isHeldUp;
      if (isLookHeldUp) return undefined;
    }
    try {
      const seen = await look(node);
      disk.notice(seen, nowMs);
      return seen;
    } catch (error) {
      if (error instanceof AppError && error.kind === "timeout") {
        await askProgress(target, nowMs);
        isLookHeldUp = disk.isHeldUp;
      }
      throw error;
    }
  }

  function forgetSilence(): void {
    unansweredSinceMs = undefined;
    disk.forget();
    isLookHeldUp = false;
  }

  /**
   * A reply that is new came after the look before, and nobody knows how long after: it counts from then.
   * Counted from when it's seen, it could keep an isolated primary open for longer than was promised.
   */
  function noticeReplies(seen: Observation, atMs: number): void {
    const before = looks?.latestMs;
    looks = { firstMs: looks?.firstMs ?? atMs, latestMs: atMs };
    const members = node.state.syncMembers.map(standbyName);
    for (const { applicationName, replyTime } of seen.standbys) {
      if (!members.includes(applicationName)) continue;
      if (replyTime === undefined || replies.get(applicationName) === replyTime) continue;
      // the time in it is the standby's; that it changed is what counts, on our clock
      replies.set(applicationName, replyTime);
      lastReplyMs = before;
    }
  }

  /** Somebody else's names (ALTER SYSTEM): ours are not in force until they're shown to be again. */
  function distrustNames(seen: Observation): void {
    const { sync } = node;
    if (!sync?.proven || seen.inRecovery || loop.task !== undefined) return;
    if (seen.syncNames === synchronousStandbyNames(sync.set)) return;
    log.warn(
      `synchronous_standby_names is "${seen.syncNames}", which the monitor has not assigned`,
    );
    node.sync = undefined;
  }

  function noticeStranger(seen: Observation): void {
    const { state, promotedFrom } = node.state;
    const isOurs = promotedFrom !== null || (loop.task !== undefined && loop.task.name !== CHORES);
    const strange = !seen.inRecovery && STATE_TRAITS[state].role === "standby" && !isOurs;
    if (strange && !isStranger) {
      log.error(
        `This standby has been promoted behind the monitor's back, to timeline ${seen.timeline}: it is not part of the group's history`,
      );
      // where it left the history is what an operator who goes on with it would have to know
      try {
        const promotion = promotionOf(node.config.pgdata, seen.timeline);
        // should it come back as a standby, it follows nobody before its WAL has been compared
        save(node, { promotion, following: null });
      } catch (error) {
        log.warn(`the history of timeline ${seen.timeline} can't be told: ${errorText(error)}`);
      }
    }
    isStranger = strange;
  }

  /** Where the fence hangs on replies alone, an idle primary gives its standbys something to reply to. */
  const askForReplies = (db: Db): Promise<void> =>
    flushSomeWal(db, policy().heartbeatMs / 2).catch((error: unknown) =>
      log.debug(`no WAL for the standbys to reply to: ${errorText(error)}`),
    );

  /** A fresh connection shows that the server serves; the query goes over the one that is held. */
  async function observe(nowMs: number): Promise<void> {
    isObserving = true;
    notifier?.expect(OBSERVATION, OVERDUE_MS);
    lastObservedMs = nowMs;
    isSuspected = true;
    try {
      const db = localDb(node);
      if (fence.isCutOff(nowMs)) void askForReplies(db);
      if (node.target === undefined) return;
      const answered = (await ping(node.target, CHECK_TIMEOUT_MS)) === "answered";
      unansweredSinceMs = answered ? undefined : (unansweredSinceMs ?? nowMs);
      if (!answered) return;
      const wasStreaming = isStreaming(node.observation);
      const seen = await lookAt(node.target, nowMs);
      if (seen === undefined) return;
      if (isStreaming(seen)) {
        streamedMs = nowMs;
        lastStreamedMs = nowMs;
      }
      if (
        isStreaming(seen) !== wasStreaming ||
        nowMs - loop.reportSentMs >= policy().heartbeatMs / 2
      ) {
        loop.reportWanted = true;
      }
      distrustNames(seen);
      noticeStranger(seen);
      noticeReplies(seen, nowMs);
      loop.startFailures = 0;
    } catch (error) {
      log.debug(`local check failed: ${errorText(error)}`);
    } finally {
      isObserving = false;
      notifier?.met(OBSERVATION);
      if (isUnproven() || nowMs - loop.choresDoneMs >= CHORES_EVERY_MS) loop.choresDue = true;
      loop.wake();
    }
  }

  /** Commits don't, as far as can be shown, wait for those that the monitor wants them to wait for. */
  function isUnproven(): boolean {
    const set = node.answer?.sync;
    if (!canTakeWrites(node.state.state)) return false;
    return node.sync?.proven === undefined || (set !== undefined && !isInForce(node, set));
  }

  /** The next look is due this long after the last. */
  function observeEveryMs(nowMs: number): number {
    const isComing = RECEIVING.includes(node.state.state)
      ? !isStreaming(node.observation)
      : node.state.state === "apply_settings" && isUnproven();
    const isEager = nowMs < eagerUntilMs && isComing;
    // a reply counts from the look before
    if (fence.isCutOff(nowMs)) return policy().heartbeatMs / 4;
    const { silentMs = 0 } = node.observation?.receiver ?? {};
    const isEnding = silentMs >= UNANSWERED * receiverTimeoutMs(policy());
    return isEager || isEnding ? EAGER_MS : policy().heartbeatMs;
  }

  function noticeEnd(nowMs: number): void {
    const { server } = node;
    if (server === undefined || !isSuspected) return;
    isSuspected = nowMs < suspectedUntilMs;
    if (server.alive()) return;
    suspectedUntilMs = Number.NEGATIVE_INFINITY;
    node.server = undefined;
    closeLocalDb(node);
    forgetSilence();
    // what stops it says so when it's done: a report of half of that would only be in the way
    if (node.stopping) return;
    loop.reportWanted = true;
    log.warn(`PostgreSQL has ended unexpectedly (pid ${server.pid})`);
    loop.crash = { atMs: nowMs };
  }

  /** A keeper without a server: it has just started, or somebody else starts servers here. */
  function findServer(nowMs: number): void {
    if (
      node.server ||
      loop.task ||
      node.state.data !== "ready" ||
      nowMs - lastObservedMs < policy().heartbeatMs
    )
      return;
    lastObservedMs = nowMs;
    if (adoptNode(node)) {
      log.info(`Found PostgreSQL running with pid ${livePostmaster(node.config.pgdata)?.pid}`);
      lastObservedMs = Number.NEGATIVE_INFINITY;
    } else if (fence.isUnheard()) loop.crash ??= { atMs: nowMs };
  }

  return {
    postgres,
    get lastReplyMs() {
      return lastReplyMs;
    },
    get looks() {
      return looks;
    },
    streams: (nowMs) =>
      lastStreamedMs !== undefined &&
      nowMs - lastStreamedMs < STREAMS_HEARTBEATS * policy().heartbeatMs,
    isAdrift(nowMs) {
      const upstream = upstreamOf(node);
      if (node.state.state !== "catchingup" || upstream === undefined) return false;
      return node.state.following !== upstream.nodeId || nowMs - streamedMs >= ADRIFT_MS;
    },
    noticeServer(nowMs) {
      noticeEnd(nowMs);
      findServer(nowMs);
    },
    observe(nowMs) {
      if (node.server && !isObserving && nowMs - lastObservedMs >= observeEveryMs(nowMs))
        void observe(nowMs);
    },
    dueMs: (nowMs) => [
      lastObservedMs + observeEveryMs(nowMs),
      ...(unansweredSinceMs !== undefined ? [unansweredSinceMs + policy().postgresTimeoutMs] : []),
      ...(nowMs < suspectedUntilMs && node.server ? [nowMs + SUSPECT_EVERY_MS] : []),
    ],
    suspect() {
      isSuspected = true;
      suspectedUntilMs = monotonicMs() + SUSPECT_FOR_MS;
    },
    forgetSilence,
    awaitStream() {
      streamedMs = monotonicMs();
    },
    hurry() {
      eagerUntilMs = monotonicMs() + EAGER_FOR_MS;
    },
  };
}
