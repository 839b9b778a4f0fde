/**
 * When this node last had contact with the monitor, and by which timers: a keeper that is killed and started again must
 * not prolong its primary's fence, nor go by other timers. Beside the page cache nothing has to survive:
 * after a reboot no server runs that could be fenced, and the time in the file is one of another boot.
 */
import { close, openSync, write } from "node:fs";
import { type Contact, parseContact } from "../shapes.ts";
import { readIfExists, writeAtomically } from "../sys/files.ts";

export type ContactFile = Disposable & {
  /**
   * Timers that are new are in the file when this returns. A later time than the one there gets into it in a moment, or with
   * one of the next calls: a disk that hangs must not hang a keeper, who is to tell of it.
   */
  save(contact: Contact): void;
};

/** Each text is filled up to this, so that the next one can take its place in a single write. */
const LENGTH = 1024;

/** @param saved hears of each attempt, with the system's error where it has failed: there is no room, … */
export function openContact(path: string, saved: (error?: unknown) => void): ContactFile {
  let file: { readonly fd: number; readonly timers: string } | undefined;
  let isWriting = false;
  let isClosed = false;
  const release = (): void => {
    if (file !== undefined) close(file.fd, () => undefined);
    file = undefined;
  };

  function replace(bytes: Buffer, timers: string): void {
    writeAtomically(path, bytes.toString(), 0o600);
    // a write that is under way ends in the file that was there before, and closes it
    if (!isWriting) release();
    file = { fd: openSync(path, "r+"), timers };
  }

  return {
    save(contact) {
      const timers = toJson(contact.policy);
      const bytes = Buffer.from(`${toJson(contact).padEnd(LENGTH - 1)}\n`);
      if (file?.timers !== timers || bytes.length !== LENGTH) {
        try {
          replace(bytes, timers);
          saved();
        } catch (error) {
          saved(error);
        }
        return;
      }
      if (isWriting) return;
      isWriting = true;
      const { fd } = file;
      write(fd, bytes, 0, LENGTH, 0, (error) => {
        isWriting = false;
        if (isClosed || file?.fd !== fd) close(fd, () => undefined);
        saved(error ?? undefined);
      });
    },
    [Symbol.dispose]() {
      isClosed = true;
      if (!isWriting) release();
    },
  };
}

const toJson = (value: unknown): string =>
  JSON.stringify(value, (_, each) => (typeof each === "bigint" ? String(each) : each));

/** @returns undefined when there is none, or none that can be read */
export function loadContact(path: string): Contact | undefined {
  try {
    const text = readIfExists(path);
    return text === undefined ? undefined : parseContact(JSON.parse(text));
  } catch {
    return undefined; // a power cut has torn it, and with that it's of no use
  }
}

/** The time of a contact, on the clock of this boot; undefined when it is of another boot, or can't be. */
export function contactMs(
  contact: Contact | undefined,
  nowMs: number,
  boot: string | undefined,
): number | undefined {
  if (contact === undefined || boot === undefined) return undefined;
  return contact.bootId === boot && contact.sentAtMs <= nowMs ? contact.sentAtMs : undefined;
}
