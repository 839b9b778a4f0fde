/** Timelines: history files, and the names of WAL segments. Pure. */

/** One line of a history file: the timeline that was left, and where. */
export type Branch = { readonly timeline: number; readonly forkLsn: bigint };

/**
 * A history file's lines, oldest timeline first.
 *
 * @see PostgreSQL's src/backend/access/transam/timeline.c
 */
export function parseHistory(text: string): Branch[] {
  return text.split("\n").flatMap((line) => {
    const [, timeline, high, low] = /^\s*(\d+)\s+([0-9A-F]+)\/([0-9A-F]+)/i.exec(line) ?? [];
    if (timeline === undefined) return [];
    const forkLsn = (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`);
    return [{ timeline: Number(timeline), forkLsn }];
  });
}

const hex8 = (value: bigint | number): string => value.toString(16).toUpperCase().padStart(8, "0");

export const historyFile = (timeline: number): string => `${hex8(timeline)}.history`;

/** The segment that holds this byte of WAL. */
export function segmentFile(timeline: number, lsn: bigint, segmentBytes: bigint): string {
  const segment = lsn / segmentBytes;
  const perId = (1n << 32n) / segmentBytes;
  return hex8(timeline) + hex8(segment / perId) + hex8(segment % perId);
}

/**
 * Where a position lies relative to a history: `past` the point where that history left the
 * position's timeline, or on a timeline that it never had, means diverged.
 *
 * @param history of the server whose current timeline is `current`
 * @param end how far that server has come
 */
export function isWithinHistory(
  position: { readonly timeline: number; readonly lsn: bigint },
  current: number,
  history: readonly Branch[],
  end: bigint,
): boolean {
  if (position.timeline === current) return position.lsn <= end;
  const branch = history.find(({ timeline }) => timeline === position.timeline);
  return branch !== undefined && position.lsn <= branch.forkLsn;
}

/**
 * The names under which a server with this history may have the segment that holds a byte which lies
 * on `timeline`: after a switch in the middle of a segment the new timeline has a copy of its start.
 *
 * @returns newest timeline first
 */
export function segmentNames(
  timeline: number,
  lsn: bigint,
  current: number,
  history: readonly Branch[],
  segmentBytes: bigint,
): string[] {
  const beginOf = (each: number): bigint => {
    const at = history.findIndex((branch) => branch.timeline === each);
    const before = at < 0 ? history.at(-1) : history[at - 1];
    return each === current ? (history.at(-1)?.forkLsn ?? 0n) : (before?.forkLsn ?? 0n);
  };
  return [...history.map((branch) => branch.timeline), current]
    .filter((each) => each >= timeline && beginOf(each) / segmentBytes <= lsn / segmentBytes)
    .toSorted((a, b) => b - a)
    .map((each) => segmentFile(each, lsn, segmentBytes));
}
