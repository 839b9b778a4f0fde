/** Files of passwords in libpq's format: `host:port:database:user:password`, one a line. */
import { readFileSync, statSync } from "node:fs";
import { homeDirectory } from "./user.ts";

export type PassfileKey = {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
};

/** Where servers put their Unix socket when nothing else is said; libpq calls these "localhost" in the file. */
const DEFAULT_SOCKET_DIRECTORIES = ["/tmp", "/var/run/postgresql", "/run/postgresql"];

/** A line of such a file; `*` fits whatever is asked. */
export const passfileLine = (
  key: Readonly<Record<keyof PassfileKey, string | number>>,
  password: string,
): string =>
  [key.host, key.port, key.database, key.user, password]
    .map((field) => String(field).replaceAll(/[\\:]/g, "\\$&"))
    .join(":");

/** The file that libpq takes when a connection names none: PGPASSFILE, else ~/.pgpass. */
export const standardPassfile = (): string =>
  process.env["PGPASSFILE"] || `${homeDirectory()}/.pgpass`;

/**
 * The password of the first line that fits; undefined when there is none.
 *
 * As with libpq a file that others may read is not used, and neither is one that isn't a plain file.
 *
 * @see PostgreSQL 15 docs, "The Password File"
 */
export function passwordIn(path: string, key: PassfileKey): string | undefined {
  const text = readPrivate(path);
  return text === undefined ? undefined : findPassword(text, key);
}

/** The password of a line that is known to be the right one. */
export const passwordOfLine = (line: string): string | undefined =>
  splitFields(line)[4] || undefined;

function readPrivate(path: string): string | undefined {
  try {
    const status = statSync(path);
    if (!status.isFile() || (status.mode & 0o077) !== 0) return undefined;
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function findPassword(
  text: string,
  { host, port, database, user }: PassfileKey,
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
