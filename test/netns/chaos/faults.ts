/** What can go wrong, as a table; each row says how it begins and how it ends. */

import { runRole } from "../../helpers/command.ts";
import { signal } from "../../helpers/processes.ts";
import { type Random, randomOf } from "../../model/random.ts";
import type { ChaosCluster } from "./hosts.ts";

/** What a fault needs to itself while it lasts, e.g. the host's power. */
export type Fault = {
  name: string;
  /** How often it is drawn, against the others. */
  weight: number;
  on: "node" | "monitor" | "host" | "pair" | "group";
  begin: (cluster: ChaosCluster, target: Target) => unknown;
  end?: (cluster: ChaosCluster, target: Target) => unknown;
};

/** `random` is for the fault's own choices, the same in each run of a seed. */
export type Target = { label: string; other: string; random: number };

/** `atPrimary`: it hits whoever is the primary when it begins, else the host that was drawn. */
export type Planned = {
  fault: Fault;
  target: Target;
  atPrimary: boolean;
  startMs: number;
  endMs: number;
};

const ROUND_MS = 15_000;

const postmaster = (cluster: ChaosCluster, { label }: Target, name: NodeJS.Signals): void => {
  const pid = cluster.service(label).postmaster();
  if (pid !== undefined) signal(pid, name);
};

const others = (cluster: ChaosCluster, label: string): string[] =>
  cluster.services.map((service) => service.label).filter((other) => other !== label);

/** An operator's command; that it is refused in the middle of a fault is as it should be. */
const command = (role: "formation" | "node" | "keeper", ...args: string[]) => {
  return async (cluster: ChaosCluster, target: Target): Promise<void> => {
    const named = await nameOf(cluster, target.label);
    const all = args.map((arg) => (arg === "NAME" ? named : arg));
    const flags = ["--monitor", cluster.monitorUri];
    await runRole(role, [...all, ...flags], { env: cluster.env, timeoutMs: 60_000 }).catch(
      () => undefined,
    );
  };
};

const ids = new Map<string, string>();
/** The node's name; the monitor may be away when it is asked for. */
async function nameOf(cluster: ChaosCluster, label: string): Promise<string> {
  for (const { port, name } of await cluster.states().catch(() => [])) ids.set(String(port), name);
  return ids.get(String(cluster.service(label).port)) ?? label;
}

export const FAULTS: readonly Fault[] = [
  {
    name: "kill -9 of the postmaster",
    weight: 6,
    on: "node",
    begin: (c, t) => postmaster(c, t, "SIGKILL"),
  },
  {
    name: "kill -9 of the keeper",
    weight: 4,
    on: "node",
    begin: (c, { label }) => c.service(label).process?.signal("SIGKILL"),
  },
  {
    name: "kill -9 of keeper and postmaster",
    weight: 3,
    on: "node",
    begin: (c, t) => {
      c.service(t.label).process?.signal("SIGKILL");
      postmaster(c, t, "SIGKILL");
    },
  },
  {
    name: "SIGSTOP of the postmaster",
    weight: 3,
    on: "node",
    begin: (c, t) => postmaster(c, t, "SIGSTOP"),
    end: (c, t) => postmaster(c, t, "SIGCONT"),
  },
  {
    name: "SIGSTOP of PostgreSQL",
    weight: 3,
    on: "node",
    begin: (c, { label }) =>
      void (c.service(label).postmaster() && c.service(label).freezePostgres({ children: true })),
    end: (c, { label }) => c.thaw(label),
  },
  {
    name: "SIGSTOP of the keeper",
    weight: 3,
    on: "node",
    begin: (c, { label }) => c.service(label).process?.signal("SIGSTOP"),
    end: (c, { label }) => c.service(label).process?.signal("SIGCONT"),
  },
  {
    name: "frozen host",
    weight: 4,
    on: "host",
    begin: (c, { label }) => c.freeze(label),
    end: (c, { label }) => c.thaw(label),
  },
  {
    name: "power loss",
    weight: 5,
    on: "host",
    begin: (c, { label }) => c.cutPower(label),
    end: (c, { label }) => c.restorePower(label),
  },
  {
    name: "power loss of all nodes",
    weight: 1,
    on: "group",
    begin: (c) => {
      for (const { label } of c.nodes) c.cutPower(label);
    },
    end: (c) => Promise.all(c.nodes.map(({ label }) => c.restorePower(label))),
  },
  {
    name: "kill -9 of the monitor's process",
    weight: 2,
    on: "monitor",
    begin: (c) => c.monitor.process?.signal("SIGKILL"),
  },
  {
    name: "SIGSTOP of the monitor's process",
    weight: 2,
    on: "monitor",
    begin: (c) => c.monitor.process?.signal("SIGSTOP"),
    end: (c) => c.monitor.process?.signal("SIGCONT"),
  },
  {
    name: "kill -9 of the monitor's PostgreSQL",
    weight: 2,
    on: "monitor",
    begin: (c, t) => postmaster(c, t, "SIGKILL"),
  },
  {
    name: "cut off from everybody",
    weight: 5,
    on: "host",
    begin: (c, { label }) => c.network.isolate(label),
    end: (c, { label }) => c.network.heal([label], others(c, label)),
  },
  {
    name: "cut in both directions",
    weight: 4,
    on: "pair",
    begin: (c, { label, other }) => c.network.cut([label], [other]),
    end: (c, { label, other }) => c.network.heal([label], [other]),
  },
  {
    name: "cut in one direction",
    weight: 5,
    on: "pair",
    begin: (c, { label, other }) => c.network.cutOneWay([label], [other]),
    end: (c, { label, other }) => c.network.heal([label], [other]),
  },
  {
    name: "hears nobody",
    weight: 2,
    on: "host",
    begin: (c, { label }) => c.network.cutOneWay(others(c, label), [label]),
    end: (c, { label }) => c.network.heal([label], others(c, label)),
  },
  {
    name: "loses packets",
    weight: 3,
    on: "host",
    begin: (c, { label, random }) => c.network.lose(label, random < 0.5 ? 5 : 20),
    end: (c, { label }) => c.network.lose(label, 0),
  },
  {
    name: "slow line",
    weight: 2,
    on: "host",
    begin: (c, { label, random }) => c.network.delay(label, random < 0.5 ? 50 : 400),
    end: (c, { label }) => c.network.delay(label, 0),
  },
  {
    name: "full disk",
    weight: 3,
    on: "node",
    begin: (c, { label }) => c.disk(label).fill(),
    end: (c, { label }) => c.disk(label).free(),
  },
  {
    name: "hung disk",
    weight: 3,
    on: "node",
    begin: (c, { label }) => c.disk(label).freeze(),
    end: (c, { label }) => c.disk(label).thaw(),
  },
  {
    name: "read-only disk, then power loss",
    weight: 2,
    on: "node",
    begin: (c, { label }) => c.disk(label).fail(),
    end: async (c, { label }) => {
      c.cutPower(label);
      await c.dead(label);
      c.disk(label).repair();
      await c.restorePower(label);
    },
  },
  {
    name: "clock an hour off",
    weight: 3,
    on: "host",
    begin: (c, { label, random }) => c.setClock(label, random < 0.5 ? 3600 : -3600),
    end: (c, { label }) => c.setClock(label, 0),
  },
  { name: "switchover", weight: 4, on: "group", begin: command("formation", "switchover") },
  { name: "failover by hand", weight: 2, on: "group", begin: command("formation", "failover") },
  {
    name: "promotion by hand of a node",
    weight: 2,
    on: "node",
    begin: command("node", "promote", "--name", "NAME"),
  },
  {
    name: "maintenance",
    weight: 3,
    on: "node",
    begin: command("node", "maintenance", "on", "--name", "NAME", "--allow-failover"),
    end: command("node", "maintenance", "off", "--name", "NAME"),
  },
  {
    name: "candidate priority",
    weight: 2,
    on: "node",
    begin: command("node", "set", "candidate-priority", "80", "--name", "NAME"),
    end: command("node", "set", "candidate-priority", "50", "--name", "NAME"),
  },
  {
    name: "number-sync-standbys 2",
    weight: 1,
    on: "group",
    begin: command("formation", "set", "number-sync-standbys", "2"),
    end: command("formation", "set", "number-sync-standbys", "0"),
  },
  {
    name: "protection",
    weight: 1,
    on: "group",
    begin: command("formation", "set", "durability", "protection"),
    end: command("formation", "set", "durability", "availability"),
  },
  {
    name: "new replication password",
    weight: 1,
    on: "group",
    begin: command("formation", "rotate-password"),
  },
];

const TOTAL = FAULTS.reduce((sum, { weight }) => sum + weight, 0);

function drawFault(random: Random): Fault {
  let rest = random.below(TOTAL);
  for (const fault of FAULTS) {
    rest -= fault.weight;
    if (rest < 0) return fault;
  }
  throw new Error("weights don't add up");
}

/** The faults of a round, by their beginnings: one to four, of which some overlap. */
export function drawRound(seed: number, nodes: readonly string[]): Planned[] {
  const random = randomOf(seed);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const count = 1 + random.below(4);
  const planned: Planned[] = [];
  while (planned.length < count) {
    const fault = drawFault(random);
    const hosts = fault.on === "node" || fault.on === "group" ? nodes : [...nodes, "monitor"];
    const label = fault.on === "monitor" ? "monitor" : pick(hosts);
    const other = pick(["monitor", ...nodes].filter((each) => each !== label));
    const startMs = random.below(ROUND_MS / 2);
    const endMs = startMs + (random.chance(0.3) ? 500 : 1000) + random.below(ROUND_MS / 2);
    const target = { label, other, random: random.below(1000) / 1000 };
    // One host has one power switch, one disk and one clock: the same twice at once would end the other's.
    if (planned.some((each) => each.fault === fault && each.target.label === label)) continue;
    const atPrimary = (fault.on === "node" || fault.on === "host") && random.chance(0.4);
    planned.push({ fault, target, atPrimary, startMs, endMs });
  }
  return planned.sort((left, right) => left.startMs - right.startMs);
}

/** The faults of a round in words, for the log. */
export function describe({ fault, target, atPrimary, startMs, endMs }: Planned): string {
  const { other } = target;
  const label = atPrimary ? "the primary" : target.label;
  const whom = { node: label, monitor: label, host: label, pair: `${label}, ${other}`, group: "" }[
    fault.on
  ];
  const until = fault.end ? `–${(endMs / 1000).toFixed(1)}` : "";
  return `${(startMs / 1000).toFixed(1)}${until} s ${fault.name}${whom && ` (${whom})`}`;
}
