/**
 * A file system of its own in a file: it can be filled, hung, and made to fail.
 *
 * Needs root, loop devices and ext4 (Debian: e2fsprogs).
 */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { isRoot } from "./owner.ts";
import { nowMs } from "./wait.ts";

const SIZE_MB = 2048;
const RELEASE_MS = 2000;
/** Programs by the Debian packages that bring them. */
const PROGRAMS = {
  "mkfs.ext4": "e2fsprogs",
  e2fsck: "e2fsprogs",
  losetup: "mount",
  mount: "mount",
  fsfreeze: "util-linux",
  fallocate: "util-linux",
};

/** @throws {Error} it ended with another code than 0, or ran into the bound */
function run(...command: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { timeout: 20_000 });
  if (exitCode !== 0) {
    throw new Error(`${command.join(" ")} ended with ${exitCode}: ${stderr.toString().trim()}`);
  }
}

export class Disk implements Disposable {
  readonly path: string;
  readonly #image: string;
  #frozen = false;

  /** @param path where it is mounted; the image lies beside it */
  constructor(path: string) {
    this.path = path;
    this.#image = `${path}.img`;
    mkdirSync(path);
    run("truncate", "--size", `${SIZE_MB}M`, this.#image);
    run("mkfs.ext4", "-q", "-F", "-m", "0", this.#image);
    this.#mount();
    rmSync(join(path, "lost+found"), { recursive: true });
  }

  /** Leaves not one block free. */
  fill(): void {
    const { bavail, bsize } = statfsSync(this.path);
    const room = Math.max(0, bavail * bsize - 1024 * 1024);
    if (room > 0) run("fallocate", "--length", String(room), this.#ballast);
    Bun.spawnSync(["dd", "if=/dev/zero", `of=${this.#ballast}2`, "bs=4k"], { timeout: 20_000 });
  }

  /** Gives all room back that `fill` took. */
  free(): void {
    for (const path of [this.#ballast, `${this.#ballast}2`]) rmSync(path, { force: true });
  }

  /** From here on whoever writes waits, and can't be killed. */
  freeze(): void {
    run("fsfreeze", "--freeze", this.path);
    this.#frozen = true;
  }

  thaw(): void {
    if (this.#frozen) run("fsfreeze", "--unfreeze", this.path);
    this.#frozen = false;
  }

  /** What the kernel does after an error of the device: read-only, until `repair`. */
  fail(): void {
    const device = this.#device();
    writeFileSync(`/sys/fs/ext4/${basename(device)}/trigger_fs_error`, "chaos\n");
  }

  /** Nobody may have a file on it open. */
  repair(): void {
    run("umount", this.path);
    this.#awaitRelease();
    const { exitCode, stderr } = Bun.spawnSync(["e2fsck", "-p", "-f", this.#image], {
      timeout: 60_000,
    });
    if (exitCode > 1) throw new Error(`e2fsck ended with ${exitCode}: ${stderr}`);
    this.#mount();
  }

  [Symbol.dispose](): void {
    this.thaw();
    remove(this.path);
  }

  get #ballast(): string {
    return join(this.path, "ballast");
  }

  /**
   * A mount namespace that was made meanwhile keeps what it has copied: one of `ip -n`, by another test say, for some
   * milliseconds, a container's for good.
   */
  #awaitRelease(): void {
    const deadlineMs = nowMs() + RELEASE_MS;
    for (;;) {
      const device = Bun.spawnSync(["losetup", "--associated", this.#image]).stdout.toString();
      if (device === "") return;
      if (nowMs() > deadlineMs) {
        throw new Error(`somebody else still has ${this.path} mounted: ${device}`);
      }
      Bun.sleepSync(20);
    }
  }

  #mount(): void {
    // noatime: looking at a hung file system doesn't hang.
    run("mount", "-o", "loop,noatime,errors=remount-ro", this.#image, this.path);
  }

  #device(): string {
    const found = mounts().find(({ path }) => path === this.path);
    if (!found) throw new Error(`nothing is mounted at ${this.path}`);
    return found.device;
  }
}

/** @returns why there can be no such disks here; undefined where there can */
export function diskObstacle(): string | undefined {
  if (!isRoot || process.platform !== "linux") return "disks in files need root on Linux";
  const missing = Object.entries(PROGRAMS).filter(([program]) => Bun.which(program) === null);
  if (missing.length > 0)
    return `missing: ${missing.map(([program, debian]) => `${program} (${debian})`).join(", ")}`;
  const directory = mkdtempSync(join(tmpdir(), "pgaf-probe-"));
  try {
    using disk = new Disk(join(directory, "disk"));
    disk.fail();
    disk.repair();
    return undefined;
  } catch (error) {
    return `no disks in files here: ${error}`;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const mounts = (): { device: string; path: string }[] =>
  readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .map((line) => ({ device: line.split(" ")[0] ?? "", path: line.split(" ")[1] ?? "" }));

/** What is mounted below a directory, also by a process that was killed, with its image. */
export function unmountBelow(directory: string): void {
  for (const { path } of mounts()) {
    if (!path.startsWith(`${directory}/`)) continue;
    Bun.spawnSync(["fsfreeze", "--unfreeze", path]);
    remove(path);
  }
}

function remove(path: string): void {
  Bun.spawnSync(["umount", "--lazy", path]);
  if (existsSync(`${path}.img`)) rmSync(`${path}.img`);
}
