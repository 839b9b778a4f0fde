/** The keeper's word to the monitor, and what it's told: a report each heartbeat, or when there is news. */
import type { Policy } from "../group/view.ts";
import { openMonitor, waitsForTestimony } from "../monitor/client.ts";
import type { Answer, Report } from "../shapes.ts";
import { monotonicMs } from "../sys/clock.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { OVERDUE_MS } from "../sys/notify.ts";
import type { MonitorContact } from "./contact.ts";
import { tellingTo } from "./heartbeat.ts";
import type { LoopState } from "./loop_state.ts";
import { fencedAfterMs, log, ownId, peers, receiverTimeoutMs, save, syncInForce } from "./node.ts";
import type { Observer } from "./observer.ts";
import { writeSecret } from "./passfile.ts";
import { countsAsRunning, isNews, reportOf, sentenceOf } from "./report.ts";
import { rereadSettings, settleMembership } from "./settings.ts";
import { rememberer, testimonyOf } from "./testimony.ts";

const REPORT_MAX_MS = 1000;
/** No longer than a heartbeat, nor a second: over another connection the next report may get through before the fence closes. */
const reportTimeoutMs = ({ heartbeatMs }: Policy): number =>
  Math.max(250, Math.min(heartbeatMs, REPORT_MAX_MS));
/**
 * A session that comes up too slowly is given twice the time at the next attempt, up to 16 times: a monitor
 * that all keepers turn to anew at once would otherwise begin with all of them again and again.
 */
const DOUBLED_MAX = 4;
/** The report goes out with the observation; this much later it goes without. */
const REPORT_SLACK_MS = 150;
const REPORT = "the report to the monitor";

export type Reporter = AsyncDisposable & {
  /** The monitor offers older goals than were seen before. */
  readonly monitorIsStale: boolean;
  readonly isReporting: boolean;
  /** In which state the monitor has last heard that PostgreSQL is down. */
  acknowledged: string | undefined;
  readonly counts: {
    readonly answered: number;
    readonly failed: number;
    readonly tookMs: number;
  };
  /** An operator has told the keeper to go on without a monitor. */
  readonly isDisabled: () => boolean;
  /** Listens for hints of the monitor. */
  readonly watch: () => void;
  /** Reports beside everything else, when that is due. */
  readonly report: (nowMs: number) => void;
  /** When the next report is due. */
  readonly dueMs: (nowMs: number) => readonly number[];
  readonly readSettings: () => Promise<void>;
  /** Has the monitor record what has happened here; doesn't throw. */
  readonly recordEvent: (sentence: string) => Promise<void>;
};

/**
 * @param options failFast: the first failure ends the loop; leave: the node was removed from its group
 */
export function makeReporter(
  loop: LoopState,
  contact: MonitorContact,
  observer: Observer,
  options: { readonly failFast: boolean; readonly leave: () => void },
): Reporter {
  const { node, policy, notifier } = loop;
  /** The monitor of the settings, and what is known of what it has been told and has told. */
  const connect = () => {
    const monitor = openMonitor(node.config.monitor, {
      onClose: loop.wake,
      connectTimeoutMs: REPORT_MAX_MS * 2 ** DOUBLED_MAX,
    });
    return {
      monitor,
      tell: tellingTo(monitor, node.config.formation),
      remember: rememberer(node, monitor),
    };
  };
  let line = connect();
  let monitorIsStale = false;
  let isReporting = false;
  let doubled = 0;
  let sequence = 0n;
  let acknowledged: string | undefined;
  /** One that could not be written, which is tried again with each report, and said once. */
  let refusedSecret: string | undefined;
  let lastSaid = "";
  const counts = { answered: 0, failed: 0, tookMs: 0 };

  const isDisabled = (): boolean => node.config.membership === "disabled";
  const isRetrying = (nowMs: number): boolean =>
    contact.standing !== "fresh" && nowMs - loop.reportSentMs < policy().heartbeatMs / 4;

  async function sendReport(nowMs: number): Promise<void> {
    isReporting = true;
    notifier?.expect(REPORT, OVERDUE_MS);
    loop.reportWanted = false;
    loop.reportSentMs = nowMs;
    sequence += 1n;
    const seen = node.observation;
    const report = reportOf({
      state: node.state,
      seen,
      running: countsAsRunning(node.state.state, observer.postgres(nowMs), node.stopping),
      sequence,
      startFailures: loop.startFailures,
      syncInForce: syncInForce(node),
      shutdown: node.shutdown,
      fenceMs: fencedAfterMs(policy()),
      secretId: node.secret?.id,
    });
    if (loop.crash && !report.pgIsRunning) loop.crash.asked ??= report.reportNo;
    const { steady, whole } = sentenceOf(report, node.config.formation, {
      state: node.state,
      seen,
    });
    log[steady === lastSaid ? "debug" : "info"](whole);
    lastSaid = steady;
    const asked = line;
    try {
      const answer = await asked.tell(
        ownId(node),
        report,
        reportTimeoutMs(policy()) * 2 ** doubled,
      );
      doubled = 0;
      if (asked !== line) return;
      counts.answered += 1;
      counts.tookMs += monotonicMs() - nowMs;
      const { counts: isValid, before } = contact.answered(nowMs);
      if (isValid) {
        if (before === "lost") log.info("The monitor answers again");
        // only from here on can the monitor have considered a crash
        if (before !== "fresh" && loop.crash) loop.crash.atMs = monotonicMs();
      }
      if (loop.over) return;
      const isSame = answer === node.answer;
      take(answer);
      contact.remember();
      if (!monitorIsStale) {
        settleMembership(node);
        asked.remember(isSame);
      }
      if (!report.pgIsRunning) acknowledged = report.state;
      if (report.state === "dropped") loop.finish("dropped");
    } catch (error) {
      if (asked !== line) return;
      if (error instanceof AppError && error.kind === "dropped") {
        // an operator who takes the node out of its group has said so in the settings before
        await readSettings();
        if (asked !== line) return;
        log.error(errorText(error));
        options.leave();
        return;
      }
      counts.failed += 1;
      doubled = asked.monitor.isSlow ? Math.min(doubled + 1, DOUBLED_MAX) : 0;
      if (contact.standing !== "lost") log.warn(errorText(error));
      contact.lose();
      if (loop.crash && contact.standing === "lost") loop.crash.considered = true;
      if (options.failFast && error instanceof Error) loop.finish(error);
      if (waitsForTestimony(error)) await testify(report);
    } finally {
      isReporting = false;
      notifier?.met(REPORT);
      loop.wake();
    }
  }

  /** A hint that something has changed: read again; correctness never depends on it. */
  function watch(): void {
    line.monitor
      .hear((payload) => {
        const { crash } = loop;
        const asked = crash?.considered === true ? undefined : crash?.asked;
        if (isNews(payload, node.config.formation, node.state, peers(node), asked)) {
          loop.reportWanted = true;
          loop.wake();
        }
      })
      .catch((error: unknown) => log.debug(`LISTEN: ${errorText(error)}`));
  }

  /** Whatever the monitor before says from here on is void; goals that were heard of stay. */
  function changeMonitor(): void {
    const before = line.monitor;
    line = connect();
    contact.lose();
    loop.reportWanted = true;
    if (isDisabled()) log.info("Going on without a monitor");
    else {
      log.info("Turning to another monitor, or to the same at another address");
      watch();
    }
    const closed = Promise.resolve(before[Symbol.asyncDispose]());
    closed.catch((error: unknown) => log.debug(errorText(error)));
  }

  async function readSettings(): Promise<void> {
    try {
      const changed = await rereadSettings(node);
      if (changed.has("monitor") || changed.has("membership")) changeMonitor();
      loop.choresDue = true;
    } catch (error) {
      log.error(
        `The settings are not taken up, the keeper goes on with those that it had: ${errorText(error)}`,
      );
    }
    loop.wake();
  }

  /** The monitor has lost its memory, and records nothing before it has heard what each keeper knows. */
  async function testify(report: Report): Promise<void> {
    try {
      await line.monitor.testify(node.state.identity, testimonyOf(node, report));
    } catch (error) {
      log.warn(errorText(error));
    }
  }

  /** What streams goes on with another password too: it's asked for when a connection is made. */
  function takeSecret({ secret }: Answer): void {
    if (secret === undefined) return;
    try {
      writeSecret(node.paths, secret);
      node.secret = secret;
      log.info("Took over the group's replication password");
      loop.choresDue = true;
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
      loop.choresDue = true;
    }
    if (node.answer?.sync.version !== answer.sync.version) loop.choresDue = true;
    if (receiverTimeoutMs(node.policy) !== receiverTimeoutMs(answer.policy)) loop.choresDue = true;
    node.answer = answer;
    node.policy = answer.policy;
    const { crash } = loop;
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
        loop.backOffUntilMs = Number.NEGATIVE_INFINITY;
        // where nothing is to be done for it, the monitor waits to hear that this goal is known
        if (node.state.state === answer.goal) loop.reportWanted = true;
      } catch (error) {
        log.error(errorText(error));
      }
    }
  }

  return {
    get monitorIsStale() {
      return monitorIsStale;
    },
    get isReporting() {
      return isReporting;
    },
    get acknowledged() {
      return acknowledged;
    },
    set acknowledged(state) {
      acknowledged = state;
    },
    counts,
    isDisabled,
    watch,
    report(nowMs) {
      const isDue =
        loop.reportWanted || nowMs - loop.reportSentMs >= policy().heartbeatMs + REPORT_SLACK_MS;
      if (isDue && !isReporting && !isRetrying(nowMs) && !isDisabled()) void sendReport(nowMs);
    },
    dueMs(nowMs) {
      const { heartbeatMs } = policy();
      const isAgain = isRetrying(nowMs) && loop.reportWanted;
      return [
        loop.reportSentMs + heartbeatMs + REPORT_SLACK_MS,
        ...(isAgain ? [loop.reportSentMs + heartbeatMs / 4] : []),
      ];
    },
    readSettings,
    recordEvent: (sentence) =>
      line.monitor
        .reportEvent(node.config.formation, ownId(node), node.state.identity, sentence)
        .catch((error: unknown) => log.debug(`event not recorded: ${errorText(error)}`)),
    [Symbol.asyncDispose]: async () => line.monitor[Symbol.asyncDispose](),
  };
}
