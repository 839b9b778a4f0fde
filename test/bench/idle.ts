/**
 * idle: what a monitor and two keepers cost when nothing happens.
 *
 * Prints resident memory and CPU time of each role's process over a minute (Linux only). Ends with
 * 1 when a keeper takes more than 60 MB or more than 0.3 s CPU a minute.
 *
 *   bun test/bench/idle.ts [--seconds 60]
 */
import { readFileSync } from "node:fs";
import { cpus } from "node:os";
import { Cluster } from "../helpers/cluster.ts";
import { parseFlags, positiveNumber, runScript } from "../helpers/script.ts";
import type { Service } from "../helpers/service.ts";
import { nowMs } from "../helpers/wait.ts";

const MEMORY_LIMIT_MB = 60;
const CPU_LIMIT_S = 0.3;
/** Clock ticks of /proc/PID/stat in a second; the kernel shows 100 to user space everywhere. */
const TICKS_A_SECOND = 100;

async function main(): Promise<number> {
  const values = parseFlags({ seconds: { type: "string", default: "60" } });
  const seconds = positiveNumber("seconds", values.seconds);
  const [cpu] = cpus();
  console.log(`machine: ${cpus().length} cores, ${cpu?.model.trim()}; ${seconds} s of idling`);

  await using cluster = await Cluster.twoNodes("idle");
  const services = [cluster.monitor, ...cluster.nodes];
  const before = services.map((service) => cpuSeconds(pidOf(service)));
  const startMs = nowMs();
  await Bun.sleep(seconds * 1000); // The window is what is measured.
  const minutes = (nowMs() - startMs) / 60_000;

  let over = 0;
  for (const [index, service] of services.entries()) {
    const pid = pidOf(service);
    const cpuPerMinute = (cpuSeconds(pid) - (before[index] ?? 0)) / minutes;
    const memory = residentMb(pid);
    const keeper = service.role === "keeper";
    const fits = !keeper || (memory <= MEMORY_LIMIT_MB && cpuPerMinute <= CPU_LIMIT_S);
    if (!fits) over += 1;
    console.log(
      `${service.label}: ${memory.toFixed(1)} MB resident, ${cpuPerMinute.toFixed(2)} s CPU a minute${fits ? "" : "  (over the limit)"}`,
    );
  }
  return over === 0 ? 0 : 1;
}

function pidOf({ label, process: role }: Service): number {
  if (!role?.running) throw new Error(`${label} doesn't run`);
  return role.pid;
}

function residentMb(pid: number): number {
  const [, kilobytes] =
    /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kilobytes) / 1024;
}

/** User and system time so far. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND;
}

await runScript("idle", main);
