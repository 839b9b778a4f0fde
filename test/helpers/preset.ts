/** Another preset of timers for a cluster that runs. */
import { PRESETS } from "../../lib/group/view.ts";
import type { Cluster } from "./cluster.ts";
import { runRole } from "./command.ts";
import type { Service } from "./service.ts";

export type PresetName = keyof typeof PRESETS;

/** Sets it as an operator does, and waits until all go by its timers. */
export async function usePreset(
  cluster: Cluster,
  preset: PresetName,
  standbys: readonly Service[],
): Promise<void> {
  const args = ["set", "preset", preset, "--monitor", cluster.monitorUri];
  const { code, command, stderr } = await runRole("formation", args, { env: cluster.env });
  if (code !== 0) throw new Error(`${command} ended with ${code}: ${stderr}`);
  const { networkPartitionTimeoutMs, fenceStopTimeoutMs } = PRESETS[preset];
  const fencedMs = networkPartitionTimeoutMs + fenceStopTimeoutMs;
  await cluster.waitFor("all to go by these timers", 5000, async () => {
    const rows = await cluster.askMonitor("select fencems from pgautofailover.node");
    return rows.every(({ fencems }) => fencems === fencedMs);
  });
  await cluster.waitFor("the standbys to notice a silent primary in time", 5000, async () => {
    const text = "select setting from pg_settings where name = 'wal_receiver_timeout'";
    const answers = await Promise.all(standbys.map((node) => node.ask(text)));
    return answers.every(([row]) => Number(row?.["setting"]) === fencedMs);
  });
}
