/** Passwords, from where libpq takes them. */

import { readFileSync, statSync } from "node:fs";
import { homeDirectory } from "./user.ts";

/**
 * PGPASSWORD, else the first line that fits of the file PGPASSFILE or ~/.pgpass; undefined when there is none.
 *
 * As with libpq a file that others may read is not used, and neither is one that isn't a plain file.
 *
 * @see PostgreSQL 15 docs, "The Password File"
 */
export function passwordFor(target: {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
}): string | undefined {
  const fromEnvironment = process.env["PGPASSWORD"];
  if (fromEnvironment) return fromEnvironment;
  const path = process.env["PGPASSFILE"] || `${homeDirectory()}/.pgpass`;
  const text = readPrivate(path);
  return text === undefined ? undefined : findPassword(text, target);
}

function readPrivate(path: string): string | undefined {
  try {
    const status = statSync(path);
    if (!status.isFile() || (status.mode & 0o077) !== 0) return undefined;
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

/** Where servers put their Unix socket when nothing else is said; libpq calls these "localhost" in the file. */
const DEFAULT_SOCKET_DIRECTORIES = ["/tmp", "/var/run/postgresql", "/run/postgresql"];

function findPassword(
  text: string,
  { host, port, database, user }: Parameters<typeof passwordFor>[0],
): string | undefined {
  const named = DEFAULT_SOCKET_DIRECTORIES.includes(host) ? "localhost" : host;
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("#")) continue;
    const fields = splitFields(line);
    if (fields.length < 5) continue;
    const [lineHost, linePort, lineDatabase, lineUser, password] = fields;
    const fits =
      (lineHost === "*" || lineHost === host || lineHost === named) &&
      (linePort === "*" || linePort === String(port)) &&
      (lineDatabase === "*" || lineDatabase === database) &&
      (lineUser === "*" || lineUser === user);
    if (fits) return password || undefined;
  }
  return undefined;
}

/** Splits at colons; a backslash makes the next character an ordinary one. */
function splitFields(line: string): string[] {
  const fields = [""];
  for (let i = 0; i < line.length; i++) {
    if (line[i] === ":" && fields.length < 5) fields.push("");
    else {
      if (line[i] === "\\" && i + 1 < line.length) i++;
      fields[fields.length - 1] += line[i] ?? "";
    }
  }
  return fields;
}
