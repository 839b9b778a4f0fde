/** Services that see other directories under some paths than everybody else, as on hosts of their own. */
import { isRoot } from "./owner.ts";
import { HERE, type Place } from "./service.ts";
import { within } from "./wait.ts";

export type PrivateMounts = Disposable & { place: Place };

/** @returns why there can be none here; undefined where there can */
export function mountObstacle(): string | undefined {
  if (!isRoot || process.platform !== "linux") return "mount namespaces need root on Linux";
  const missing = ["unshare", "nsenter"].filter((program) => Bun.which(program) === null);
  return missing.length > 0 ? `${missing.join(" and ")} missing (util-linux)` : undefined;
}

/**
 * A mount namespace, which ends with the last process in it.
 *
 * @param binds by path: the directory that is seen there
 */
export async function privateMounts(
  binds: Readonly<Record<string, string>>,
): Promise<PrivateMounts> {
  const mounts = Object.entries(binds).flatMap(([path, directory]) => [directory, path]);
  const script = 'set -e; while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done; echo; cat';
  const holder = Bun.spawn(
    ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", ...mounts],
    { stdin: "pipe", stdout: "pipe", stderr: "inherit", cwd: "/" },
  );
  const { done } = await within(5000, "the mounts", holder.stdout.getReader().read());
  if (done) throw new Error("could not mount in a namespace");
  return {
    place: { ...HERE, prefix: ["nsenter", `--mount=/proc/${holder.pid}/ns/mnt`] },
    [Symbol.dispose]: () => holder.kill("SIGKILL"),
  };
}
