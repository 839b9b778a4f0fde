/** A world as text: two worlds with the same key go on in the same way. */
import { canTakeWrites } from "../../lib/fsm.ts";
import type { SyncSet } from "../../lib/group/view.ts";
import type { Answer, Node, World } from "./world.ts";

const flag = (value: boolean): number => (value ? 1 : 0);

/** Versions count up for ever; only their order matters. */
function ranksOf(w: World): Map<number, number> {
  const used = [0, w.group.sync.version];
  const add = (set: SyncSet | null | undefined): void => {
    if (set) used.push(set.version);
  };
  for (const set of w.group.pending) add(set);
  add(w.group.inForce);
  for (const { disk, pg, keeper, late } of w.nodes) {
    used.push(disk.syncVersion, pg.proof);
    add(keeper?.sync?.set);
    add(keeper?.proven);
    add(keeper?.answer?.sync);
    add(keeper?.heard?.answer?.sync);
    add(late?.report.inForce);
  }
  const ranks = [...new Set(used)].sort((a, b) => a - b);
  return new Map(ranks.map((version, rank) => [version, rank]));
}

export function keyOf(w: World): string {
  const ranks = ranksOf(w);
  const set = (of: SyncSet | null | undefined): string =>
    of
      ? `${ranks.get(of.version)}/${of.primaryId}/${of.number}(${of.members})`
      : of === null
        ? "?"
        : "-";
  const answer = (of: Answer | undefined, rank: (version: number) => number): string =>
    of
      ? `${of.goal} ${rank(of.goalVersion)} ${of.upstream} ${of.source} ${of.sourceLsn} ${flag(of.considered)}${flag(of.planned)} ${set(of.sync)}`
      : "-";
  const node = (n: Node): string => {
    const { row, late, on, known, disk: d, pg, keeper: k } = n;
    // a goal is the present one, or it isn't: nothing more is made of its version
    const rank = (version: number): number => flag(version >= (row?.goalVersion ?? 0));
    let text = `${flag(on)}${flag(known)}${canTakeWrites(d.state) ? n.contactAge : ""};`;
    if (row) {
      text +=
        `${row.reported} ${row.goal} ${flag(row.confirmed)}${flag(row.pgRunning)}${row.startFailures}${flag(row.inRecovery)}` +
        `${flag(row.streaming)}${flag(row.passedOver)}${flag(row.maintenance)}${row.shutdown} ${flag(row.considered)}${flag(row.quorum)} ${row.timeline} ` +
        `${row.lsn} ${row.promotion?.timeline} ${row.promotion?.forkLsn} ${row.age} ${row.stalled} ${row.promised} ` +
        `${row.goalAge} ${row.fetchFrom} ${row.priority} ${row.notSentTo.join("")}`;
    }
    if (late) {
      const { report: r } = late;
      text += `;${flag(late.overtaken)} ${rank(r.goalVersion)} ${r.reported} ${flag(r.pgRunning)} ${r.startFailures} ${r.timeline} ${r.lsn} ${r.inRecovery} ${flag(r.streaming)} ${r.promotion?.timeline} ${r.shutdown} ${flag(r.asks)} ${r.sendsTo} ${set(r.inForce)}`;
    }
    text +=
      `;${d.state} ${d.goal} ${rank(d.goalVersion)} ${ranks.get(d.syncVersion)} ${d.following} ${d.promotedFrom} ${d.promotion?.timeline} ` +
      `${d.promotion?.forkLsn} ${flag(d.dataReady)}${flag(d.readOnly)} ${d.names.number}(${d.names.members})` +
      `;${pg.run} ${pg.nextStart} ${flag(pg.primary)}${flag(pg.readOnly)} ${pg.wal} ${pg.from} ` +
      `${pg.feed ? `${pg.feed.number}(${pg.feed.members})` : "-"} ${pg.names.number}(${pg.names.members}) ${ranks.get(pg.proof)};`;
    if (k) {
      text +=
        `${flag(k.frozen)}${flag(k.thawed)}${k.guard} ${k.contact} ${k.contactAge}${k.trueContactAge}${k.replyAge}${k.dryAge} ${k.crash} ${k.startFailures} ${k.shutdown} ` +
        `${k.task?.to} ${k.task?.action} ${k.task?.phase} ${k.task?.failed} ${k.sync?.from} ${set(k.sync?.set)} ${set(k.proven)} ` +
        `${k.written ? `${k.written.number}(${k.written.members})` : "-"} ${answer(k.answer, rank)} ` +
        `${k.heard ? `${k.heard.age} ${answer(k.heard.answer, rank)}` : "-"}`;
    }
    return text;
  };
  const { group: g } = w;
  const s = g.settings;
  return (
    `${w.nodes.map(node).join("|")}|${set(g.sync)} ${g.pending.map(set)} ${set(g.inForce)} ` +
    `${g.history.map((h) => `${h.timeline}@${h.forkLsn}`)} ${g.request} ${flag(g.planned)}${g.leaveAlone} ${g.requestAge} ${flag(g.disputed)} ` +
    `${s.durability} ${s.numberSyncStandbys} ${flag(s.strictFencing)} ${flag(w.monitorUp)} ${w.watched} ${w.cuts} ` +
    `${w.acked} ${flag(w.lossy)} ${w.serial} ${w.faultsLeft} ${w.commitsLeft} ${w.operationsLeft}`
  );
}
