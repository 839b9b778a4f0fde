/**
 * The hosts of one system: a network namespace and a cgroup each, plugged into one switch.
 *
 * The cgroup is what makes a host of it: all that runs there can be frozen, or killed, in one go,
 * whatever has started it. Needs a cgroup2 mount (`cgroup.freeze`, `cgroup.kill`: Linux 5.14).
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { Network } from "../../helpers/network.ts";
import type { Place } from "../../helpers/service.ts";

/** Killed processes are gone from their cgroup within this time. */
const EMPTY_MS = 5000;

/** Where the machine's one cgroup2 tree is mounted, if it is. */
export function cgroupRoot(): string | undefined {
  const line = readFileSync("/proc/mounts", "utf8")
    .split("\n")
    .find((each) => each.split(" ")[2] === "cgroup2");
  return line?.split(" ")[1];
}

export class Rack extends Network {
  /** Enters the host's cgroup and its network; a command that is put behind it runs there. */
  override host(label: string): Place {
    const { host, prefix } = super.host(label);
    const cgroup = this.#cgroup(label);
    if (!existsSync(cgroup)) mkdirSync(cgroup);
    const join = ["sh", "-c", `echo $$ >${cgroup}/cgroup.procs && exec "$@"`, "sh"];
    return { host, prefix: [...join, ...prefix] };
  }

  override processesOn(label: string): number[] {
    return processesOf(this.#cgroup(label));
  }

  freeze(label: string): void {
    writeFileSync(join(this.#cgroup(label), "cgroup.freeze"), "1");
  }

  thaw(label: string): void {
    writeFileSync(join(this.#cgroup(label), "cgroup.freeze"), "0");
  }

  /** `kill -9` of all that runs on the host, at once; a host that a failed set-up has removed has nothing. */
  kill(label: string): void {
    const cgroup = this.#cgroup(label);
    if (existsSync(cgroup)) writeFileSync(join(cgroup, "cgroup.kill"), "1");
  }

  /** Kills whatever still runs on the hosts, and removes them. */
  override [Symbol.dispose](): void {
    removeCgroups((name) => name.startsWith(cgroupOf(this.name, "")));
    super[Symbol.dispose]();
  }

  #cgroup(label: string): string {
    return join(cgroupRoot() ?? "", cgroupOf(this.name, label));
  }
}

/** Another test of this machine may have cgroups for hosts of its own. */
const cgroupOf = (network: string, label: string): string => `race-${network}-${label}`;

/** What a run left whose process was killed; its namespaces go when the next network is made. */
export function removeLeftRacks(): void {
  removeCgroups((name) => {
    const pid = /^race-pgaf(\d+)n\d+-/.exec(name)?.[1];
    return pid !== undefined && !existsSync(`/proc/${pid}`);
  });
}

/** @throws {Error} processes outlive their SIGKILL */
function removeCgroups(isOurs: (name: string) => boolean): void {
  const root = cgroupRoot() ?? "";
  const found = readdirSync(root)
    .filter(isOurs)
    .map((name) => join(root, name));
  for (const cgroup of found) writeFileSync(join(cgroup, "cgroup.kill"), "1");
  const deadlineMs = performance.now() + EMPTY_MS;
  for (const cgroup of found) {
    while (processesOf(cgroup).length > 0 && performance.now() < deadlineMs) Bun.sleepSync(5);
    removeEmpty(cgroup, deadlineMs);
  }
}

/** A dead process holds its cgroup for a moment after it's out of the list. */
function removeEmpty(cgroup: string, deadlineMs: number): void {
  for (;;) {
    try {
      rmdirSync(cgroup);
      return;
    } catch (error) {
      if (performance.now() >= deadlineMs) throw error;
      Bun.sleepSync(5);
    }
  }
}

function processesOf(cgroup: string): number[] {
  const file = join(cgroup, "cgroup.procs");
  if (!existsSync(file)) return [];
  return readFileSync(file, "utf8").split("\n").filter(Boolean).map(Number);
}
