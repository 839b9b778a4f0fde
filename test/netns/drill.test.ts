/** The drill's partition: the primary's host, cut off by the drill that runs on it. */
import { expect } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { runRole } from "../helpers/command.ts";
import { netnsScenariosOf } from "../helpers/netns.ts";
import { signal } from "../helpers/processes.ts";
import type { Service } from "../helpers/service.ts";

const scenario = netnsScenariosOf("netnsdrill", 2);

/** Lets an operator in who sits on another node's host. */
async function letIn(node: Service, from: Service): Promise<void> {
  const file = join(node.pgdata, "pg_hba.conf");
  const line = `host all ${node.login.user} ${from.place.host}/32 trust\n`;
  writeFileSync(file, `${line}${readFileSync(file, "utf8")}`);
  signal(node.requirePostmaster(), "SIGHUP");
}

scenario(
  "partition: another node takes over, links are whole again, nothing is lost",
  async (scene) => {
    const { cluster, primary, secondary } = scene;
    await letIn(secondary, primary);
    const words = ["run", "partition", "--monitor", cluster.monitorUri, "--yes", "--json"];
    const { code, stdout, stderr } = await runRole(
      "drill",
      [...words, "--username", cluster.login.user],
      { env: cluster.env, prefix: primary.place.prefix, timeoutMs: 60_000 },
    );
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: expect.stringContaining("is cut off from"),
    });
    const told = JSON.parse(stdout);
    const [one, two] = [await cluster.nameOf(primary), await cluster.nameOf(secondary)];
    expect(told).toMatchObject({ summary: { lost: 0 }, rounds: [{ from: one, to: two }] });
    expect(told.rounds[0].outageMs).toBeWithin(2000, 10_000);
    const { stdout: left } = Bun.spawnSync([...primary.place.prefix, "nft", "list", "tables"]);
    expect(left.toString()).toBe("");
  },
);
