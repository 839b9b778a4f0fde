/** Both tables for people: Markdown, and a Mermaid diagram of the keeper's. */
import {
  GROUP_RULES,
  type GroupRule,
  KEEPER_TRANSITIONS,
  type Match,
  SELF_ASSIGNED,
} from "../fsm.ts";

const code = (text: string): string => `\`${text}\``;
const words = (states: readonly string[]): string => states.map(code).join(", ");

const matchText = ({ at, states }: Match): string =>
  `${at === "both" ? "is" : at === "goal" ? "is to be" : "reports"} ${words(states)}`;
const matchesText = (matches: readonly Match[] = []): string => matches.map(matchText).join("; ");

const goalsText = ({ goals, sync, forget, passOver }: GroupRule): string =>
  [
    ...(goals.self ? [`node: ${code(goals.self)}`] : []),
    ...(goals.primary ? [`primary: ${code(goals.primary)}`] : []),
    ...(sync ? ["a new synchronous set"] : []),
    ...(forget ? ["the node is forgotten"] : []),
    ...(passOver ? ["the node is passed over"] : []),
  ].join("; ");

const row = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
const table = (header: readonly string[], rows: readonly (readonly string[])[]): string =>
  [row(header), row(header.map(() => "---")), ...rows.map(row)].join("\n");

const rulesTable = (): string =>
  table(
    ["Rule", "The node", "Its primary", "When", "Goals", "Because"],
    GROUP_RULES.map((rule) => [
      ...[rule.id, matchesText(rule.self), matchesText(rule.primary)],
      rule.when.map((fact) => fact.replace("!", "not ")).join(", "),
      ...[goalsText(rule), rule.why],
    ]),
  );

const transitionsTable = (): string =>
  table(
    ["Reported", "Goal", "Action", "Because"],
    [
      ...KEEPER_TRANSITIONS.map(([from, to, action, why]) => [
        ...[code(from), code(to), code(action), why],
      ]),
      ...SELF_ASSIGNED.map(([from, to]) => [code(from), code(to), "", "By itself: the fence"]),
    ],
  );

/**
 * The keeper's transitions as a Mermaid state diagram. Every state leads to `dropped` in the same way: only the diagram
 * leaves these arrows out.
 */
export function fsmDiagram(): string {
  const arrows = KEEPER_TRANSITIONS.filter(([, to]) => to !== "dropped").map(
    ([from, to, action]) => `${from} --> ${to}: ${action}`,
  );
  const fences = SELF_ASSIGNED.map(([from, to]) => `${from} --> ${to}: by itself, the fence`);
  const lines = ["[*] --> init", ...arrows, ...fences].map((line) => `    ${line}`);
  return ["stateDiagram-v2", ...lines].join("\n");
}

/** Both tables and the diagram, as sections of a Markdown document. */
export const fsmMarkdown = (): string =>
  [
    "### The monitor's rules",
    "The first row that fits and changes something wins. A node *is* what it reports and has as its goal.",
    rulesTable(),
    "### The keeper's transitions",
    transitionsTable(),
    "### The keeper's transitions as a diagram",
    "Every state leads to `dropped` as well.",
    `\`\`\`mermaid\n${fsmDiagram()}\n\`\`\``,
  ].join("\n\n");
