/**
 * When this node last had contact with the monitor, and by which timers: a keeper that is killed and started again must
 * not prolong its primary's fence, nor go by other timers. Beside the page cache nothing has to survive:
 * after a reboot no server runs that could be fenced, and the time in the file is one of another boot.
 */
import { type Contact, parseContact } from "../shapes.ts";
import { readIfExists, writeAtomically } from "../sys/files.ts";

/** @throws the system's error: there is no room, … */
export function saveContact(path: string, contact: Contact): void {
  const text = JSON.stringify(contact, (_, value) =>
    typeof value === "bigint" ? String(value) : value,
  );
  writeAtomically(path, `${text}\n`, 0o600);
}

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
