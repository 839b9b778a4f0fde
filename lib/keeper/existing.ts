/** What the operator's PGDATA holds at `create`, and whether a node can go on with it as it is. */
import { existsSync, readdirSync } from "node:fs";
import { standbyId } from "../group/quorum.ts";
import { isLoopback, ownAddresses } from "../pg/addresses.ts";
import type { Binaries } from "../pg/binaries.ts";
import { type ControlData, configured, controlData, dataVersion } from "../pg/commands.ts";
import { configFile } from "../pg/config_files.ts";
import { livePostmaster, type Postmaster } from "../pg/server.ts";
import { hasStandbySignal } from "../pg/settings.ts";
import type { KeeperConfig, KeeperState } from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { readIfExists } from "../sys/files.ts";
import { openDb } from "../sys/sql.ts";
import { currentUser } from "../sys/user.ts";
import { localTargetOf, log } from "./node.ts";

export type Found = {
  readonly data: KeeperState["data"];
  readonly systemIdentifier: string | null;
  /** Of a standby that somebody else has made: the slot that it has used on its primary. */
  readonly formerSlot?: string | undefined;
};

const NOTHING: Found = { data: "none", systemIdentifier: null };

/** A standby needs one of each, a base backup two of the first for as long as it takes. */
const SENDERS_MIN = 4;
const ASKED = [
  ...["wal_level", "max_wal_senders", "max_replication_slots"],
  ...["listen_addresses", "primary_slot_name"],
] as const;
type Asked = Readonly<Record<(typeof ASKED)[number], string>>;

/** What only the operator can decide on, each as `name is "value", and must be …`. */
export function unfitSettings(settings: Asked): string[] {
  const few = (["max_wal_senders", "max_replication_slots"] as const).filter(
    (name) => Number(settings[name]) < SENDERS_MIN,
  );
  return [
    ...(settings.wal_level === "minimal"
      ? ['wal_level is "minimal", the one value that allows no standby']
      : []),
    ...few.map((name) => `${name} is ${settings[name]}, and must be ${SENDERS_MIN} or more`),
  ];
}

/** What `create` would set, but a running primary takes up by a restart only. */
export function settingsToRestartFor(
  control: Pick<ControlData, "checksums" | "walLogHints">,
  settings: Asked,
  nodename: string,
  addresses: readonly string[],
): string[] {
  const reached = ["*", "0.0.0.0", "::", nodename, ...addresses];
  const listens = settings.listen_addresses.split(",").some((one) => reached.includes(one.trim()));
  return [
    ...(control.checksums || control.walLogHints
      ? []
      : ["wal_log_hints is off, and there are no data checksums: pg_rewind needs one of them"]),
    ...(isLoopback(nodename) || listens
      ? []
      : [`listen_addresses is "${settings.listen_addresses}": other nodes can't reach it`]),
  ];
}

async function askRunning(
  postmaster: Postmaster,
): Promise<{ settings: Asked; inRecovery: boolean }> {
  await using db = openDb(localTargetOf(postmaster));
  try {
    const rows = await db.query<{ name: string; setting: string; recovers: boolean }>(
      `select name, setting, pg_is_in_recovery() as recovers from pg_settings
       where name = any (string_to_array($1, ','))`,
      [ASKED.join()],
    );
    const settings = Object.fromEntries(rows.map(({ name, setting }) => [name, setting])) as Asked;
    return { settings, inRecovery: rows[0]?.recovers === true };
  } catch (cause) {
    const user = currentUser();
    throw new AppError("postgres", "could not ask the running server for its settings", {
      detail: { reason: errorText(cause) },
      hint: `Let its owner in by its socket, as a superuser: "local all ${user} peer" as the first line of pg_hba.conf, and reload it.`,
      cause,
    });
  }
}

/** @throws {AppError} the directory can't be a node's, and why; nothing has been touched then */
export async function inspect(config: KeeperConfig, binaries: Binaries): Promise<Found> {
  const { pgdata } = config;
  const version = dataVersion(pgdata);
  if (version === undefined) {
    if (existsSync(pgdata) && readdirSync(pgdata).length > 0) {
      throw new AppError(
        "conflict",
        "the data directory is not empty, and holds no PostgreSQL cluster",
        {
          detail: { pgdata },
          hint: "Give an empty or missing directory, or one with a complete cluster.",
        },
      );
    }
    return NOTHING;
  }
  if (version !== binaries.major) {
    throw new AppError("conflict", "the data directory is of another major version", {
      detail: { pgdata, data: version, binaries: binaries.major },
      hint: "Name the right binaries with --pgctl.",
    });
  }
  const control = await controlData(binaries, pgdata);
  const found = { data: "ready", systemIdentifier: control.systemIdentifier } as const;
  const isCopy = hasStandbySignal(pgdata) || existsSync(`${pgdata}/backup_label`);
  if (!existsSync(configFile(pgdata))) {
    // it gets fresh files as soon as it's known what it's a copy of
    if (isCopy) return found;
    throw new AppError("config", "found no postgresql.conf for the data directory", {
      detail: { pgdata, started_last_by: readIfExists(`${pgdata}/postmaster.opts`)?.trim() },
      hint: `Move postgresql.conf, pg_hba.conf and pg_ident.conf into ${pgdata}, without data_directory, hba_file and ident_file in it.`,
    });
  }
  const postmaster = livePostmaster(pgdata);
  let settings: Asked;
  let inRecovery = isCopy;
  if (postmaster === undefined) {
    const values = ASKED.map(async (name) => [name, await configured(binaries, pgdata, name)]);
    settings = Object.fromEntries(await Promise.all(values));
  } else {
    if (postmaster.port !== config.pgport) {
      throw new AppError("usage", "the running server has another port", {
        detail: { pgport: config.pgport, server: postmaster.port },
        hint: `Give --pgport ${postmaster.port}.`,
      });
    }
    ({ settings, inRecovery } = await askRunning(postmaster));
  }
  const unfit = unfitSettings(settings);
  if (unfit.length > 0) {
    throw new AppError("state", "the server's settings don't fit a node of a group", {
      detail: { settings: unfit.join("; ") },
      hint: `Change them in ${configFile(pgdata)}${postmaster ? ", restart the server" : ""}, and run create again.`,
    });
  }
  const restart = settingsToRestartFor(control, settings, config.nodename, ownAddresses());
  if (postmaster && !inRecovery && restart.length > 0) {
    throw new AppError("state", "the running server has to be restarted for some settings", {
      detail: { settings: restart.join("; ") },
      hint: "Stop it at a time that suits its clients, and run create again: it starts the server with these settings.",
    });
  }
  const slot = settings.primary_slot_name;
  const isTheirs = inRecovery && slot !== "" && standbyId(slot) === undefined;
  if (inRecovery)
    log.info("The data directory is a standby's: it's taken as a copy of the group's");
  return { ...found, formerSlot: isTheirs ? slot : undefined };
}
