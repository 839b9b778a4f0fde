/** Progress of a copy: one line that moves on a terminal, a log line each quarter elsewhere. */
import { logger } from "../sys/log.ts";

const log = logger("keeper");
const megabytes = (bytes: number): string => (bytes / 1024 / 1024).toFixed(1);

export function progressLine(what: string): (doneBytes: number, totalBytes: number) => void {
  let quarter = 0;
  return (done, total) => {
    const percent = total > 0 ? Math.min(100, Math.floor((100 * done) / total)) : 0;
    const text = `${what}: ${megabytes(done)} of ${megabytes(total)} MB (${percent}%)`;
    if (process.stderr.isTTY) {
      process.stderr.write(`\r${text}${percent === 100 ? "\n" : ""}`);
    } else if (Math.floor(percent / 25) > quarter) {
      quarter = Math.floor(percent / 25);
      log.info(text);
    }
  };
}
