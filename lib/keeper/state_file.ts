/** The keeper's durable memory. Whatever is reported stands in this file first. */
import { randomUUID } from "node:crypto";
import { parseFile } from "../config.ts";
import { type KeeperState, parseKeeperState } from "../shapes.ts";
import { AppError, errorText } from "../sys/errors.ts";
import { readIfExists, writeDurably } from "../sys/files.ts";

export const INITIAL_STATE: Omit<KeeperState, "identity"> = {
  version: 1,
  incarnation: 0,
  state: "init",
  goal: "init",
  goalVersion: 0,
  syncVersion: 0,
  data: "none",
  following: null,
  syncMembers: [],
  promotedFrom: null,
  promotion: null,
  systemIdentifier: null,
  proof: null,
};

export function loadState(path: string): KeeperState | undefined {
  const text = readIfExists(path);
  return text === undefined ? undefined : parseFile(path, text, parseKeeperState);
}

export const newState = (): KeeperState => ({ ...INITIAL_STATE, identity: randomUUID() });

/** @throws {AppError} state: it could not be made durable; the old file is untouched */
export function saveState(path: string, state: KeeperState): void {
  try {
    writeDurably(path, `${JSON.stringify(state, undefined, 2)}\n`, 0o600);
  } catch (cause) {
    throw new AppError("state", `could not save the state of this node: ${errorText(cause)}`, {
      detail: { path },
      hint: "Make room on that file system; the keeper goes on by itself as soon as it can write.",
      cause,
    });
  }
}
