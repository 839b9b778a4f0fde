/**
 * A cluster that faults are drawn for: each node on a host with a disk and a clock of its own, and
 * a service manager that starts again whatever dies, as systemd would.
 */
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Disk, unmountBelow } from "../../helpers/disk.ts";
import { NetnsCluster } from "../../helpers/netns.ts";
import { Network } from "../../helpers/network.ts";
import { giveTo } from "../../helpers/owner.ts";
import { isAlive, killUnder, signal } from "../../helpers/processes.ts";
import type { Service } from "../../helpers/service.ts";
import { nowMs, waitFor } from "../../helpers/wait.ts";

const FAKETIME = [
  "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
  "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
/** As systemd's RestartSec in our units. */
const RESTART_MS = 200;

export class ChaosCluster extends NetnsCluster {
  readonly #disks = new Map<string, Disk>();
  readonly #faketime: string | undefined;
  /** Hosts without power, and services that died: when they may be started again. */
  readonly #off = new Set<string>();
  readonly #restartAtMs = new Map<string, number>();
  /** Exit codes of services that ended by themselves, by label. */
  readonly exits: { label: string; code: number }[] = [];
  #managing: Promise<void> | undefined;
  #ending = false;

  private constructor(faketime: string | undefined) {
    super(`chaos${process.pid}`, new Network());
    this.#faketime = faketime;
  }

  /** Monitor and nodes, all running and looked after. */
  static async start(count: number): Promise<ChaosCluster> {
    removeLeftovers();
    const faketime = FAKETIME.find((path) => existsSync(path));
    if (!faketime) console.error("clocks don't jump here: libfaketime is missing (faketime)");
    const cluster = new ChaosCluster(faketime);
    cluster.monitor.env = { ...cluster.monitor.env, ...cluster.#clock("monitor") };
    await cluster.setUp(count);
    cluster.#managing = cluster.#manage();
    return cluster;
  }

  override addNode(label: string, flags: readonly string[] = []): Service {
    const disk = new Disk(join(this.base, `${label}.disk`));
    this.#disks.set(label, disk);
    giveTo(this.owner, disk.path);
    const env = { XDG_DATA_HOME: join(disk.path, "share"), ...this.#clock(label) };
    return super.addNode(label, flags, { env, data: disk.path });
  }

  get clocksCanJump(): boolean {
    return this.#faketime !== undefined;
  }

  get services(): Service[] {
    return [this.monitor, ...this.nodes];
  }

  service(label: string): Service {
    const found = this.services.find((service) => service.label === label);
    if (!found) throw new Error(`no service ${label}`);
    return found;
  }

  disk(label: string): Disk {
    const found = this.#disks.get(label);
    if (!found) throw new Error(`${label} has no disk`);
    return found;
  }

  /** What the host's wall clock shows besides the true time, in seconds; its monotonic clocks stay. */
  setClock(label: string, seconds: number): void {
    writeFileSync(this.#clockFile(label), `${seconds < 0 ? "" : "+"}${seconds}\n`);
  }

  /** The network first: whoever looks finds a host that doesn't answer, not a process that has died. */
  cutPower(label: string): void {
    this.#off.add(label);
    this.network.setPort(label, "down");
    for (let tries = 0; tries < 20; tries += 1) {
      const alive = this.network.processesOn(label);
      if (alive.length === 0) return;
      for (const pid of alive) signal(pid, "SIGKILL");
    }
  }

  /** Whatever still runs in the kernel, as on a hung disk, ends first: a host has one boot at a time. */
  async restorePower(label: string): Promise<void> {
    await this.dead(label);
    this.network.setPort(label, "up");
    this.#restartAtMs.delete(label);
    this.#off.delete(label);
  }

  async dead(label: string): Promise<void> {
    await waitFor(`the last process on ${label} to end`, 20_000, () => {
      for (const pid of this.network.processesOn(label)) signal(pid, "SIGKILL");
      return this.network.processesOn(label).length === 0;
    });
  }

  /** As a pause of a virtual machine. */
  freeze(label: string): void {
    this.freezeHost(this.service(label));
  }

  thaw(label: string): void {
    this.thawHost(this.service(label));
  }

  async stopManaging(): Promise<void> {
    this.#ending = true;
    await this.#managing;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.stopManaging();
    for (const disk of this.#disks.values()) {
      disk.thaw();
      disk.free();
    }
    for (const { label } of this.services) {
      this.thaw(label);
      this.network.setPort(label, "up");
    }
    this.network.quiet();
    await super[Symbol.asyncDispose]();
  }

  protected override unmountAll(): void {
    for (const disk of this.#disks.values()) disk[Symbol.dispose]();
  }

  async #manage(): Promise<void> {
    while (!this.#ending) {
      for (const service of this.services) this.#look(service);
      await Bun.sleep(50);
    }
  }

  #look(service: Service): void {
    const { label, process: role } = service;
    if (role?.running || this.#off.has(label)) return;
    const atMs = this.#restartAtMs.get(label);
    if (atMs === undefined) {
      this.#restartAtMs.set(label, nowMs() + RESTART_MS);
      if (role && role.exitCode !== null) this.exits.push({ label, code: role.exitCode });
    } else if (nowMs() >= atMs) {
      this.#restartAtMs.delete(label);
      service.start();
    }
  }

  #clock(label: string): Record<string, string> {
    if (this.#faketime === undefined) return {};
    this.setClock(label, 0);
    return {
      LD_PRELOAD: this.#faketime,
      FAKETIME_TIMESTAMP_FILE: this.#clockFile(label),
      FAKETIME_CACHE_DURATION: "1",
      DONT_FAKE_MONOTONIC: "1",
    };
  }

  #clockFile(label: string): string {
    return join(this.base, `${label}.clock`);
  }
}

/** What each killed process with a clock of its own leaves; a later one with its pid may belong to another user, and fails. */
export function removeClocks(): void {
  const folder = "/dev/shm";
  if (!existsSync(folder)) return;
  for (const name of readdirSync(folder)) {
    const [, pid] = /^(?:sem\.)?faketime_(?:sem|shm)_(\d+)$/.exec(name) ?? [];
    if (pid !== undefined && !isAlive(Number(pid))) rmSync(join(folder, name), { force: true });
  }
}

/** In the directory of a run that found something, which stays. */
export const FOUND = "violations.txt";

/** What a run left that was killed: processes, mounts, directories. Its hosts are removed by `Network`. */
export function removeLeftovers(): void {
  removeClocks();
  for (const name of readdirSync(tmpdir())) {
    const [, pid] = /^pgaf-chaos(\d+)-/.exec(name) ?? [];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const base = join(tmpdir(), name);
    if (existsSync(join(base, FOUND))) continue;
    killUnder(base);
    unmountBelow(base);
    rmSync(base, { recursive: true, force: true });
  }
}
