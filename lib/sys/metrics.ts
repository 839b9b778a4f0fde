/** Prometheus' text format, version 0.0.4. */

export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

export type Labels = Readonly<Record<string, string | number>>;

export type Metric = {
  /** In Prometheus' way: with its unit, `_total` for a counter. */
  readonly name: string;
  readonly type: "gauge" | "counter";
  readonly help: string;
  /** A value that isn't known is left out, rather than told as 0. */
  readonly samples: readonly (readonly [
    labels: Labels,
    value: number | bigint | boolean | undefined,
  ])[];
};

const escapeLabel = (value: string): string =>
  value.replace(/[\\"\n]/g, (found) => (found === "\n" ? "\\n" : `\\${found}`));

/** The page that a scrape reads. */
export function renderMetrics(metrics: readonly Metric[]): string {
  return metrics
    .flatMap(({ name, type, help, samples }) => [
      `# HELP ${name} ${help}`,
      `# TYPE ${name} ${type}`,
      ...samples.flatMap(([labels, value]) => {
        if (value === undefined) return [];
        const inner = Object.entries(labels)
          .map(([key, text]) => `${key}="${escapeLabel(String(text))}"`)
          .join(",");
        return `${name}${inner === "" ? "" : `{${inner}}`} ${typeof value === "boolean" ? Number(value) : value}`;
      }),
    ])
    .map((line) => `${line}\n`)
    .join("");
}
