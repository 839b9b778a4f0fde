/**
 * steady: nothing fails over without need.
 *
 * Monitor and nodes on a host each (network namespaces) of which every one loses 5 % of the packets that it sends, on a
 * machine with twice as many busy processes as cores, and a writer that never stops. Nobody has failed: whoever is
 * replaced, stops itself or is no longer waited for was judged by its slowness. Counts these, and the longest time without
 * an acknowledged write. Ends with 1 when an acknowledged row is lost, or there was a failover with the preset `default`;
 * all logs stay then.
 *
 *   bun test/bench/steady.ts [--minutes 10] [--nodes 3] [--preset default|fast]
 *
 * Needs root, iproute2, nftables and util-linux.
 */
import { cpus } from "node:os";
import { PRESETS } from "../../lib/group/view.ts";
import type { Event } from "../helpers/cluster.ts";
import { findObstacle, NetnsCluster } from "../helpers/netns.ts";
import { type PresetName, usePreset } from "../helpers/preset.ts";
import {
  oneOf,
  parseFlags,
  positiveNumber,
  runScript,
  UsageError,
  wholeNumber,
} from "../helpers/script.ts";
import { nowMs, waitFor } from "../helpers/wait.ts";
import type { Writer } from "../helpers/writer.ts";

const LOSS_PERCENT = 5;
const BUSY_PER_CORE = 2;
const MINUTE_MS = 60_000;
/** The monitor's answers get lost as well. */
const ANSWER_MS = 30_000;
/** From the end of load and losses to a whole group. */
const SETTLE_MS = 60_000;

type Options = { minutes: number; nodes: number; preset: PresetName };

type Counts = { failovers: number; fenced: number; leftOut: number };

async function main(): Promise<number> {
  const { minutes, nodes, preset } = readCommandLine();
  const obstacle = findObstacle();
  if (obstacle !== undefined) throw new UsageError(obstacle);
  const [cpu] = cpus();
  const busy = cpus().length * BUSY_PER_CORE;
  console.log(
    `machine: ${cpus().length} cores, ${cpu?.model.trim()}; ${nodes} nodes, preset ${preset}, ${minutes} minutes with ` +
      `${busy} busy processes and ${LOSS_PERCENT} % of all packets lost`,
  );

  await using cluster = await NetnsCluster.ofHosts("steady", nodes);
  const { network } = cluster;
  const primary = await cluster.healthy(SETTLE_MS);
  const standbys = cluster.nodes.filter((node) => node !== primary);
  await usePreset(cluster, preset, standbys);
  await using writer = await cluster.writer();
  const fromId = await cluster.lastEventId();
  const marks = new Map(cluster.nodes.map((node) => [node, node.mark()]));
  const count = async (): Promise<{ counts: Counts; events: Event[] }> => {
    const events = await waitFor("the monitor's events", ANSWER_MS, () => cluster.events(fromId));
    const logs = cluster.nodes.map((node) => node.log(marks.get(node)));
    const fenced = logs.flatMap((log) => log.match(/this primary stops itself/g) ?? []).length;
    return { counts: { ...countsOf(events), fenced }, events };
  };

  const beganMs = nowMs();
  {
    using load = busyProcesses(busy);
    for (const label of network.labels) network.lose(label, LOSS_PERCENT);
    await eachMinute(minutes, async (minute, sinceMs) => {
      const { counts } = await count();
      console.log(`minute ${minute}: ${said(counts)}, ${writes(writer, sinceMs)}`);
    });
    if (load.ended > 0) throw new Error(`${load.ended} of the busy processes have ended`);
  }
  const longest = writes(writer, beganMs);
  network.quiet();
  const last = await cluster.healthy(SETTLE_MS);
  await writer.stop();
  const { counts, events } = await count();
  const { acknowledged, unknown, lost, unexpected } = await writer.compareWith(last.address);
  console.log(`in all: ${said(counts)}, ${longest}`);
  console.log(
    `rows: ${acknowledged} acknowledged, ${unknown} of unknown fate, ${lost.length} lost, ${unexpected.length} unexpected`,
  );
  const decided = events.filter(({ rule }) => rule !== "");
  for (const { rule, description } of decided) console.log(`  ${rule} ${description}`);
  const isFine =
    lost.length + unexpected.length === 0 && (counts.failovers === 0 || preset !== "default");
  if (!isFine) process.env["PGAF_TEST_KEEP"] = "1";
  return isFine ? 0 : 1;
}

function readCommandLine(): Options {
  const values = parseFlags({
    minutes: { type: "string", default: "10" },
    nodes: { type: "string", default: "3" },
    preset: { type: "string", default: "default" },
  });
  const minutes = positiveNumber("minutes", values.minutes);
  const nodes = wholeNumber("nodes", values.nodes, 2);
  const preset = oneOf("preset", values.preset, Object.keys(PRESETS) as PresetName[]);
  return { minutes, nodes, preset };
}

/** They end with this process, however that ends. */
function busyProcesses(count: number): Disposable & { readonly ended: number } {
  const forever = ["sh", "-c", "while :; do :; done"];
  const children = Array.from({ length: count }, () =>
    Bun.spawn(["setpriv", "--pdeathsig", "KILL", ...forever]),
  );
  return {
    get ended() {
      return children.filter(({ exitCode, signalCode }) => (exitCode ?? signalCode) !== null)
        .length;
    },
    [Symbol.dispose]() {
      for (const child of children) child.kill("SIGKILL");
    },
  };
}

/** @param look called at the end of each minute, and at the end of what is left */
async function eachMinute(
  minutes: number,
  look: (minute: number, sinceMs: number) => Promise<void>,
): Promise<void> {
  const beganMs = nowMs();
  for (let minute = 1; minute < minutes + 1; minute += 1) {
    const untilMs = beganMs + Math.min(minute, minutes) * MINUTE_MS;
    await Bun.sleep(Math.max(0, untilMs - nowMs())); // That nothing happens for so long is what is shown.
    await look(minute, beganMs + (minute - 1) * MINUTE_MS);
  }
}

/** What rules have decided; the other events are reports and remarks. */
function countsOf(events: readonly Event[]): Omit<Counts, "fenced"> {
  const decided = events.filter(({ rule }) => rule !== "");
  const isLeftOut = ({ reported, goal }: Event) =>
    reported === "secondary" && goal === "catchingup";
  return {
    failovers: decided.filter(({ goal }) => goal === "prepare_promotion").length,
    leftOut: decided.filter(isLeftOut).length,
  };
}

const said = ({ failovers, fenced, leftOut }: Counts): string =>
  `${failovers} failovers, ${fenced} primaries stopped themselves, ${leftOut} standbys left out`;

const writes = (writer: Writer, sinceMs: number): string =>
  `${writer.acknowledged} rows acknowledged so far, longest time without ${(writer.longestGapMs(sinceMs) / 1000).toFixed(2)} s`;

await runScript("steady", main);
