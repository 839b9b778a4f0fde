/** Everything that can happen to a group: the ordinary, faults, and what recovers from them. */
import { hasWork, stepOf, turn } from "./keeper.ts";
import {
  canDrop,
  decideAll,
  hasNews,
  loseContact,
  record,
  report,
  reportOf,
  takeAnswer,
} from "./monitor.ts";
import {
  acknowledge,
  type Coverage,
  clone,
  endServer,
  isWritable,
  type Keeper,
  type Laws,
  type Node,
  nodeOf,
  type Row,
  same,
  streamsFrom,
  type World,
} from "./world.ts";

function startKeeper(n: Node): void {
  const crash = n.pg.run === "down" && n.disk.dataReady ? "new" : "none";
  n.keeper = {
    contact: "never",
    contactAge: 0,
    replyAge: 2,
    answer: undefined,
    sync: undefined,
    written: undefined,
    task: undefined,
    crash,
  };
}

function register(w: World, n: Node): void {
  startKeeper(n);
  n.row = {
    reported: "init",
    goal: "init",
    pgRunning: false,
    timeline: 0,
    streaming: false,
    sync: undefined,
    age: 0,
    stalled: 0,
    considered: false,
  };
  takeAnswer(w, n, n.keeper as Keeper);
}

export function stream(w: World, n: Node): void {
  const primary = streamsFrom(w, n);
  if (!primary) return;
  n.pg.wal = primary.pg.wal;
  n.pg.timeline = primary.pg.timeline;
  if (primary.pg.names.includes(n.id)) acknowledge(w, n.pg.wal);
}

function takeNames(w: World, n: Node): void {
  n.pg.names = n.disk.names;
  if (n.pg.names.length === 0) acknowledge(w, n.pg.wal); // releases whoever waits
}

export function commit(w: World, n: Node): void {
  w.commitsLeft -= 1;
  n.pg.wal += n.pg.timeline;
  if (n.pg.names.length === 0) acknowledge(w, n.pg.wal);
}

/** What must happen before a threshold's time has passed: fences and stops are quick. */
function mustGoFirst(n: Node, laws: Laws): boolean {
  if (!n.keeper || !n.on) return false;
  return ["fence", "abort", "stop"].includes(stepOf(n, n.keeper, laws).do);
}

/** Time up to the next threshold; whoever can report has done so in between. */
function tick(w: World): void {
  const older = (age: number, max: number): number => Math.min(age + 1, max);
  for (const n of w.nodes) {
    const { keeper, row } = n;
    if (row) {
      const isStalled = row.goal === "secondary" && !row.streaming;
      row.stalled = isStalled ? older(row.stalled, 2) : 0;
      row.age = keeper && n.link ? 0 : older(row.age, 3);
    }
    if (!keeper) continue;
    keeper.contactAge = n.link ? 0 : older(keeper.contactAge, 2);
    const heard = w.nodes.some((standby) => streamsFrom(w, standby) === n);
    keeper.replyAge = heard || !n.pg.primary ? 0 : older(keeper.replyAge, 2);
    if (keeper.crash !== "none") keeper.crash = "considered";
    if (!n.link) loseContact(keeper);
  }
}

/** `touches`: the nodes that it may change. */
export type Event = readonly [name: string, touches: readonly number[], happen: (w: World) => void];

/** What the product does of itself when nothing is broken; also how a group is brought to rest. */
export function ordinaryEvents(w: World, n: Node, laws: Laws, seen: Coverage): Event[] {
  const { id } = n;
  const on = (body: (w: World, n: Node, keeper: Keeper) => void) => (next: World) => {
    const node = nodeOf(next, id);
    body(next, node, node.keeper as Keeper);
  };
  const list: Event[] = [];
  if (n.keeper && n.on) {
    if (n.link && hasNews(w, n, n.keeper, laws))
      list.push([`node ${id} reports`, [id], on((x, m) => report(x, m, true, laws))]);
    if (!n.link && (n.keeper.contact === "fresh" || n.keeper.crash === "new"))
      list.push([`node ${id} can't report`, [id], on((_, __, keeper) => loseContact(keeper))]);
    if (hasWork(n, n.keeper, laws))
      list.push([`keeper ${id} takes a step`, [id], on((x, m, k) => turn(x, m, k, laws, seen))]);
  }
  if (n.pg.run === "up" && n.pg.primary && !same(n.pg.names, n.disk.names))
    list.push([`server ${id} takes the names over`, [id], on(takeNames)]);
  const primary = streamsFrom(w, n);
  const behind = primary && primary.pg.wal !== n.pg.wal;
  if (behind || (primary?.pg.names.includes(id) && !w.acked.startsWith(primary.pg.wal)))
    list.push([`node ${id} receives`, [id], on(stream)]);
  return list;
}

export const decideEvent = (laws: Laws, seen: Coverage): Event => [
  "the monitor decides",
  [1, 2],
  (next) => decideAll(next, laws, seen),
];
export const tickEvent: Event = ["time passes", [1, 2], tick];

function faults(w: World, n: Node, laws: Laws): Event[] {
  const { id } = n;
  const list: Event[] = [];
  const fault = (name: string, body: (w: World, n: Node) => void): void => {
    list.push([
      name,
      [id],
      (next) => {
        next.faultsLeft -= 1;
        body(next, nodeOf(next, id));
      },
    ]);
  };
  if (n.keeper && n.row) {
    fault(`keeper ${id} is killed`, (_, m) => {
      m.keeper = undefined;
    });
    if (n.link) {
      fault(`node ${id} reports and hears no answer`, (x, m) => report(x, m, false, laws));
      if (!n.late)
        fault(`a report of node ${id} is held up`, (x, m) => {
          m.late = { report: reportOf(x, m, m.keeper as Keeper, laws), overtaken: false };
          loseContact(m.keeper as Keeper);
        });
    }
  }
  if (n.on && n.row) {
    fault(`host ${id} loses power`, (_, m) => {
      Object.assign(m, { on: false, keeper: undefined });
      m.pg.run = "down";
    });
  }
  if (n.pg.run === "up") {
    fault(`server ${id} is killed`, (_, m) => endServer(m));
    fault(`server ${id} freezes`, (_, m) => {
      m.pg.run = "hung";
    });
  }
  if (n.link && n.row) {
    fault(`node ${id} is cut off from the monitor`, (_, m) => {
      m.link = false;
    });
    if (w.stream && w.nodes.length > 1)
      fault(`node ${id} is cut off from everybody`, (x, m) => {
        m.link = false;
        x.stream = false;
      });
  }
  return list;
}

function recoveries(n: Node, laws: Laws): Event[] {
  const { id } = n;
  const list: Event[] = [];
  const recovery = (name: string, body: (w: World, n: Node) => void): void => {
    list.push([name, [id], (next) => body(next, nodeOf(next, id))]);
  };
  if (!n.keeper && n.row)
    recovery(`keeper ${id} starts`, (_, m) => {
      m.on = true;
      startKeeper(m);
    });
  if (n.pg.run === "hung")
    recovery(`server ${id} thaws`, (_, m) => {
      m.pg.run = "up";
    });
  if (n.keeper?.task?.to === "primary")
    recovery(`keeper ${id} gives its transition up`, (_, m) => {
      if (m.keeper) m.keeper.task = undefined;
    });
  if (!n.link)
    recovery(`node ${id} reaches the monitor again`, (_, m) => {
      m.link = true;
    });
  if (n.late)
    recovery(`the late report of node ${id} arrives`, (_, m) => {
      const late = m.late;
      m.late = undefined;
      if (late && (!late.overtaken || laws.acceptsLateReports)) record(m, late.report);
    });
  return list;
}

/** Everything that can happen next. */
export function eventsOf(w: World, laws: Laws, seen: Coverage): Event[] {
  const list: Event[] = w.nodes.flatMap((n) => [
    ...ordinaryEvents(w, n, laws, seen),
    ...recoveries(n, laws),
    ...(w.faultsLeft > 0 ? faults(w, n, laws) : []),
  ]);
  for (const { id, row, ...n } of w.nodes) {
    if (row === undefined && n.disk.state === "init" && !n.keeper && (id === 1 || w.nodes[0]?.row))
      list.push([`node ${id} registers`, [id], (next) => register(next, nodeOf(next, id))]);
    if (w.commitsLeft > 0 && isWritable({ id, row, ...n }))
      list.push([
        `an application commits on node ${id}`,
        [id],
        (next) => commit(next, nodeOf(next, id)),
      ]);
    if (w.dropsLeft > 0 && canDrop(w, nodeOf(w, id)))
      list.push([
        `node ${id} is dropped`,
        [id],
        (next) => {
          next.dropsLeft -= 1;
          const node = nodeOf(next, id);
          node.row = { ...(node.row as Row), goal: "dropped" };
        },
      ]);
  }
  if (!w.stream)
    list.push([
      "the nodes reach one another again",
      [],
      (next) => {
        next.stream = true;
      },
    ]);
  else if (w.faultsLeft > 0 && w.nodes.length > 1)
    list.push([
      "the nodes can't reach one another",
      [],
      (next) => {
        next.stream = false;
        next.faultsLeft -= 1;
      },
    ]);
  list.push(decideEvent(laws, seen));
  if (!w.nodes.some((n) => mustGoFirst(n, laws))) list.push(tickEvent);
  return list;
}

/** Everything runs and reaches everything; no fault, commit or removal is left to happen. */
export function healed(w: World): World {
  const next = clone(w);
  Object.assign(next, { stream: true, faultsLeft: 0, commitsLeft: 0, dropsLeft: 0 });
  for (const n of next.nodes) {
    Object.assign(n, { on: true, link: true, late: undefined });
    if (n.pg.run === "hung") n.pg.run = "up";
    if (n.row && !n.keeper) startKeeper(n);
  }
  return next;
}
