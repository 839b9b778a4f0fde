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

/** A column of prose is worth having from this width on. */
const PROSE_MIN = 24;

/**
 * The same for a terminal: whole columns are left out until the rest fits, and no line is longer than the terminal is wide.
 *
 * @param columns of the terminal
 * @param drop titles of the columns that may go, in this order
 */
export function fitTable(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  columns: number,
  drop: readonly string[],
  prose: readonly string[] = [],
): string[] {
  const widthOf = (title: string): number => {
    const at = header.indexOf(title);
    const natural = Math.max(width(title), ...rows.map((row) => width(row[at] ?? "")));
    return prose.includes(title) ? Math.min(natural, PROSE_MIN) : natural;
  };
  let kept = header;
  for (const title of drop) {
    const needed = kept.reduce((sum, each) => sum + widthOf(each) + 3, -3);
    if (needed <= columns) break;
    kept = kept.filter((each) => each !== title);
  }
  const cells = rows.map((row) => kept.map((title) => row[header.indexOf(title)] ?? ""));
  return renderTable(kept, cells, prose)
    .split("\n")
    .map((line) => Bun.sliceAnsi(line, 0, columns).trimEnd());
}

function width(text: string): number {
  return Bun.stringWidth(text);
}
