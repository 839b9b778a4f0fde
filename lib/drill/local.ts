/** Which processes of this machine belong to a node: found through its server, so that no other one's can be meant. */
import { readlinkSync } from "node:fs";
import { isPostgres, listProcesses, type Process, readProcess, titleOf } from "../pg/processes.ts";
import { namesIn } from "../sys/files.ts";
import { lockHolder } from "../sys/lock.ts";
import { openDb, type Target } from "../sys/sql.ts";

/** Whether this user may end it, stop it and let it go on. */
function isOurs({ pid }: Process): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

/**
 * The postmaster of the server that answers there, when it is a process of this machine: the parent of our own session,
 * which a process of another machine (or container) with the same number can't be, since its title names our port.
 *
 * @returns undefined: it runs elsewhere, or is another user's
 */
export async function findPostmaster(target: Target): Promise<Process | undefined> {
  await using db = openDb(target);
  const [row] = await db.query("select pg_backend_pid() as pid, inet_client_port() as port");
  const session = readProcess(Number(row?.["pid"]));
  if (session === undefined || !isPostgres(session)) return undefined;
  if (!titleOf(session.pid).includes(`(${row?.["port"]})`)) return undefined;
  const parent = readProcess(session.parentPid);
  return parent !== undefined && isPostgres(parent) && isOurs(parent) ? parent : undefined;
}

const linkOf = (path: string): string => {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
};

/**
 * The keeper beside a server of this machine: who holds the lock of its data directory, wherever that file lies.
 *
 * @returns undefined: none runs, it is another user's, or the system has no /proc
 */
export function findKeeper(postmaster: Process): Process | undefined {
  const pgdata = linkOf(`/proc/${postmaster.pid}/cwd`);
  if (pgdata === "") return undefined;
  const suffix = `/pg_auto_failover${pgdata}/lock`;
  return listProcesses().find(({ pid }) =>
    namesIn(`/proc/${pid}/fd`)
      .map((fd) => linkOf(`/proc/${pid}/fd/${fd}`))
      .some((path) => path.endsWith(suffix) && lockHolder(path) === pid),
  );
}
