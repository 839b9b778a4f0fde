/** Rows as aligned text, in the manner of psql. */

/**
 * A table with right-aligned columns, `|` between them and a rule below the header; no line break at the end.
 *
 * @param rows each as long as the header; missing cells are blank
 * @param prose titles of columns that hold sentences, which begin at the left
 */
export function renderTable(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  prose: readonly string[] = [],
): string {
  const widths = header.map((title, column) =>
    Math.max(width(title), ...rows.map((row) => width(row[column] ?? ""))),
  );
  const line = (cells: readonly string[]): string => {
    const text = widths
      .map((w, column) => {
        const cell = cells[column] ?? "";
        const blank = " ".repeat(Math.max(0, w - width(cell)));
        return prose.includes(header[column] ?? "") ? cell + blank : blank + cell;
      })
      .join(" | ");
    return prose.length > 0 ? text.trimEnd() : text;
  };
  const rule = widths
    .map((w, column) => "-".repeat(w + (column === 0 || column === widths.length - 1 ? 1 : 2)))
    .join("+");
  return [
    line(header),
    widths.length === 1 ? "-".repeat(widths[0] ?? 0) : rule,
    ...rows.map(line),
  ].join("\n");
}

function width(text: string): number {
  return Bun.stringWidth(text);
}
