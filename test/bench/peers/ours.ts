/** Ours: a monitor and two keepers, with scram-sha-256 between the hosts, as documented. */
import { runRole } from "../../helpers/command.ts";
import { NetnsCluster } from "../../helpers/netns.ts";
import type { Service } from "../../helpers/service.ts";
import type { Site } from "./site.ts";
import type { Entrant, RaceNode, Setting, System } from "./system.ts";

export const ours: Entrant = {
  title: "ours",
  programs: [],
  packages: [],
  settings: {
    defaults: "as created; synchronous by default",
    tuned: "formation.ts set preset fast",
  },
  open,
};

async function open(site: Site, setting: Setting): Promise<System> {
  const cluster = await NetnsCluster.ofHosts(site.label, 2, site.rack);
  const formation = async (...words: string[]): Promise<void> => {
    const all = [...words, "--monitor", cluster.monitorUri];
    const { code, stderr } = await runRole("formation", all, { env: cluster.env });
    if (code !== 0) throw new Error(stderr);
  };
  if (setting === "tuned") {
    await formation("set", "preset", "fast");
    await cluster.waitFor("all nodes to go by these timers", 10_000, async () => {
      const [row] = await cluster.askMonitor(
        `select bool_and(fencems = network_partition_timeout_ms + fence_stop_timeout_ms) as known
           from pgautofailover.node join pgautofailover.formation using (formationid)`,
      );
      return row?.["known"] === true;
    });
  }
  const nodes = cluster.nodes.map(({ label, address, pgdata }) => ({ label, address, pgdata }));
  const service = ({ label }: RaceNode): Service => cluster.node(label);
  return {
    nodes,
    witness: "monitor",
    login: cluster.login,
    boot: async (node) => void service(node).start(),
    switchover: () => formation("switchover"),
    settled: async () => (await cluster.healthyPrimary()) !== undefined,
    close: async () => {
      for (const { process: role } of [cluster.monitor, ...cluster.nodes]) await role?.ended(5000);
      await cluster[Symbol.asyncDispose]();
    },
  };
}
