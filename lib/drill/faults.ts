/** What a drill breaks: to whom, what it takes, and what undoes it whatever becomes of the drill. */
import { lookup } from "node:dns/promises";
import { statSync } from "node:fs";
import { canTakeWrites } from "../fsm.ts";
import { primaryOf } from "../group/facts.ts";
import type { MonitorClient } from "../monitor/client.ts";
import { type Process, sendSignal } from "../pg/processes.ts";
import type { GroupRow, NodeRow } from "../shapes.ts";
import { delay } from "../sys/clock.ts";
import { AppError, invariant } from "../sys/errors.ts";
import { run } from "../sys/exec.ts";
import { openGuard } from "../sys/guard.ts";
import { waitUntil } from "../sys/retry.ts";
import { parseUri, type Target } from "../sys/sql.ts";
import { findKeeper, findPostmaster } from "./local.ts";

/** In the words of `--help`. */
export const SCENARIOS = {
  "kill-postgres": "kill -9 of the primary's postmaster, on its host",
  "kill-secondary": "kill -9 of a secondary's postmaster, on its host",
  switchover: "a planned one, from anywhere",
  "stop-keeper": "SIGSTOP of the primary's keeper, on its host, for twice node_timeout",
  partition: "the primary cut off from the monitor and all other nodes, as root on its host",
} as const;
export type Scenario = keyof typeof SCENARIOS;

export type Fault = {
  readonly node: NodeRow;
  /** What is done, as a sentence. */
  readonly what: string;
  /** Whether the monitor hears of it in any case: until then a group looks healthy. */
  readonly isNoticed: boolean;
  /** Breaks it; and comes back when it's whole again, or whole by itself. */
  readonly strike: (signal: AbortSignal) => Promise<void>;
};

export type Scene = {
  readonly monitor: MonitorClient;
  readonly monitorUri: string;
  readonly view: GroupRow;
  /** How to connect to a node as the drill's login. */
  readonly targetOf: (node: NodeRow) => Target;
};

/** After which the kernel and the guard end it, whatever the drill does. */
const PARTITION_MS = 60_000;
const NFT_TIMEOUT_MS = 5000;
const LOOK_EVERY_MS = 50;
const TABLE = "pg_auto_failover_drill";
/** A service manager may have put another one in its place: that one is not stopped. */
const GO_ON = 'kill -CONT "$0" || ! kill -0 "$0"';
/** Whether or not the table is there. */
const HEAL = `echo "table inet ${TABLE}; delete table inet ${TABLE}" | nft -f -`;

const named = ({ nodeId, name }: NodeRow): string => `node ${nodeId} "${name}"`;

function elsewhere(what: string, nodes: readonly NodeRow[]): AppError {
  const where = nodes.map((node) => `${named(node)} on ${node.host}`).join(", ");
  return new AppError("state", `${what} runs on another machine, or is another user's`, {
    detail: { node: nodes.map(({ name }) => name).join(",") },
    hint: `Run this drill where it is, as its owner or as root: ${where}.`,
  });
}

async function kill(node: NodeRow, postmaster: Process): Promise<void> {
  if (sendSignal(postmaster, "SIGKILL")) return;
  throw new AppError("state", "PostgreSQL has ended before the drill could kill it", {
    detail: { node: node.name, pid: postmaster.pid },
    hint: "roles/state.ts events says why.",
  });
}

async function killOneOf(scene: Scene, nodes: readonly NodeRow[], whose: string): Promise<Fault> {
  for (const node of nodes) {
    const postmaster = await findPostmaster(scene.targetOf(node));
    if (postmaster === undefined) continue;
    return {
      node,
      what: `kill -9 of the postmaster (pid ${postmaster.pid}) of ${named(node)}, ${whose}`,
      isNoticed: true,
      strike: () => kill(node, postmaster),
    };
  }
  throw elsewhere(`the PostgreSQL of ${whose}`, nodes);
}

async function stopKeeper(scene: Scene, primary: NodeRow): Promise<Fault> {
  const postmaster = await findPostmaster(scene.targetOf(primary));
  const keeper = postmaster && findKeeper(postmaster);
  if (keeper === undefined) throw elsewhere("the keeper of the primary", [primary]);
  const forMs = 2 * scene.view.policy.nodeTimeoutMs;
  return {
    node: primary,
    what: `SIGSTOP of the keeper (pid ${keeper.pid}) of ${named(primary)}, the primary, for ${forMs / 1000} s`,
    isNoticed: false,
    async strike(signal) {
      await using _ = openGuard(["sh", "-c", GO_ON, String(keeper.pid)], forMs + 5000);
      if (!sendSignal(keeper, "SIGSTOP")) throw elsewhere("the keeper of the primary", [primary]);
      await delay(forMs, signal);
    },
  };
}

type Addresses = { readonly v4: readonly string[]; readonly v6: readonly string[] };

async function addressesOf(hosts: readonly string[]): Promise<Addresses> {
  const found = (await Promise.all(hosts.map((host) => lookup(host, { all: true })))).flat();
  const of = (wanted: number) => [
    ...new Set(found.filter(({ family }) => family === wanted).map(({ address }) => address)),
  ];
  return { v4: of(4), v6: of(6) };
}

/**
 * What PostgreSQL and the keeper send to the others is lost, and what the others send to PostgreSQL. The drill itself is
 * another user's and goes on, and so do logins over SSH. The kernel forgets the addresses by itself in time.
 *
 * @param uid who runs PostgreSQL and the keeper
 * @see nft(8)
 */
export function partitionRules(peers: Addresses, uid: number, port: number, forMs: number): string {
  const families = [
    { name: "v4", type: "ipv4_addr", word: "ip", addresses: peers.v4 },
    { name: "v6", type: "ipv6_addr", word: "ip6", addresses: peers.v6 },
  ].filter(({ addresses }) => addresses.length > 0);
  const each = (line: (family: (typeof families)[number]) => string): string =>
    families.map((family) => `  ${line(family)}\n`).join("");
  const timeout = `${Math.ceil(forMs / 1000)}s`;
  return `table inet ${TABLE}
delete table inet ${TABLE}
table inet ${TABLE} {
${each(({ name, type, addresses }) => `set ${name} { type ${type}; timeout ${timeout}; elements = { ${addresses.join(", ")} }; }`)}  chain output {
  type filter hook output priority -1;
${each(({ name, word }) => `meta skuid ${uid} ${word} daddr @${name} drop`)}  }
  chain input {
  type filter hook input priority -1;
${each(({ name, word }) => `${word} saddr @${name} tcp dport ${port} drop`)}  }
}
`;
}

async function nft(words: readonly string[], input?: string): Promise<void> {
  const { code, stderr } = await run(["nft", ...words], { timeoutMs: NFT_TIMEOUT_MS, input });
  if (code === 0) return;
  throw new AppError("permission", "nft refuses the rules of the partition", {
    detail: { reason: stderr.trim() },
    hint: "The kernel needs nf_tables, and the drill the right to change them (CAP_NET_ADMIN).",
  });
}

async function partition(scene: Scene, primary: NodeRow): Promise<Fault> {
  const { monitor, monitorUri, view } = scene;
  if (process.platform !== "linux" || Bun.which("nft") === null) {
    throw new AppError("config", "a partition takes Linux and the program nft", {
      hint: "Debian has it in nftables; any other scenario does without.",
    });
  }
  if (process.geteuid?.() !== 0) {
    throw new AppError("permission", "a partition takes root, on the primary's host", {
      detail: { host: primary.host },
      hint: "Run it there with sudo, and name the login of the database with --username.",
    });
  }
  const postmaster = await findPostmaster(scene.targetOf(primary));
  if (postmaster === undefined) throw elsewhere("the PostgreSQL of the primary", [primary]);
  const { uid } = statSync(`/proc/${postmaster.pid}`);
  invariant(uid !== 0, "PostgreSQL never runs as root");
  const others = view.nodes.filter((node) => node !== primary).map(({ host }) => host);
  const peers = await addressesOf([...others, parseUri(monitorUri).host]);
  const own = await addressesOf([primary.host]);
  const shared = [...peers.v4, ...peers.v6].filter((address) =>
    [...own.v4, ...own.v6, "127.0.0.1", "::1"].includes(address),
  );
  if (shared.length > 0) {
    throw new AppError("state", "the primary shares its machine with others of the formation", {
      detail: { address: shared.join(",") },
      hint: "Cutting it off takes a machine of its own; kill-postgres works here.",
    });
  }
  return {
    node: primary,
    what: `the host of ${named(primary)}, the primary, is cut off from ${[...peers.v4, ...peers.v6].join(", ")} until another node takes writes`,
    isNoticed: true,
    async strike(signal) {
      await using _ = openGuard(["sh", "-c", HEAL], PARTITION_MS);
      await nft(["-f", "-"], partitionRules(peers, uid, primary.port, PARTITION_MS));
      const look = async () => {
        const now = await monitor.groupView(view.formation, view.groupId);
        const open = now.nodes.find(
          ({ reported, goal }) => canTakeWrites(goal) && canTakeWrites(reported),
        );
        return open !== undefined && open.nodeId !== primary.nodeId ? open : undefined;
      };
      const timeoutMs = PARTITION_MS - 5000;
      const what = "another node to take writes";
      await waitUntil(look, { timeoutMs, everyMs: LOOK_EVERY_MS, what, signal });
    },
  };
}

/**
 * Finds whom a scenario is about and what it takes; changes nothing.
 *
 * @throws {AppError} state, permission or config: it can't be done from here
 */
export async function prepareFault(scenario: Scenario, scene: Scene): Promise<Fault> {
  const { monitor, view } = scene;
  const primary = primaryOf(view.nodes);
  const node = view.nodes.find(({ nodeId }) => nodeId === primary?.nodeId);
  invariant(node !== undefined, "a healthy group has a primary");
  switch (scenario) {
    case "kill-postgres":
      return killOneOf(scene, [node], "the primary");
    case "kill-secondary": {
      const others = view.nodes.filter((each) => each !== node);
      // one that commits wait for, where there is such a one here
      const inSet = ({ nodeId }: NodeRow) => Number(view.sync.members.includes(nodeId));
      return killOneOf(
        scene,
        others.toSorted((a, b) => inSet(b) - inSet(a)),
        "a secondary",
      );
    }
    case "switchover":
      return {
        node,
        what: `switchover from ${named(node)}, the primary`,
        isNoticed: true,
        strike: () => monitor.switchover(view.formation, view.groupId, undefined),
      };
    case "stop-keeper":
      return stopKeeper(scene, node);
    case "partition":
      return partition(scene, node);
  }
}
