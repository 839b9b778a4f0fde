/** What the agents of a system cost while nothing happens. */
import { readFileSync } from "node:fs";
import { nowMs } from "../../helpers/wait.ts";
import type { Site } from "./site.ts";
import type { System } from "./system.ts";

/** Clock ticks of /proc/PID/stat in a second; the kernel shows 100 to user space everywhere. */
const TICKS_A_SECOND = 100;
/** Of /proc/PID/statm. */
const PAGE_BYTES = 4096;
/** Those of the data nodes are no part of a system's cost; repmgr's sshd is any host's. */
const NOT_AGENTS = new Set(["postgres", "sshd"]);

/** CPU in seconds a minute; memory is resident, in MB. */
export type IdleCost = {
  /** Mean of the data nodes: the agent, without its PostgreSQL. */
  readonly nodeCpu: number;
  readonly nodeMb: number;
  /** Monitor or etcd host, with the monitor's PostgreSQL (its memory shared out, not counted double). */
  readonly witnessCpu: number;
  readonly witnessMb: number;
};

type Sample = { readonly cpuSeconds: number; readonly mb: number };

/** Watches all systems for the same time. */
export async function idleCosts(
  contestants: readonly { readonly site: Site; readonly system: System }[],
  seconds: number,
): Promise<IdleCost[]> {
  const sample = () => contestants.map(({ site, system }) => sampleOf(site, system));
  const before = sample();
  const startMs = nowMs();
  await Bun.sleep(seconds * 1000); // The window is what is measured.
  const minutes = (nowMs() - startMs) / 60_000;
  return sample().map((after, index) => {
    const cpu = (what: "node" | "witness") =>
      (after[what].cpuSeconds - (before[index]?.[what].cpuSeconds ?? 0)) / minutes;
    return {
      nodeCpu: cpu("node"),
      nodeMb: after.node.mb,
      witnessCpu: cpu("witness"),
      witnessMb: after.witness.mb,
    };
  });
}

function sampleOf(site: Site, { nodes, witness }: System): { node: Sample; witness: Sample } {
  const agents = nodes.map(({ label }) =>
    sum(site.rack.processesOn(label).filter((pid) => !NOT_AGENTS.has(nameOf(pid)))),
  );
  const share = (what: keyof Sample) =>
    agents.reduce((total, each) => total + each[what], 0) / nodes.length;
  return {
    node: { cpuSeconds: share("cpuSeconds"), mb: share("mb") },
    witness: sum(witness === undefined ? [] : site.rack.processesOn(witness)),
  };
}

function sum(pids: readonly number[]): Sample {
  let cpuSeconds = 0;
  let mb = 0;
  for (const pid of pids) {
    try {
      const one = { cpuSeconds: cpuOf(pid), mb: memoryOf(pid) };
      cpuSeconds += one.cpuSeconds;
      mb += one.mb;
    } catch {
      // It ended while we looked; its parent has its time.
    }
  }
  return { cpuSeconds, mb };
}

function nameOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim();
  } catch {
    return "";
  }
}

/** User and system time so far, with that of children which have ended. */
function cpuOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const ticks = fields.slice(11, 15).reduce((total, field) => total + Number(field), 0);
  return ticks / TICKS_A_SECOND;
}

/** PostgreSQL's processes share most of their memory: each is charged its part. */
function memoryOf(pid: number): number {
  if (nameOf(pid) === "postgres") {
    const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
    return Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) / 1024;
  }
  const [, resident] = readFileSync(`/proc/${pid}/statm`, "utf8").split(" ");
  return (Number(resident) * PAGE_BYTES) / 1024 ** 2;
}
