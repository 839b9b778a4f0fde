/** Memory that a start or a copy needed, and an idle service doesn't. */

/** Frees compiled code and garbage, in some tens of ms: for moments when nothing is going on. */
export function giveBackMemory(): void {
  Bun.shrink();
  Bun.gc(true);
}
