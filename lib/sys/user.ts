/** Which user of the operating system this process is, and how root becomes the right one. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { AppError } from "./errors.ts";

/** Who runs PostgreSQL on a machine where nothing says otherwise: what packages create. */
const POSTGRES_USER = "postgres";

/** An account of the operating system. */
export type Account = {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
};

/**
 * Makes root the user that PostgreSQL must run as: the owner of `path`, or of the nearest directory above that exists,
 * unless that is root; else the account `postgres`. Any other user stays who they are.
 *
 * For good: groups, uid, HOME, USER and LOGNAME are those of the account, the working directory is "/" (the old one may be
 * closed to it).
 *
 * @throws {AppError} permission, when root finds no account, or when `path` belongs to another user
 */
export function becomeOwnerOf(path: string): void {
  const uid = currentUid();
  const full = resolve(path);
  if (uid !== 0) {
    const owner = existsSync(full) ? statSync(full).uid : uid;
    if (owner === uid) return;
    const [ownerName, user] = [userName(owner), userName(uid)];
    throw new AppError("permission", "the directory belongs to another user", {
      detail: { path: full, owner: ownerName, user },
      hint: `Run this as ${ownerName}: sudo -u ${ownerName} …`,
    });
  }
  const there = nearestExisting(full);
  const owner = statSync(there).uid;
  if (owner === 0 && there === full) {
    throw new AppError("permission", "the directory belongs to root, who may not run PostgreSQL", {
      detail: { path: full },
      hint: `Give it to the user who shall run PostgreSQL (chown ${POSTGRES_USER} ${full}), or name a directory that doesn't exist yet.`,
    });
  }
  const account = owner === 0 ? findAccount(POSTGRES_USER) : findAccount(owner);
  if (account === undefined || account.uid === 0) {
    throw new AppError(
      "permission",
      "PostgreSQL can't run as root, and nothing says as whom it should",
      {
        detail: { path: full, owner: userName(owner) },
        hint: "Run this as the user who shall own the data, or create the user postgres.",
      },
    );
  }
  become(account);
}

/** The home directory of the user that this process runs as. */
export function homeDirectory(): string {
  const home = process.env["HOME"];
  if (home?.startsWith("/")) return home;
  return findAccount(currentUid())?.home ?? "/";
}

/** The name of the user that this process runs as; the number when it has none. */
export function currentUser(): string {
  return userName(currentUid());
}

function currentUid(): number {
  return process.geteuid?.() ?? -1;
}

function become(account: Account): void {
  // Missing in the published types only.
  const { initgroups } = process as { initgroups?: (user: string, group: number) => void };
  initgroups?.(account.name, account.gid);
  process.setgid?.(account.gid);
  process.setuid?.(account.uid);
  process.env["HOME"] = account.home;
  process.env["USER"] = account.name;
  process.env["LOGNAME"] = account.name;
  // Root's own directories are no place for this user's files.
  for (const name of ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"]) {
    if (process.env[name]?.startsWith("/root/") || name === "XDG_RUNTIME_DIR")
      delete process.env[name];
  }
  process.chdir("/");
}

function nearestExisting(path: string): string {
  let at = path;
  while (!existsSync(at) && at !== dirname(at)) at = dirname(at);
  return at;
}

function userName(uid: number): string {
  return findAccount(uid)?.name ?? String(uid);
}

/**
 * Looks an account up by name or uid: /etc/passwd first, then the system's other sources (LDAP and the like, macOS).
 */
export function findAccount(who: string | number): Account | undefined {
  return fromPasswd(readFileSync("/etc/passwd", "utf8"), who) ?? fromSystem(who);
}

function fromPasswd(text: string, who: string | number): Account | undefined {
  for (const line of text.split("\n")) {
    const [name = "", , uid = "", gid = "", , home = ""] = line.split(":");
    if (line.startsWith("#") || gid === "") continue;
    if (typeof who === "string" ? name === who : Number(uid) === who) {
      return { name, uid: Number(uid), gid: Number(gid), home: home || "/" };
    }
  }
  return undefined;
}

function fromSystem(who: string | number): Account | undefined {
  const getent = said(["getent", "passwd", "--", String(who)]);
  if (getent !== undefined) return fromPasswd(getent, who);
  const [name, uid, gid] = ["-un", "-u", "-g"].map((flag) =>
    said(["id", flag, String(who)])?.trim(),
  );
  if (name === undefined || uid === undefined || gid === undefined) return undefined;
  const home = said(["dscl", ".", "-read", `/Users/${name}`, "NFSHomeDirectory"])
    ?.split(": ")[1]
    ?.trim();
  return { name, uid: Number(uid), gid: Number(gid), home: home ?? "/" };
}

function said(command: string[]): string | undefined {
  if (Bun.which(command[0] ?? "") === null) return undefined;
  const { exitCode, stdout } = Bun.spawnSync(command, { stderr: "ignore", timeout: 5000 });
  return exitCode === 0 ? stdout.toString() : undefined;
}
