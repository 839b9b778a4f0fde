/** What must hold in every world (S1, S2), and what a world at rest looks like (S4). */
import { canTakeWrites } from "../../lib/fsm.ts";
import { couldBeReplaced } from "../../lib/keeper/fence.ts";
import type { Laws } from "./laws.ts";
import { viewOf } from "./monitor.ts";
import { authorOf, canAcknowledge, isWritable, type Node, Violation, type World } from "./world.ts";

/** It hears nobody for longer than a fence takes, though its keeper runs and somebody may take its place. */
const isIsolated = ({ keeper: k, disk }: Node): boolean =>
  k !== undefined &&
  !k.frozen &&
  !k.thawed &&
  k.guard === "on" &&
  k.contact !== "never" &&
  k.trueContactAge > 1 &&
  k.replyAge > 1 &&
  couldBeReplaced(disk.state, disk.names.members.length);

/** @throws {Violation} */
export function check(w: World): void {
  let able: Node | undefined;
  let open = 0;
  for (const n of w.nodes) {
    if (!isWritable(n)) continue;
    open += 1;
    if (authorOf(n.pg.wal) !== n.id) {
      throw new Violation(`S1: node ${n.id} writes on a timeline that another node began`);
    }
    if (!canAcknowledge(w, n)) continue;
    if (able) throw new Violation(`S2: nodes ${able.id} and ${n.id} can both acknowledge a commit`);
    able = n;
    if (!n.pg.wal.startsWith(w.acked)) {
      throw new Violation(`S1: node ${n.id} can acknowledge, and lacks an acknowledged commit`);
    }
  }
  if (open < 2) return;
  // Beside the new primary the old one can't acknowledge anything, but it must not stay open either.
  const isolated = w.nodes.find((n) => isWritable(n) && isIsolated(n));
  if (isolated) {
    throw new Violation(
      `S2: node ${isolated.id} hears nobody and is still open beside another one`,
    );
  }
}

/** One node that takes writes, and the others beside it with all of its WAL. */
export function isAtRest(w: World): boolean {
  const members = w.nodes.filter(({ row }) => row !== undefined);
  const primary = members.find(({ row }) => row && canTakeWrites(row.goal));
  if (primary === undefined) return members.length === 0;
  const others = members.filter((n) => n !== primary);
  const hasStandby = others.some(({ row }) => row?.maintenance === false);
  const expected = others.length === 0 ? "single" : hasStandby ? "primary" : "wait_primary";
  return members.every((n) => {
    const { row, disk, pg } = n;
    if (row?.reported !== row?.goal || disk.state !== row?.goal) return false;
    if (row?.maintenance) return row.goal === "maintenance";
    if (n === primary) return row?.goal === expected && isWritable(n) && canAcknowledge(w, n);
    return row?.goal === "secondary" && pg.run === "up" && pg.wal === primary.pg.wal;
  });
}

/** The group says of itself why it doesn't go on. */
export const isBlocked = (w: World, laws: Laws): boolean =>
  laws.blockedReason(viewOf(w)) !== undefined;

/** @throws {Violation} the group has come to rest without a commit that was acknowledged */
export function checkAtRest(w: World): void {
  const primary = w.nodes.find((n) => n.row && canTakeWrites(n.row.goal));
  if (primary && !primary.pg.wal.startsWith(w.acked)) {
    throw new Violation(`S1: the group is at rest with node ${primary.id}, which lacks a commit`);
  }
}
