/** What must hold of everything that clients attempted, whatever happened meanwhile. Pure. */

/** One attempt of a client; values are unique over the whole run. */
export type Operation = {
  client: string;
  /** insert: a row of its own; append: the next value of the client's list. */
  kind: "insert" | "append";
  value: number;
  /** failed: certainly not done; unknown: the connection broke or time ran out. */
  outcome: "ok" | "failed" | "unknown";
  startMs: number;
  endMs: number;
  /** Where it was sent, and on which timeline that server acknowledged it. */
  port: number;
  timeline?: number;
};

/** What a server holds: rows, and each client's list. */
export type Contents = { rows: ReadonlySet<number>; lists: ReadonlyMap<string, readonly number[]> };

/** @returns a sentence for each violation */
export function violationsOf(
  operations: readonly Operation[],
  servers: ReadonlyMap<string, Contents>,
): string[] {
  const found = [...acknowledgedTwice(operations)];
  for (const [server, contents] of servers) {
    for (const text of [...rowsOf(operations, contents), ...listsOf(operations, contents)]) {
      found.push(`${server}: ${text}`);
    }
  }
  return found;
}

function* rowsOf(operations: readonly Operation[], { rows }: Contents): Iterable<string> {
  const inserts = operations.filter(({ kind }) => kind === "insert");
  const lost = inserts.filter(({ outcome, value }) => outcome === "ok" && !rows.has(value));
  if (lost.length > 0) yield `${lost.length} acknowledged rows are lost: ${some(lost)}`;
  const possible = new Set(
    inserts.filter(({ outcome }) => outcome !== "failed").map(({ value }) => value),
  );
  const strange = [...rows].filter((value) => !possible.has(value));
  if (strange.length > 0) {
    yield `${strange.length} rows were never written, or refused: ${strange.slice(0, 5).join(", ")}`;
  }
}

function* listsOf(operations: readonly Operation[], { lists }: Contents): Iterable<string> {
  const byClient = Map.groupBy(
    operations.filter(({ kind }) => kind === "append"),
    ({ client }) => client,
  );
  for (const [client, appends] of byClient) {
    const list = lists.get(client) ?? [];
    const sure = appends.filter(({ outcome }) => outcome === "ok");
    const lost = sure.filter(({ value }) => !list.includes(value));
    if (lost.length > 0) yield `${client}: ${lost.length} appended values are lost: ${some(lost)}`;
    if (new Set(list).size !== list.length) yield `${client}: a value was appended twice`;
    const outcomes = new Map(appends.map(({ value, outcome }) => [value, outcome]));
    const strange = list.filter((value) => (outcomes.get(value) ?? "failed") === "failed");
    if (strange.length > 0) yield `${client}: values were never appended, or refused: ${strange}`;
    const inOrder = list.filter((value) => outcomes.get(value) === "ok");
    if (inOrder.some((value, index) => value < (inOrder[index - 1] ?? value))) {
      yield `${client}: acknowledged values are out of order: ${inOrder.slice(0, 20)}`;
    }
  }
}

/**
 * Each timeline has one server that acknowledges on it, and once a timeline has acknowledged, no
 * operation that begins later is acknowledged on one before it.
 */
function* acknowledgedTwice(operations: readonly Operation[]): Iterable<string> {
  const sure = operations.filter((each) => each.outcome === "ok" && each.timeline !== undefined);
  const ports = new Map<number, number>();
  const opened = new Map<number, number>();
  for (const { timeline = 0, port, endMs } of sure) {
    const other = ports.get(timeline) ?? port;
    if (other !== port) yield `timeline ${timeline} acknowledged on ports ${other} and ${port}`;
    ports.set(timeline, port);
    opened.set(timeline, Math.min(endMs, opened.get(timeline) ?? endMs));
  }
  for (const [timeline, openedMs] of opened) {
    const late = sure.filter((each) => (each.timeline ?? 0) < timeline && each.startMs > openedMs);
    const [first] = late;
    if (first) {
      yield `${late.length} operations were acknowledged on port ${first.port}, timeline ${first.timeline}, after timeline ${timeline} had opened (${first.kind} ${first.value})`;
    }
  }
}

const some = (operations: readonly Operation[]): string =>
  operations
    .slice(0, 5)
    .map(
      ({ value, client, port, timeline }) =>
        `${value} (${client}, port ${port}, timeline ${timeline})`,
    )
    .join(", ");
