/**
 * The keeper's loop. Nothing in it blocks: observing, reporting and acting each run on their own,
 * at most one of a kind, and whatever ends, arrives or falls due leads to one `turn`, which looks at
 * the clock before anything else.
 */
import { parseHttpAddress } from "../config.ts";
import { canTakeWrites, type NodeState, STATE_TRAITS } from "../fsm.ts";
import { formatLsn } from "../group/lsn.ts";
import { standbyName, synchronousStandbyNames } from "../group/quorum.ts";
import { DEFAULT_POLICY, type Policy } from "../group/view.ts";
import { type MonitorClient, openMonitor, waitsForTestimony } from "../monitor/client.ts";
import { flushSomeWal, type Observation } from "../pg/local.ts";
import { ping } from "../pg/ping.ts";
import { livePostmaster } from "../pg/server.ts";
import type { Answer, Report } from "../shapes.ts";
import { bootId, delay, monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { serveHttp } from "../sys/http.ts";
import { type Notifier, OVERDUE_MS } from "../sys/notify.ts";
import type { Db } from "../sys/sql.ts";
import { promotionOf } from "./ancestry.ts";
import { chores } from "./chores.ts";
import { contactMs, loadContact, saveContact } from "./contact_file.ts";
import { couldBeReplaced, fenceAtMs, listeningUntilMs } from "./fence.ts";
import { type Hooks, openHooks } from "./hooks.ts";
import { type NodeHealth, nodeReply } from "./http.ts";
import {
  adoptNode,
  CLEAN_STOP,
  closeLocalDb,
  FENCE_STOP,
  isInForce,
  localDb,
  log,
  look,
  type Node,
  ownId,
  peers,
  reloadSettings,
  save,
  startNode,
  stopNode,
  syncInForce,
  upstreamOf,
} from "./node.ts";
import { writeSecret } from "./passfile.ts";
import { countsAsRunning, isNews, isStreaming, reportOf, sentenceOf } from "./report.ts";
import { rereadSettings, settleMembership } from "./settings.ts";
import { nextStep, type Step } from "./step.ts";
import { rememberer, testimonyOf } from "./testimony.ts";
import { checkpointTimeline, TRANSITIONS } from "./transitions.ts";

const REPORT_TIMEOUT_MS = 1000;
const CHECK_TIMEOUT_MS = 1000;
/** How long a keeper waits to hear what to do about a crash before it acts by itself. */
const ASK_TIMEOUT_MS = 1000;
/** How long a keeper that stops waits for its standby to be told to take over. */
const HAND_OVER_MS = 5000;
/** How long a keeper that ends waits for hooks that are still to be run. */
const HOOKS_END_MS = 10_000;
/** A standby that has not been seen to stream for so many heartbeats is cut off; a walreceiver may restart meanwhile. */
const STREAMS_HEARTBEATS = 2.5;
/** The report goes out with the observation; this much later it goes without. */
const REPORT_SLACK_MS = 150;

/** What was told to end has ended by then, a clean stop of PostgreSQL included. */
const ABORTED_MS = CLEAN_STOP.fastMs + CLEAN_STOP.immediateMs + CLEAN_STOP.killMs + OVERDUE_MS;

/** A standby that has not streamed for this long looks whether it still can. */
const ADRIFT_MS = 5000;

const TURN = "the wait for the next turn";
const OBSERVATION = "the look at PostgreSQL";
const REPORT = "the report to the monitor";
const START = "start PostgreSQL";
const REPAIR = "follow the primary again";
const CHORES = "keep settings in order";
/** Files are looked through this often although nothing has changed that we know of. */
const CHORES_EVERY_MS = 10_000;
/** A standby that has just been started is looked at this often, until it streams; a new set, until it's in force. */
const EAGER_MS = 50;
const EAGER_FOR_MS = 5000;

export type LoopOptions = {
  /** SIGTERM: stop PostgreSQL, say so, end. */
  readonly stop: AbortSignal;
  /** SIGQUIT: end at once, PostgreSQL stays. */
  readonly leave: AbortSignal;
  /** SIGHUP calls what is handed over here. */
  readonly onReload?: (reload: () => void) => void;
  /** End, leaving PostgreSQL as it is, when this state is reached (`create`). */
  readonly until?: (state: NodeState) => boolean;
  /** An action that fails ends the loop with its error, as does silence about the goal (`create`). */
  readonly failFast?: { readonly goalTimeoutMs: number; readonly joinTimeoutMs: number };
  /**
   * Hears of each promise of this loop. It turns once a heartbeat, whatever is under way beside it; a look at PostgreSQL and
   * a report end by their own deadlines; what was told to end, ends. How long a transition takes, nobody knows before.
   */
  readonly notifier?: Notifier;
};

type Task = {
  readonly name: string;
  readonly to: NodeState | undefined;
  readonly controller: AbortController;
  done: Promise<void>;
};

/** @returns the state in which the loop ended; "dropped" when the monitor knows this node no more */
export async function runLoop(node: Node, options: LoopOptions): Promise<NodeState> {
  const { notifier } = options;
  const started = monotonicMs();
  const ended = Promise.withResolvers<NodeState>();
  let monitor: MonitorClient = openMonitor(node.config.monitor, () => wake());
  let remember = rememberer(node, monitor);

  const boot = bootId();
  const inherited = loadContact(node.paths.contact);
  let lastContact = contactMs(inherited, started, boot) ?? started;
  let contactIsUnsaved = false;
  let contact: "fresh" | "lost" | "never" = "never";
  /** Answers to what was sent before say nothing of whom the group belongs to now. */
  let contactVoidBefore = Number.NEGATIVE_INFINITY;
  let monitorIsStale = false;
  let sequence = 0n;
  let reporting = false;
  let reportWanted = true;
  let lastReportSent = Number.NEGATIVE_INFINITY;
  let observing = false;
  let lastObserved = Number.NEGATIVE_INFINITY;
  let eagerUntil = started + EAGER_FOR_MS;
  /** When it streamed last, or last tried to get there again. */
  let streamed = started;
  let unansweredSince: number | undefined;
  let lastReply: number | undefined;
  const replies = new Map<string, string>();
  let looks: { readonly firstMs: number; readonly latestMs: number } | undefined;
  let crash: { at: number; asked?: bigint; considered?: boolean } | undefined;
  let startFailures = 0;
  let backOffUntil = Number.NEGATIVE_INFINITY;
  let task: Task | undefined;
  let choresDue = true;
  let choresDone = Number.NEGATIVE_INFINITY;
  let serverSuspected = true;
  let checkpointing = false;
  const checkpoints = new AbortController();
  let closing: "stopping" | "handing over" | undefined;
  let handOverUntil = Number.POSITIVE_INFINITY;
  let acknowledged: string | undefined;
  let over = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let scheduled = false;
  let isStranger = false;
  /** One that could not be written, which is tried again with each report, and said once. */
  let refusedSecret: string | undefined;
  let lastSaid = "";
  let lastWaiting = "";
  let lastStreamed: number | undefined;
  const reports = { answered: 0, failed: 0, tookMs: 0 };
  let toldState = node.state.state;
  const hooks = hooksOf(node, monitor);

  const policy = (): Policy => node.answer?.policy ?? inherited?.policy ?? DEFAULT_POLICY;

  function wake(): void {
    if (scheduled || over) return;
    scheduled = true;
    setImmediate(() => {
      scheduled = false;
      turn();
    });
  }
  node.suspect = () => {
    serverSuspected = true;
    wake();
  };

  function finish(outcome: NodeState | Error): void {
    if (over) return;
    over = true;
    clearTimeout(timer);
    if (outcome instanceof Error) ended.reject(outcome);
    else ended.resolve(outcome);
  }

  const postgres = (now: number): "up" | "down" | "hung" => {
    if (node.server === undefined) return "down";
    const silent =
      unansweredSince !== undefined && now - unansweredSince >= policy().postgresTimeoutMs;
    return silent ? "hung" : "up";
  };

  const fenceAt = (): number | undefined =>
    fenceAtMs({
      lastContactMs: lastContact,
      lastReplyMs: lastReply,
      couldBeReplaced: couldBeReplaced(node.state.state, node.state.syncMembers.length),
      networkPartitionTimeoutMs: policy().networkPartitionTimeoutMs,
      listeningUntilMs: listeningUntilMs({ startedMs: started, looks, ...policy() }),
    });

  /** When it stops being normal that the monitor has not been heard of. */
  const cutOffAt = (): number => lastContact + 1.25 * policy().heartbeatMs;

  /** The fence hangs on replies alone. */
  const isCutOff = (now: number): boolean => fenceAt() !== undefined && now >= cutOffAt();

  // ---------------------------------------------------------------- telling others

  /** As of this very moment, also when this process has just been thawed. */
  function health(): NodeHealth {
    const now = monotonicMs();
    const fence = fenceAt();
    const isUnheard = contact === "never" && lastReply === undefined;
    return {
      formation: node.config.formation,
      host: node.config.nodename,
      port: node.config.pgport,
      state: node.state,
      postgres: postgres(now),
      underWay: task?.to,
      fenced: fence !== undefined && (now >= fence || isUnheard),
      closing: over || closing !== undefined,
      seen: node.observation,
      streams:
        lastStreamed !== undefined &&
        now - lastStreamed < STREAMS_HEARTBEATS * policy().heartbeatMs,
      contactAgeMs: contact === "never" ? undefined : now - lastContact,
      primaryLsn: upstreamOf(node)?.lsn,
      startFailures,
      syncInForce: syncInForce(node),
      reports,
    };
  }

  /** For `systemctl status`. */
  function statusOf(now: number): string {
    const { state, goal, name } = node.state;
    const course = goal === state ? "" : `, to be "${goal}"`;
    const heard = contact === "fresh" ? "answers" : "does not answer";
    return `Node "${name}" is "${state}"${course}; PostgreSQL is ${postgres(now)}; the monitor ${isDisabled() ? "is disabled" : heard}`;
  }

  /** @param from the same state: PostgreSQL was started in it */
  function tellHooks(from: NodeState): void {
    const { config, state, observation } = node;
    toldState = state.state;
    hooks?.tell({
      formation: config.formation,
      group: state.groupId ?? config.group,
      node: { id: state.nodeId, name: state.name, host: config.nodename, port: config.pgport },
      from,
      to: state.state,
      timeline: observation?.timeline,
      lsn: observation && formatLsn(observation.lsn),
    });
  }

  // ---------------------------------------------------------------- observing

  /**
   * A reply that is new came after the look before, and nobody knows how long after: it counts from then.
   * Counted from when it's seen, it could keep an isolated primary open for longer than was promised.
   */
  function noticeReplies(seen: Observation, at: number): void {
    const before = looks?.latestMs;
    looks = { firstMs: looks?.firstMs ?? at, latestMs: at };
    const members = node.state.syncMembers.map(standbyName);
    for (const { applicationName, replyTime } of seen.standbys) {
      if (!members.includes(applicationName)) continue;
      if (replyTime === undefined || replies.get(applicationName) === replyTime) continue;
      // the time in it is the standby's; that it changed is what counts, on our clock
      replies.set(applicationName, replyTime);
      lastReply = before;
    }
  }

  /** Somebody else's names (ALTER SYSTEM): ours are not in force until they're shown to be again. */
  function distrustNames(seen: Observation): void {
    const { sync } = node;
    if (!sync?.proven || seen.inRecovery || task !== undefined) return;
    if (seen.syncNames === synchronousStandbyNames(sync.set)) return;
    log.warn(
      `synchronous_standby_names is "${seen.syncNames}", which the monitor has not assigned`,
    );
    node.sync = undefined;
  }

  function noticeStranger(seen: Observation): void {
    const { state, promotedFrom } = node.state;
    const isOurs = promotedFrom !== null || (task !== undefined && task.name !== CHORES);
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
  async function observe(now: number): Promise<void> {
    observing = true;
    notifier?.expect(OBSERVATION, OVERDUE_MS);
    lastObserved = now;
    serverSuspected = true;
    try {
      const db = localDb(node);
      if (isCutOff(now)) void askForReplies(db);
      if (node.target === undefined) return;
      const answered = (await ping(node.target, CHECK_TIMEOUT_MS)) === "answered";
      unansweredSince = answered ? undefined : (unansweredSince ?? now);
      if (!answered) return;
      const wasStreaming = isStreaming(node.observation);
      const seen = await look(node);
      if (isStreaming(seen)) {
        streamed = now;
        lastStreamed = now;
      }
      if (isStreaming(seen) !== wasStreaming || now - lastReportSent >= policy().heartbeatMs / 2) {
        reportWanted = true;
      }
      distrustNames(seen);
      noticeStranger(seen);
      noticeReplies(seen, now);
      startFailures = 0;
    } catch (error) {
      log.debug(`local check failed: ${errorText(error)}`);
    } finally {
      observing = false;
      notifier?.met(OBSERVATION);
      if (isUnproven() || now - choresDone >= CHORES_EVERY_MS) choresDue = true;
      wake();
    }
  }

  /** Commits don't, as far as can be shown, wait for those that the monitor wants them to wait for. */
  function isUnproven(): boolean {
    const set = node.answer?.sync;
    if (!canTakeWrites(node.state.state)) return false;
    return node.sync?.proven === undefined || (set !== undefined && !isInForce(node, set));
  }

  /** The next look is due this long after the last. */
  function observeEveryMs(now: number): number {
    const isComing =
      STATE_TRAITS[node.state.state].role === "standby"
        ? !isStreaming(node.observation)
        : node.state.state === "apply_settings" && isUnproven();
    const eager = now < eagerUntil && isComing;
    // a reply counts from the look before
    if (isCutOff(now)) return policy().heartbeatMs / 4;
    return eager ? EAGER_MS : policy().heartbeatMs;
  }

  // ---------------------------------------------------------------- reporting

  async function sendReport(now: number): Promise<void> {
    reporting = true;
    notifier?.expect(REPORT, OVERDUE_MS);
    reportWanted = false;
    lastReportSent = now;
    sequence += 1n;
    const seen = node.observation;
    const report = reportOf({
      state: node.state,
      seen,
      running: countsAsRunning(node.state.state, postgres(now), node.stopping),
      sequence,
      startFailures,
      syncInForce: syncInForce(node),
      shutdown: node.shutdown,
      fenceMs: policy().networkPartitionTimeoutMs,
      secretId: node.secret?.id,
    });
    if (crash && !report.pgIsRunning) crash.asked ??= report.reportNo;
    const { steady, whole } = sentenceOf(report, node.config.formation, {
      state: node.state,
      seen,
    });
    log[steady === lastSaid ? "debug" : "info"](whole);
    lastSaid = steady;
    const asked = monitor;
    try {
      const answer = await asked.nodeActive(
        node.config.formation,
        ownId(node),
        report,
        REPORT_TIMEOUT_MS,
      );
      if (asked !== monitor) return;
      reports.answered += 1;
      reports.tookMs += monotonicMs() - now;
      if (now >= contactVoidBefore) {
        lastContact = now;
        if (contact === "lost") log.info("The monitor answers again");
        // only from here on can the monitor have considered a crash
        if (contact !== "fresh" && crash) crash.at = monotonicMs();
        contact = "fresh";
      }
      if (over) return;
      take(answer);
      rememberContact();
      if (!monitorIsStale) {
        settleMembership(node);
        remember();
      }
      if (!report.pgIsRunning) acknowledged = report.state;
      if (report.state === "dropped") finish("dropped");
    } catch (error) {
      if (asked !== monitor) return;
      if (error instanceof AppError && error.kind === "dropped") {
        // an operator who takes the node out of its group has said so in the settings before
        await readSettings();
        if (asked !== monitor) return;
        log.error(errorText(error));
        leave();
        return;
      }
      reports.failed += 1;
      if (contact !== "lost") log.warn(errorText(error));
      if (contact === "fresh") contact = "lost";
      if (crash && contact === "lost") crash.considered = true;
      if (options.failFast && error instanceof Error) finish(error);
      if (waitsForTestimony(error)) await testify(report);
    } finally {
      reporting = false;
      notifier?.met(REPORT);
      wake();
    }
  }

  const isDisabled = (): boolean => node.config.membership === "disabled";

  /** A hint that something has changed: read again; correctness never depends on it. */
  function watchMonitor(): void {
    monitor
      .watch((payload) => {
        const asking = crash?.asked !== undefined && crash.considered !== true;
        if (isNews(payload, node.config.formation, node.state, peers(node), asking)) {
          reportWanted = true;
          wake();
        }
      })
      .catch((error: unknown) => log.debug(`LISTEN: ${errorText(error)}`));
  }

  /** Whatever the monitor before says from here on is void; goals that were heard of stay. */
  function changeMonitor(): void {
    const before = monitor;
    monitor = openMonitor(node.config.monitor, () => wake());
    remember = rememberer(node, monitor);
    if (contact === "fresh") contact = "lost";
    reportWanted = true;
    if (isDisabled()) log.info("Going on without a monitor");
    else {
      log.info("Turning to another monitor, or to the same at another address");
      watchMonitor();
    }
    const closed = Promise.resolve(before[Symbol.asyncDispose]());
    closed.catch((error: unknown) => log.debug(errorText(error)));
  }

  async function readSettings(): Promise<void> {
    try {
      const changed = await rereadSettings(node);
      if (changed.has("monitor") || changed.has("membership")) changeMonitor();
      choresDue = true;
    } catch (error) {
      log.error(
        `The settings are not taken up, the keeper goes on with those that it had: ${errorText(error)}`,
      );
    }
    wake();
  }

  /** The monitor has lost its memory, and records nothing before it has heard what each keeper knows. */
  async function testify(report: Report): Promise<void> {
    try {
      await monitor.testify(node.state.identity, testimonyOf(node, report));
    } catch (error) {
      log.warn(errorText(error));
    }
  }

  function rememberContact(): void {
    const bootId = boot ?? null;
    try {
      saveContact(node.paths.contact, { bootId, sentAtMs: lastContact, policy: policy() });
      contactIsUnsaved = false;
    } catch (error) {
      // who is restarted then fences too early rather than too late
      if (!contactIsUnsaved) log.warn(`could not note the last contact: ${errorText(error)}`);
      contactIsUnsaved = true;
    }
  }

  /** What streams goes on with another password too: it's asked for when a connection is made. */
  function takeSecret({ secret }: Answer): void {
    if (secret === undefined) return;
    try {
      writeSecret(node.paths, secret);
      node.secret = secret;
      log.info("Took over the group's replication password");
      choresDue = true;
    } catch (error) {
      if (secret.id !== refusedSecret) log.error(errorText(error));
      refusedSecret = secret.id;
    }
  }

  function take(answer: Answer): void {
    const { state } = node;
    const stale = answer.goalVersion < state.goalVersion || answer.sync.version < state.syncVersion;
    if (stale && !monitorIsStale) {
      log.error(
        "The monitor offers older goals than this node has seen: it was restored from the past. Nothing is done until it's recovered.",
      );
    }
    monitorIsStale = stale;
    if (stale) return;
    takeSecret(answer);
    if (
      JSON.stringify(node.answer?.nodes.map(({ lsn: _, ...peer }) => peer)) !==
      JSON.stringify(answer.nodes.map(({ lsn: _, ...peer }) => peer))
    ) {
      choresDue = true;
    }
    if (node.answer?.sync.version !== answer.sync.version) choresDue = true;
    node.answer = answer;
    if (crash?.asked !== undefined && answer.decidedReport >= crash.asked) crash.considered = true;
    if (
      answer.goalVersion !== state.goalVersion ||
      answer.goal !== state.goal ||
      state.name !== answer.name
    ) {
      try {
        save(node, {
          goal: answer.goal,
          goalVersion: answer.goalVersion,
          nodeId: answer.nodeId,
          groupId: answer.groupId,
          name: answer.name,
        });
        backOffUntil = Number.NEGATIVE_INFINITY;
        // where nothing is to be done for it, the monitor waits to hear that this goal is known
        if (node.state.state === answer.goal) reportWanted = true;
      } catch (error) {
        log.error(errorText(error));
      }
    }
  }

  // ---------------------------------------------------------------- acting

  function begin(
    name: string,
    to: NodeState | undefined,
    action: (signal: AbortSignal) => Promise<void>,
    after?: () => void,
  ): void {
    const controller = new AbortController();
    const { signal } = controller;
    const ending = `what was told to end: ${name}`;
    signal.addEventListener("abort", () => notifier?.expect(ending, ABORTED_MS), { once: true });
    const inForceBefore = syncInForce(node);
    const mine: Task = { name, to, controller, done: Promise.resolve() };
    const run = async (): Promise<void> => {
      try {
        await action(signal);
        signal.throwIfAborted();
        after?.();
      } catch (error) {
        if (signal.aborted) {
          log.info(`Given up: ${name}`);
          return;
        }
        backOffUntil = monotonicMs() + policy().heartbeatMs;
        if (options.failFast && error instanceof Error && to !== undefined) finish(error);
        else log.error(`${name}: ${errorText(error)}`);
      } finally {
        if (task === mine) task = undefined;
        notifier?.met(ending);
        if (name !== CHORES || syncInForce(node) !== inForceBefore) reportWanted = true;
        wake();
      }
    };
    task = mine;
    mine.done = run();
  }

  function reached(state: NodeState): void {
    save(node, { state });
    log.info(`Transition complete: current state is now "${state}"`);
    streamed = monotonicMs();
    eagerUntil = streamed + EAGER_FOR_MS;
    choresDue = true;
    if (options.until?.(state)) finish(state);
  }

  /** A standby that is to catch up, but streams from another node than the primary, or can't any more. */
  function isAdrift(now: number): boolean {
    const upstream = upstreamOf(node);
    if (node.state.state !== "catchingup" || upstream === undefined) return false;
    return node.state.following !== upstream.nodeId || now - streamed >= ADRIFT_MS;
  }

  function roleToStart(): "primary" | "standby" {
    return canTakeWrites(node.state.state) || node.state.state === "stop_replication"
      ? "primary"
      : "standby";
  }

  /** Beside everything else: it may take minutes, and rewinding standbys wait for it. */
  function checkpointAfterPromotion(): void {
    if (checkpointing || !canTakeWrites(node.state.state)) return;
    checkpointing = true;
    checkpointTimeline(node, checkpoints.signal)
      .catch((error: unknown) => log.warn(`checkpoint after the promotion: ${errorText(error)}`))
      .finally(() => {
        checkpointing = false;
      });
  }

  /** @param overtaken what else is under way: it may hang with the server, or just have started it */
  function fence(overtaken: Task | undefined): void {
    overtaken?.controller.abort(new Error("this primary is fenced"));
    // what the monitor said before is void: it may have given the group to somebody else since
    contact = "never";
    contactVoidBefore = monotonicMs();
    reportWanted = true;
    begin("fence", "demote_timeout", async () => {
      try {
        save(node, { state: "demote_timeout" });
      } finally {
        await stopNode(node, FENCE_STOP);
        await Promise.race([overtaken?.done, delay(FENCE_STOP.killMs)]);
        if (overtaken) await stopNode(node, FENCE_STOP);
      }
    });
  }

  function act(step: Step, now: number): void {
    if (step.do === "wait") {
      if (step.why !== lastWaiting)
        log[step.why.startsWith("there is no way") ? "error" : "debug"](`Waiting: ${step.why}`);
      lastWaiting = step.why;
      return;
    }
    lastWaiting = "";
    switch (step.do) {
      case "abort":
        task?.controller.abort(new Error("the goal has changed"));
        return;
      case "fence":
        log.warn(
          `Neither the monitor nor a standby has been heard of for ${policy().networkPartitionTimeoutMs} ms: this primary stops itself`,
        );
        fence(task);
        return;
      case "transition": {
        const [from, to, action, why] = step.row;
        log.info(`FSM transition from "${from}" to "${to}": ${why}`);
        begin(
          `transition to "${to}"`,
          to,
          (signal) => TRANSITIONS[action](node, signal),
          () => reached(to),
        );
        return;
      }
      case "start":
        log.info("PostgreSQL is not running, starting it");
        crash = undefined;
        begin(START, undefined, async (signal) => {
          try {
            await startNode(node, roleToStart(), signal);
            unansweredSince = undefined;
            eagerUntil = monotonicMs() + EAGER_FOR_MS;
            log.info(`PostgreSQL is running with pid ${node.server?.pid}`);
            tellHooks(node.state.state);
          } catch (error) {
            startFailures += 1;
            throw error;
          }
        });
        return;
      case "stop":
        begin("stop PostgreSQL", undefined, async () => {
          await stopNode(node, FENCE_STOP);
          unansweredSince = undefined;
        });
        return;
      case "repair":
        log.info("This standby does not stream from the primary: looking for the reason");
        streamed = now;
        begin(REPAIR, "catchingup", (signal) => TRANSITIONS.rejoin(node, signal));
        return;
      case "settle":
        if (choresDue && node.server && now >= backOffUntil) {
          choresDue = false;
          choresDone = now;
          begin(CHORES, undefined, (signal) => chores(node, signal), checkpointAfterPromotion);
        }
        return;
    }
  }

  // ---------------------------------------------------------------- one turn

  function noticeServer(now: number): void {
    const { server } = node;
    if (server === undefined || !serverSuspected) return;
    serverSuspected = false;
    if (server.alive()) return;
    node.server = undefined;
    closeLocalDb(node);
    unansweredSince = undefined;
    // what stops it says so when it's done: a report of half of that would only be in the way
    if (node.stopping) return;
    reportWanted = true;
    log.warn(`PostgreSQL has ended unexpectedly (pid ${server.pid})`);
    crash = { at: now };
  }

  /** A keeper without a server: it has just started, or somebody else starts servers here. */
  function findServer(now: number): void {
    if (
      node.server ||
      task ||
      node.state.data !== "ready" ||
      now - lastObserved < policy().heartbeatMs
    )
      return;
    lastObserved = now;
    if (adoptNode(node)) {
      log.info(`Found PostgreSQL running with pid ${livePostmaster(node.config.pgdata)?.pid}`);
      lastObserved = Number.NEGATIVE_INFINITY;
    } else if (contact === "never") crash ??= { at: now };
  }

  function turn(): void {
    if (over) return;
    const now = monotonicMs();
    noticeServer(now);
    findServer(now);
    // crash recovery may take minutes; who is told to stop doesn't wait for its end
    if (task?.name === START && STATE_TRAITS[node.state.goal].postgres === "down") {
      task.controller.abort(new Error("the goal has changed"));
    }
    const fence = fenceAt();
    const crashConsidered =
      crash === undefined || crash.considered === true || now - crash.at >= ASK_TIMEOUT_MS;
    if (closing !== "stopping") {
      const step = nextStep({
        state: node.state.state,
        goal: node.state.goal,
        contact:
          contact === "fresh" && now - lastContact >= policy().networkPartitionTimeoutMs
            ? "lost"
            : contact,
        monitorIsStale,
        fenced: fence !== undefined && now >= fence,
        postgres: postgres(now),
        dataReady: node.state.data === "ready",
        underWay: task?.to,
        crashConsidered,
        adrift: isAdrift(now),
        backingOff: now < backOffUntil,
      });
      // a task without a goal (a start, chores) is short and bounded: only the fence goes before it
      const overtakes = step.do === "fence" || (step.do === "abort" && task?.to !== undefined);
      const allowed =
        closing === undefined ||
        (step.do === "transition" && STATE_TRAITS[step.row[1]].postgres === "down");
      if (allowed && (task === undefined || overtakes)) act(step, now);
    }
    if (node.state.state !== toldState) tellHooks(toldState);
    if (closing === "handing over" && hasHandedOver(now)) {
      finish(node.state.state);
      return;
    }
    if (node.server && !observing && now - lastObserved >= observeEveryMs(now)) void observe(now);
    const reportDue =
      reportWanted || now - lastReportSent >= policy().heartbeatMs + REPORT_SLACK_MS;
    const retrying = contact !== "fresh" && now - lastReportSent < policy().heartbeatMs / 4;
    if (reportDue && !reporting && !retrying && !isDisabled()) void sendReport(now);
    if (options.failFast) checkPatience(now);

    const heartbeat = policy().heartbeatMs;
    const dues = [
      lastObserved + observeEveryMs(now),
      lastReportSent + heartbeat + REPORT_SLACK_MS,
      ...(retrying && reportWanted ? [lastReportSent + heartbeat / 4] : []),
      ...(fence !== undefined ? [fence, cutOffAt()] : []),
      ...(crash && !crashConsidered ? [crash.at + ASK_TIMEOUT_MS] : []),
      ...(now < backOffUntil ? [backOffUntil] : []),
      ...(unansweredSince !== undefined ? [unansweredSince + policy().postgresTimeoutMs] : []),
    ].filter((due) => due > now);
    notifier?.expect(TURN, heartbeat + OVERDUE_MS);
    notifier?.status(statusOf(now));
    clearTimeout(timer);
    timer = setTimeout(turn, Math.max(1, Math.min(...dues, now + heartbeat) - now));
  }

  function checkPatience(now: number): void {
    const limits = options.failFast;
    if (!limits || task) return;
    const { state, goal } = node.state;
    if (state === "init" && goal === "init" && now - started > limits.goalTimeoutMs) {
      finish(
        new AppError(
          "timeout",
          "the monitor's database answers, but nobody assigns this node a goal",
          {
            detail: { waited_ms: limits.goalTimeoutMs },
            hint: "Start the monitor's process with roles/monitor.ts run, then run create again: it continues.",
          },
        ),
      );
    }
    if (
      state === "wait_standby" &&
      goal === "wait_standby" &&
      now - started > limits.joinTimeoutMs
    ) {
      finish(
        new AppError("timeout", "the primary is not ready for a standby", {
          detail: { waited_ms: limits.joinTimeoutMs, primary: upstreamOf(node)?.name },
          hint: "Check that the primary's keeper runs (roles/keeper.ts run), then run create again: it continues.",
        }),
      );
    }
  }

  // ---------------------------------------------------------------- signals

  /** The monitor knows all that it must to let somebody else open, or nobody can be told any more. */
  function hasHandedOver(now: number): boolean {
    if (now >= handOverUntil || contact !== "fresh") return true;
    const { state, goal } = node.state;
    if (task || reporting || reportWanted || acknowledged !== state) return false;
    if (state === "primary" || state === "apply_settings") {
      return crash?.considered === true && (goal === "primary" || goal === "apply_settings");
    }
    return state !== "draining" && state !== "demote_timeout";
  }

  /** Removed while it was away, it takes no part any more: nobody is left who would fence it. */
  function leave(): void {
    if (closing === "stopping") return;
    closing = "stopping";
    task?.controller.abort(new Error("the node was removed"));
    const ended = task?.done ?? Promise.resolve();
    ended
      .then(() => stopNode(node, FENCE_STOP))
      .catch((error: unknown) => log.error(errorText(error)))
      .finally(() => finish("dropped"));
  }

  /** A primary walks to "demoted" before it ends: writes open elsewhere only when it has said so. */
  async function shutDown(): Promise<void> {
    closing = "stopping";
    notifier?.stopping();
    task?.controller.abort(new Error("the keeper stops"));
    await task?.done;
    log.info("Stopping PostgreSQL");
    await stopNode(node, CLEAN_STOP);
    const now = monotonicMs();
    crash = { at: now };
    acknowledged = undefined;
    handOverUntil = now + HAND_OVER_MS;
    closing = "handing over";
    reportWanted = true;
    turn();
  }

  const onStop = (): void =>
    void shutDown().catch((error: unknown) =>
      finish(error instanceof Error ? error : new Error(errorText(error))),
    );
  const onLeave = (): void => finish(node.state.state);
  options.stop.addEventListener("abort", onStop, { once: true });
  options.leave.addEventListener("abort", onLeave, { once: true });
  options.onReload?.(() => {
    log.info("Reloading the settings");
    const read = readSettings();
    const reloaded = node.server && reloadSettings(node);
    reloaded?.catch((error: unknown) => log.warn(errorText(error)));
    notifier?.reloading(Promise.allSettled([read, reloaded]));
    wake();
  });

  const { http } = node.config;
  using _http =
    http === undefined
      ? undefined
      : serveHttp(parseHttpAddress(http), (path, query) => nodeReply(health(), path, query), log);
  try {
    if (!isDisabled()) watchMonitor();
    turn();
    notifier?.ready();
    return await ended.promise;
  } finally {
    over = true;
    notifier?.stopping();
    clearTimeout(timer);
    options.stop.removeEventListener("abort", onStop);
    options.leave.removeEventListener("abort", onLeave);
    task?.controller.abort(new Error("the keeper ends"));
    checkpoints.abort(new Error("the keeper ends"));
    closeLocalDb(node);
    if (node.state.state !== toldState) tellHooks(toldState);
    await hooks?.close(options.leave.aborted ? 0 : HOOKS_END_MS);
    await monitor[Symbol.asyncDispose]();
  }
}

/** What becomes of a hook is told to the monitor too. */
function hooksOf(node: Node, monitor: MonitorClient): Hooks | undefined {
  const { formation, hooksDir, hookTimeoutMs } = node.config;
  if (hooksDir === undefined) return undefined;
  return openHooks({ directory: hooksDir, timeoutMs: hookTimeoutMs }, log, (sentence) => {
    return monitor
      .reportEvent(formation, ownId(node), node.state.identity, sentence)
      .catch((error: unknown) => log.debug(`event not recorded: ${errorText(error)}`));
  });
}
