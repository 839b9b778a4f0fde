/** Where PostgreSQL's programs are, and which version they have. */
import { readdirSync, realpathSync, statSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { AppError } from "../sys/errors.ts";
import { run } from "../sys/exec.ts";

export type Binaries = {
  readonly bindir: string;
  readonly major: number;
  /** e.g. "15.18", "18beta1" */
  readonly version: string;
};

/**
 * Reloadable primary_conninfo, which fencing a standby needs, came with 13. What is taken for proof of a server's
 * processes (`pg/local.ts`) has been looked up, and tested, for each version up to 18.
 */
const MAJORS = { min: 13, max: 18 };
const SUPPORTED = `${MAJORS.min} to ${MAJORS.max}`;
/**
 * By major version, the first release in which a server that has just started lets no commit pass without its
 * synchronous standbys: before, none waited until the checkpointer had begun.
 *
 * @see PostgreSQL's release notes of 2025-05-08, "synchronous_standby_names immediately after startup"
 */
const WAITS_FROM_START: Readonly<Record<number, number>> = { 13: 21, 14: 18, 15: 13, 16: 9, 17: 5 };
const VERSION_TIMEOUT_MS = 5000;
/** Folders of packages: Debian's, the PostgreSQL project's RPMs, Homebrew's on both processors. */
const PACKAGED = [
  { parent: "/usr/lib/postgresql", name: /^\d+$/ },
  { parent: "/usr", name: /^pgsql-\d+$/ },
  { parent: "/opt/homebrew/opt", name: /^postgresql@\d+$/ },
  { parent: "/usr/local/opt", name: /^postgresql@\d+$/ },
];

/** Root's PATH names folders that the user postgres may not look into. */
function isFile(path: string): boolean {
  try {
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** The version in what `postgres --version` prints. */
export function parseVersion(text: string): { major: number; version: string } | undefined {
  const [, version, major] = /\(PostgreSQL\) ((\d+)\S*)/.exec(text) ?? [];
  return version && major ? { major: Number(major), version } : undefined;
}

/** @returns the release to update to, where this one may acknowledge commits without a standby after a start */
export function updateBefore({ major, version }: Omit<Binaries, "bindir">): string | undefined {
  const first = WAITS_FROM_START[major];
  const minor = Number(/^\d+\.(\d+)/.exec(version)?.[1]);
  return first !== undefined && minor < first ? `${major}.${first}` : undefined;
}

const isSupported = ({ major }: Binaries, wantMajor = major): boolean =>
  major >= MAJORS.min && major <= MAJORS.max && major === wantMajor;

/** A directory with a usable set of programs: pg_ctl alone, as in some client packages, isn't one. */
async function inspect(bindir: string): Promise<Binaries | undefined> {
  if (!isFile(join(bindir, "postgres")) || !isFile(join(bindir, "initdb"))) {
    return undefined;
  }
  const { stdout } = await run([join(bindir, "postgres"), "--version"], {
    timeoutMs: VERSION_TIMEOUT_MS,
  });
  const found = parseVersion(stdout);
  return found && { bindir, ...found };
}

function onPath(): string[] {
  return (process.env["PATH"] ?? "")
    .split(delimiter)
    .filter((directory) => directory.startsWith("/") && isFile(join(directory, "pg_ctl")))
    .map((directory) => dirname(realpathSync(join(directory, "pg_ctl"))));
}

async function fromPgConfig(): Promise<string[]> {
  try {
    const { code, stdout } = await run(["pg_config", "--bindir"], {
      timeoutMs: VERSION_TIMEOUT_MS,
    });
    return code === 0 && stdout.trim() !== "" ? [stdout.trim()] : [];
  } catch {
    return []; // it isn't installed
  }
}

/** Newest first. */
function packaged(): string[] {
  const major = (name: string): number => Number(/\d+$/.exec(name)?.[0]);
  return PACKAGED.flatMap(({ parent, name }) => {
    try {
      const names = readdirSync(parent).filter((entry) => name.test(entry));
      return names.map((entry) => ({ bindir: join(parent, entry, "bin"), major: major(entry) }));
    } catch {
      return [];
    }
  })
    .sort((a, b) => b.major - a.major)
    .map(({ bindir }) => bindir);
}

/**
 * Finds PostgreSQL's programs: the pg_ctl that was named, else the one on PATH, else what pg_config
 * says, else the newest package.
 *
 * @param options.wantMajor the version that a data directory needs; others are passed over
 * @throws {AppError} postgres: there are none, or the named one doesn't fit
 */
export async function findBinaries(
  options: { readonly pgctl?: string | undefined; readonly wantMajor?: number | undefined } = {},
): Promise<Binaries> {
  const { pgctl, wantMajor } = options;
  if (pgctl !== undefined) {
    const found = isFile(pgctl) ? await inspect(dirname(realpathSync(pgctl))) : undefined;
    if (!found) {
      throw new AppError("postgres", "found no PostgreSQL beside the pg_ctl that was named", {
        detail: { pgctl },
        hint: "Name an existing pg_ctl, such as /usr/lib/postgresql/15/bin/pg_ctl.",
      });
    }
    if (!isSupported(found, wantMajor)) {
      throw new AppError("postgres", "the PostgreSQL that was named has an unfit version", {
        detail: { pgctl, version: found.version, wanted: wantMajor ?? SUPPORTED },
        hint:
          wantMajor === undefined
            ? `Name the pg_ctl of a PostgreSQL ${SUPPORTED}.`
            : "Name the pg_ctl of the version that the data directory was made with.",
      });
    }
    return found;
  }
  for (const list of [onPath, fromPgConfig, packaged]) {
    for (const bindir of await list()) {
      const found = await inspect(bindir);
      if (found && isSupported(found, wantMajor)) return found;
    }
  }
  throw new AppError("postgres", "found no PostgreSQL on this machine", {
    detail: { wanted: wantMajor ?? SUPPORTED },
    hint: "Install the PostgreSQL server, or name its pg_ctl with --pgctl.",
  });
}
