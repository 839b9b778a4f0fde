/** A file system of one megabyte that a test can fill, where we may mount one. */
import { closeSync, mkdtempSync, openSync, rmdirSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isRoot, type Owner } from "./owner.ts";

const PAGE = Buffer.alloc(4096, "x");

export type SmallDisk = Disposable & {
  path: string;
  /** Leaves not one page free. */
  fill(): void;
  /** Gives all room back that `fill` took. */
  free(): void;
};

/** @returns the disk, or the reason why there can be none here */
export function mountSmallDisk(owner: Owner): SmallDisk | string {
  if (!isRoot || process.platform !== "linux") return "only root on Linux can mount a small disk";
  const path = mkdtempSync(join(tmpdir(), "pgaf-disk-"));
  const options = `size=1m,mode=0700,uid=${owner.uid},gid=${owner.gid}`;
  const mount = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", options, "pgaf-disk", path]);
  if (mount.exitCode !== 0) {
    rmdirSync(path);
    return `mount: ${mount.stderr.toString().trim()}`;
  }
  const ballast = join(path, "ballast");
  return {
    path,
    fill() {
      const fd = openSync(ballast, "a");
      try {
        for (;;) writeSync(fd, PAGE);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      } finally {
        closeSync(fd);
      }
    },
    free: () => rmSync(ballast, { force: true }),
    [Symbol.dispose]() {
      Bun.spawnSync(["umount", "--lazy", path]);
      rmdirSync(path);
    },
  };
}
