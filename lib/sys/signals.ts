/** What a service is told by signals, as PostgreSQL's own tools understand them. */

export type Signals = {
  /** SIGTERM, SIGINT: stop in order. */
  readonly stop: AbortSignal;
  /** SIGQUIT: end at once and leave everything as it is. */
  readonly leave: AbortSignal;
  /** SIGHUP: read the settings again. */
  readonly onReload: (reload: () => void) => void;
};

export function signals(): Signals {
  const stop = new AbortController();
  const leave = new AbortController();
  const reloads: (() => void)[] = [];
  process.on("SIGTERM", () => stop.abort());
  process.on("SIGINT", () => stop.abort());
  process.on("SIGQUIT", () => leave.abort());
  process.on("SIGHUP", () => {
    for (const reload of reloads) reload();
  });
  return { stop: stop.signal, leave: leave.signal, onReload: (reload) => reloads.push(reload) };
}
