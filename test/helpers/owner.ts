/**
 * Who owns the servers of a test. PostgreSQL refuses to run as root, so a test that root started
 * gives its directories to the OS user `postgres`, as the role scripts do by themselves.
 */
import { chownSync, readFileSync } from "node:fs";
import { userInfo } from "node:os";

export type Owner = { name: string; uid: number; gid: number };

export const isRoot = process.getuid?.() === 0;

/** The OS user of the servers, and the name of their superuser. */
export function serverOwner(): Owner {
  if (!isRoot) {
    const { username, uid, gid } = userInfo();
    // Bun takes the name from the environment, which `setpriv` and the like leave as it was.
    return osUser(uid) ?? { name: username, uid, gid };
  }
  const found = osUser("postgres");
  if (!found) throw new Error("started as root, but there is no OS user postgres");
  return found;
}

/** An OS user of /etc/passwd, by name or number. */
export function osUser(who: string | number): Owner | undefined {
  for (const line of readFileSync("/etc/passwd", "utf8").split("\n")) {
    const [name = "", , uid, gid] = line.split(":");
    if (gid === undefined) continue;
    if (typeof who === "string" ? name === who : Number(uid) === who) {
      return { name, uid: Number(uid), gid: Number(gid) };
    }
  }
  return undefined;
}

/** Gives a path to the servers' owner; nothing to do where we are that user. */
export function giveTo(owner: Owner, path: string): void {
  if (isRoot) chownSync(path, owner.uid, owner.gid);
}
