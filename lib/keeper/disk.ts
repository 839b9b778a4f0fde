/** Whether the disk takes the server's WAL. Who waits for it answers all that needs none: only that WAL doesn't get on shows it. */
import type { WalProgress } from "../pg/local.ts";

/** A disk that takes so many times postgres_timeout for some WAL hangs; most that are slow come back before. */
const DISK_TIMEOUTS = 5;
/** Looks that are further apart, because all was asleep, say, have nothing to do with each other. */
const GAP_TIMEOUTS = 2;

export type DiskWatch = {
  /** WAL waits for the disk, and has not got any further since the look before. */
  readonly isHeldUp: boolean;
  /** As of the last look. */
  readonly isHung: boolean;
  readonly notice: (seen: WalProgress, nowMs: number) => void;
  /** It's another server from here on. */
  readonly forget: () => void;
};

type Held = { readonly lsn: bigint; readonly sinceMs: number; readonly lastMs: number };

/** @param say hears once each of a disk that is slow, that hangs, and that is back */
export function watchDisk(
  postgresTimeoutMs: () => number,
  say: (level: "info" | "warn" | "error", sentence: string) => void,
): DiskWatch {
  let held: Held | undefined;
  let said: "nothing" | "slow" | "hung" = "nothing";

  const heldMs = (): number => (held === undefined ? 0 : held.lastMs - held.sinceMs);
  const isHung = (): boolean => heldMs() >= DISK_TIMEOUTS * postgresTimeoutMs();

  function tell(): void {
    const isSlow = heldMs() >= postgresTimeoutMs();
    const word = isHung() ? "hung" : isSlow ? "slow" : "nothing";
    if (word === said) return;
    said = word;
    const silence = `No WAL has got to the disk for ${(heldMs() / 1000).toFixed(0)} s`;
    if (word === "nothing") say("info", "WAL gets to the disk again");
    else if (word === "slow") say("warn", silence);
    else say("error", `${silence}: PostgreSQL counts as down`);
  }

  return {
    get isHeldUp() {
      return heldMs() > 0;
    },
    get isHung() {
      return isHung();
    },
    notice({ lsn, walWaits }, nowMs) {
      const isSame = held?.lsn === lsn && nowMs - held.lastMs <= GAP_TIMEOUTS * postgresTimeoutMs();
      held = walWaits
        ? { lsn, sinceMs: isSame && held ? held.sinceMs : nowMs, lastMs: nowMs }
        : undefined;
      tell();
    },
    forget() {
      held = undefined;
      said = "nothing";
    },
  };
}
