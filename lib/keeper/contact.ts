/** When the monitor was heard last: the fence, and who may do anything at all, hang on it. */
import type { Policy } from "../group/view.ts";
import { bootId } from "../sys/clock.ts";
import { errorText } from "../sys/errors.ts";
import { contactMs, loadContact, openContact } from "./contact_file.ts";
import { log, type Node } from "./node.ts";

export type Standing = "fresh" | "lost" | "never";

export type MonitorContact = Disposable & {
  readonly standing: Standing;
  /** When the last report was sent that has been answered. */
  readonly lastMs: number;
  /** The timers that the monitor told last. */
  policy(): Policy;
  /** @returns whether it counts, and what stood before */
  answered(sentMs: number): { readonly counts: boolean; readonly before: Standing };
  /** Nothing came of the last report; "never" stays so. */
  lose(): void;
  /** What was said so far is void: answers to what was sent before say nothing of whom the group belongs to now. */
  forget(nowMs: number): void;
  /** Notes it down for the next keeper. */
  remember(): void;
};

export function makeContact(node: Node, startedMs: number): MonitorContact {
  const boot = bootId();
  const inherited = loadContact(node.paths.contact);
  let lastMs = contactMs(inherited, startedMs, boot) ?? startedMs;
  let standing: Standing = "never";
  let voidBeforeMs = Number.NEGATIVE_INFINITY;
  let isUnsaved = false;
  const file = openContact(node.paths.contact, (error) => {
    // who is restarted then fences too early rather than too late
    if (error !== undefined && !isUnsaved)
      log.warn(`could not note the last contact: ${errorText(error)}`);
    isUnsaved = error !== undefined;
  });
  if (inherited) node.policy = inherited.policy;
  const policy = (): Policy => node.policy;
  return {
    get standing() {
      return standing;
    },
    get lastMs() {
      return lastMs;
    },
    policy,
    answered(sentMs) {
      const before = standing;
      const counts = sentMs >= voidBeforeMs;
      if (counts) [lastMs, standing] = [sentMs, "fresh"];
      return { counts, before };
    },
    lose() {
      if (standing === "fresh") standing = "lost";
    },
    forget(nowMs) {
      standing = "never";
      voidBeforeMs = nowMs;
    },
    remember: () => file.save({ bootId: boot ?? null, sentAtMs: lastMs, policy: policy() }),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };
}
