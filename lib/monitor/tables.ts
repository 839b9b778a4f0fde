/** What the monitor knows, as tables for people. */
import { canTakeWrites, STATE_TRAITS } from "../fsm.ts";
import { assignedSet, primaryOf } from "../group/facts.ts";
import { phasesOf } from "../group/failovers.ts";
import { synchronousStandbyNames } from "../group/quorum.ts";
import type { EventRow, GroupRow, StateRow } from "../shapes.ts";
import type { FormationFailover } from "./failovers.ts";
import { FORMATION_SETTINGS } from "./settings.ts";

/** In UTC, with milliseconds. */
export const timeText = (time: Date): string =>
  time.toISOString().replace("T", " ").replace("Z", "");

/** Whether the formation has more than one group, which its tables then tell apart. */
const hasGroups = (rows: readonly { readonly group_id: number }[]): boolean =>
  rows.some(({ group_id }) => group_id !== rows[0]?.group_id);

/** What a client can do there; `!`: the last health check failed, `?`: there was none. */
function connection(row: StateRow): string {
  const traits = STATE_TRAITS[row.current_group_state];
  const mode = !row.pg_is_running
    ? "none"
    : canTakeWrites(row.current_group_state)
      ? "read-write"
      : traits.postgres === "up"
        ? "read-only"
        : "none";
  return `${mode}${row.health === 0 ? " !" : row.health < 0 ? " ?" : ""}`;
}

export const STATE_HEADER = [
  ...["Name", "Node", "Host:Port", "TLI: LSN", "Connection", "Sync"],
  ...["Reported State", "Assigned State"],
] as const;

export function stateCells(row: StateRow, rows: readonly StateRow[]): string[] {
  return [
    row.nodename,
    hasGroups(rows) ? `${row.group_id}/${row.node_id}` : String(row.node_id),
    `${row.nodehost}:${row.nodeport}`,
    `${row.reported_tli}: ${row.reported_lsn}`,
    connection(row),
    row.reported_repstate || "-",
    row.current_group_state,
    row.assigned_group_state,
  ];
}

export const EVENT_HEADER = ["Time", "Node", "Reported / Assigned", "Rule", "Comment"] as const;

export const eventCells = (row: EventRow): string[] => [
  timeText(row.eventtime),
  row.nodename,
  `${row.reportedstate} / ${row.goalstate}`,
  row.rule ?? "-",
  row.description,
];

/** One event as a line of its own, for those that come one by one. */
export function eventLine(row: EventRow): string {
  const [time = "", node = "", states = "", rule = "", comment = ""] = eventCells(row);
  return `${time} ${node.padEnd(10)} ${states.padEnd(33)} ${rule.padEnd(4)} ${comment}`;
}

const msText = (ms: number | null): string => (ms === null ? "-" : `${Math.round(ms)} ms`);

export const FAILOVER_HEADER = [
  ...[
    "Started",
    "Group",
    "Kind",
    "Status",
    "From",
    "To",
    "Decide",
    "Disconnect",
    "Promote",
    "Open",
  ],
  ...["Outage", "Redundancy", "Note"],
] as const;

export function failoverCells({ groupId, failover }: FormationFailover): string[] {
  const { kind, status, from, to, noticedMs, decidedMs, lostBytes, notes } = failover;
  const { decide, disconnect, promote, open, outage, redundancy } = phasesOf(failover);
  const loss = lostBytes === null ? [] : [`${lostBytes} bytes or more are lost`];
  return [
    ...[timeText(new Date(noticedMs ?? decidedMs)), String(groupId), kind, status, from, to ?? "-"],
    ...[decide, disconnect, promote, open, outage, redundancy].map(msText),
    [...loss, ...notes].join("; ") || "-",
  ];
}

/** The primary's `synchronous_standby_names`: as it should be now, as assigned, and as in force; null: not known. */
export type StandbyNames = {
  readonly groupId: number;
  readonly primary: string | null;
  readonly desired: string;
  readonly assigned: string;
  readonly inForce: string | null;
};

export const standbyNamesOf = (view: GroupRow): StandbyNames => ({
  groupId: view.groupId,
  primary: primaryOf(view.nodes)?.name ?? null,
  desired: synchronousStandbyNames(assignedSet(new Map(), view)),
  assigned: synchronousStandbyNames(view.sync),
  inForce: view.inForce ? synchronousStandbyNames(view.inForce) : null,
});

export const STANDBY_NAMES_HEADER = ["Group", "Primary", "Which", "synchronous_standby_names"];

/** Quoted, since the empty text has a meaning. */
export const standbyNamesCells = (names: StandbyNames): string[][] =>
  (["desired", "assigned", "inForce"] as const).map((which) => [
    ...[String(names.groupId), names.primary ?? "-", which === "inForce" ? "in force" : which],
    names[which] === null ? "not known" : `'${names[which]}'`,
  ]);

/** One setting, and whose it is. */
export type Setting = {
  readonly context: "formation" | "primary" | "node";
  /** Null: the group has no primary. */
  readonly name: string | null;
  readonly setting: string;
  readonly value: unknown;
  readonly unit: "ms" | "bytes" | null;
  /** Null: of the formation, or computed. */
  readonly isDefault: boolean | null;
};

/** Of the formation, of each group's primary, and of each node. */
export const settings = (
  formation: string,
  values: Readonly<Record<string, unknown>>,
  groups: readonly StandbyNames[],
  nodes: readonly StateRow[],
): Setting[] => [
  ...FORMATION_SETTINGS.map(
    ({ name: setting, column, unit = null }): Setting => ({
      ...{ context: "formation", name: formation, setting },
      ...{ value: values[column], unit, isDefault: null },
    }),
  ),
  ...groups.map(
    ({ primary: name, assigned: value }): Setting => ({
      ...{ context: "primary", name, setting: "synchronous_standby_names" },
      ...{ value, unit: null, isDefault: null },
    }),
  ),
  ...nodes.flatMap(({ nodename: name, candidate_priority, replication_quorum }): Setting[] => [
    {
      ...{ context: "node", name, setting: "candidate-priority", value: candidate_priority },
      ...{ unit: null, isDefault: candidate_priority === 50 },
    },
    {
      ...{ context: "node", name, setting: "replication-quorum", value: replication_quorum },
      ...{ unit: null, isDefault: replication_quorum },
    },
  ]),
];

export const SETTINGS_HEADER = ["Context", "Name", "Setting", "Value", "Unit", "Default"];

export const settingCells = ({
  context,
  name,
  setting,
  value,
  unit,
  isDefault,
}: Setting): string[] => [
  ...[
    context,
    name ?? "-",
    setting,
    context === "primary" ? `'${value}'` : String(value),
    unit ?? "-",
  ],
  isDefault === null ? "-" : isDefault ? "yes" : "no",
];
