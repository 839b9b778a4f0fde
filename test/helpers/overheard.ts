/** What any user of the machine, or of the servers' account, can read of running processes. */
import { readdirSync, readFileSync } from "node:fs";

/** Looks at all processes again and again, until it's stopped. */
export class Overheard {
  readonly #said = new Set<string>();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor() {
    this.#timer = setInterval(() => this.#look(), 10);
  }

  /** All command lines and environments that were seen. */
  stop(): string {
    clearInterval(this.#timer);
    return [...this.#said].join("\n");
  }

  #look(): void {
    for (const pid of readdirSync("/proc")) {
      if (!/^\d+$/.test(pid)) continue;
      for (const file of ["cmdline", "environ"]) {
        try {
          this.#said.add(readFileSync(`/proc/${pid}/${file}`, "utf8"));
        } catch {
          // it has ended
        }
      }
    }
  }
}
