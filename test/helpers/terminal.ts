/** A command on a terminal of its own: what it shows there, and the keys that are typed. */
import type { Environment } from "./command.ts";
import { waitFor, within } from "./wait.ts";

/** Local modes of a terminal: line by line, and with an echo. */
const ICANON_ECHO = process.platform === "darwin" ? 0x108 : 0x0a;

export class TerminalRun implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly #terminal: Bun.Terminal;
  readonly #modes: number;
  #output = "";
  #rows: number;

  constructor(command: string[], env: Environment, size: { columns: number; rows: number }) {
    this.#rows = size.rows;
    const decoder = new TextDecoder();
    // made together, the terminal is the command's own, which hears of its size and its end
    this.#child = Bun.spawn(command, {
      env: { TERM: "xterm", ...env },
      cwd: "/",
      terminal: {
        cols: size.columns,
        rows: size.rows,
        data: (_, bytes) => {
          this.#output += decoder.decode(bytes, { stream: true });
        },
      },
    });
    const { terminal } = this.#child;
    if (terminal === undefined) throw new Error("this Bun has no terminals");
    this.#terminal = terminal;
    this.#modes = terminal.localFlags & ICANON_ECHO;
  }

  /** All that was written, escape sequences included. */
  get output(): string {
    return this.#output;
  }

  /** The lines of the last complete drawing for the terminal's present size; none: there was none yet. */
  get lines(): string[] {
    const drawings = this.#output.split("\u001b[1;1H\u001b[2K").slice(1);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: that is how a line is placed
    const placed = /\u001b\[\d+;1H\u001b\[2K/;
    const complete = drawings
      .map((drawing) => drawing.split(placed))
      .filter((lines) => lines.length === this.#rows);
    return complete.at(-1)?.map((line) => line.split("\u001b")[0] ?? "") ?? [];
  }

  type(keys: string): void {
    this.#terminal.write(keys);
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  resize(columns: number, rows: number): void {
    this.#rows = rows;
    this.#terminal.resize(columns, rows);
  }

  /** Waits until the terminal shows it; yields its lines. */
  shows(pattern: RegExp, timeoutMs: number): Promise<string[]> {
    const look = () => {
      const lines = this.lines;
      return pattern.test(lines.join("\n")) && lines;
    };
    return waitFor(`${pattern} on the terminal`, timeoutMs, look, {
      explain: () => this.#output.slice(-2000).replaceAll("\u001b", "ESC"),
    });
  }

  /**
   * Waits for the end of the command.
   *
   * @returns its exit code, and whether the terminal is as it was: the first screen, the cursor, wrapping, and the modes
   */
  async ended(timeoutMs: number): Promise<{ code: number | null; restored: boolean }> {
    await within(timeoutMs, "the end of the command on the terminal", this.#child.exited);
    const last = (on: string, off: string) =>
      this.#output.lastIndexOf(on) > this.#output.lastIndexOf(off);
    const look = () =>
      last("\u001b[?1049l", "\u001b[?1049h") &&
      last("\u001b[?25h", "\u001b[?25l") &&
      last("\u001b[?7h", "\u001b[?7l") &&
      (this.#terminal.localFlags & ICANON_ECHO) === this.#modes;
    const restored = await waitFor("the terminal to be restored", 1000, look).catch(() => false);
    return { code: this.#child.exitCode, restored };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
    this.#terminal.close();
  }
}
