/** Our block of pg_hba.conf, between markers at its top: the first line that matches decides. */
import { hbaFile } from "./config_files.ts";
import { rewriteConfigFile } from "./settings.ts";

const BEGIN = "# pg_auto_failover: begin. Edits are lost down to the line that says end.";
const END = "# pg_auto_failover: end";
const isBegin = (line: string): boolean => line.startsWith("# pg_auto_failover: begin");
const isEnd = (line: string): boolean => line.startsWith(END);

/** The operator's lines. Where the end marker is lost, all but those that we are about to write. */
function withoutBlocks(lines: readonly string[], ours: readonly string[]): string[] {
  const kept: string[] = [];
  for (let index = 0; index < lines.length; index++) {
    const line = lines[index] ?? "";
    if (isBegin(line)) {
      const next = lines.findIndex((later, at) => at > index && (isEnd(later) || isBegin(later)));
      if (next >= 0 && isEnd(lines[next] ?? "")) {
        index = next;
        continue;
      }
      while (ours.includes(lines[index + 1] ?? "")) {
        index++;
      }
    } else if (!isEnd(line)) {
      kept.push(line);
    }
  }
  return kept;
}

/**
 * pg_hba.conf with our lines as its first ones, and without any older block of ours.
 *
 * @throws {RangeError} a line has a line break in it, or is one of the markers
 */
export function withHbaBlock(text: string, lines: readonly string[]): string {
  for (const line of lines) {
    if (/[\r\n\0]/.test(line) || isBegin(line) || isEnd(line)) {
      throw new RangeError(`not one line for pg_hba.conf: ${JSON.stringify(line)}`);
    }
  }
  const kept = withoutBlocks(text.split("\n"), lines);
  return [BEGIN, ...lines, END, ...kept].join("\n");
}

/**
 * Writes our block; the rest of the file stays as it is. In force after a reload.
 *
 * @param lines whole lines such as `host all all 127.0.0.1/32 trust`
 * @returns whether the file changed
 */
export function writeHbaBlock(pgdata: string, lines: readonly string[]): boolean {
  return rewriteConfigFile(hbaFile(pgdata), (text) => withHbaBlock(text, lines));
}
