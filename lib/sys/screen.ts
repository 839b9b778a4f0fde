/** The whole terminal, for something that is drawn again and again; whatever happens, it is given back as it was. */

import { isatty } from "node:tty";
import { AppError } from "./errors.ts";
import { writeFully } from "./files.ts";

export type Screen = Disposable & {
  /** Aborted by q, Ctrl-C, the end of the terminal, and the signals that end a process. */
  readonly quit: AbortSignal;
  size(): { readonly columns: number; readonly rows: number };
  /** Calls back after the terminal has got another size. */
  onResize(redraw: () => void): void;
  /** Replaces what is shown; a line that is too long is cut by the terminal, never wrapped. */
  draw(lines: readonly string[]): void;
};

/** The other screen, no cursor, no wrapping; and back. */
const ENTER = "\u001b[?1049h\u001b[?25l\u001b[?7l\u001b[2J";
const LEAVE = "\u001b[?7h\u001b[?25h\u001b[?1049l";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
/** Ctrl-C and Ctrl-D are keys like others here. */
const QUIT_KEYS = ["q", "Q", "\u0003", "\u0004"];

/**
 * @param instead what to use where there is no terminal, as a sentence
 * @throws {AppError} usage: standard output is no terminal, or one that can't move its cursor
 */
export function openScreen(instead: string): Screen {
  if (!isatty(1) || (process.env["TERM"] ?? "dumb") === "dumb") {
    throw new AppError("usage", "this needs a terminal that can move its cursor", {
      detail: { TERM: process.env["TERM"] },
      hint: instead,
    });
  }
  const quit = new AbortController();
  const stop = () => quit.abort();
  const write = (text: string): void => {
    try {
      writeFully(1, text);
    } catch (error) {
      // a terminal that is slow to take a frame gets the next one; one that is gone ends the show
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") stop();
    }
  };
  const { stdin, stdout } = process;
  const onKeys = (keys: Buffer): void => {
    if (QUIT_KEYS.some((key) => keys.includes(key))) stop();
  };
  const size = () => ({ columns: stdout.columns || 80, rows: stdout.rows || 24 });
  let isOpen = true;
  const leave = (): void => {
    if (!isOpen) return;
    isOpen = false;
    write(LEAVE);
    if (isatty(0)) stdin.setRawMode(false);
  };
  // also on the way out after an error that nobody caught
  process.once("exit", leave);
  for (const name of SIGNALS) process.on(name, stop);
  if (isatty(0)) {
    stdin.setRawMode(true);
    stdin.on("data", onKeys);
    stdin.on("end", stop);
  }
  write(ENTER);
  return {
    quit: quit.signal,
    size,
    onResize: (redraw) => stdout.on("resize", redraw),
    draw(lines) {
      if (!isOpen) return;
      const { rows } = size();
      const text = Array.from({ length: rows }, (_, i) => {
        // what a server says must not move the cursor
        const line = (lines[i] ?? "").replace(/\p{Cc}/gu, " ");
        return `\u001b[${i + 1};1H\u001b[2K${line}`;
      });
      write(text.join(""));
    },
    [Symbol.dispose]() {
      leave();
      process.removeListener("exit", leave);
      stdin.removeListener("data", onKeys);
      stdin.pause();
      for (const name of SIGNALS) process.removeListener(name, stop);
    },
  };
}
