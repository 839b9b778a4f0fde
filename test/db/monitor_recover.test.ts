/** A database that knows less than the keepers: it says so, and waits to hear what they know. */

import { expect } from "bun:test";
import { createHash } from "node:crypto";
import {
  healthyGroup,
  identityOf,
  PRIMARY,
  refused,
  register,
  SECONDARY,
} from "./monitor_story.ts";
import { story } from "./pg_story.ts";

const here = import.meta.path;

/** An identity as the database tells it. */
const digestOf = (nodeId: number): string => {
  const bytes = Buffer.from(identityOf(nodeId).replaceAll("-", ""), "hex");
  return `\\x${createHash("sha256").update(bytes).digest("hex")}`;
};

story(
  here,
  "a report of later goals than the database has: nothing is recorded or decided any more",
  async (world) => {
    const { keeper, own, says, decide, row, monitor } = await healthyGroup(world, 2);
    const testify = () =>
      keeper.query("select pgautofailover.testify($1, $2::text::jsonb)", [
        identityOf(1),
        JSON.stringify({ nodeId: 1, identity: identityOf(1) }),
      ]);
    const heard = () => own.query("select said from pgautofailover.testimony");
    await testify();
    expect(await heard()).toEqual([]);

    await says(1, { ...PRIMARY, state: "wait_primary", goalVersion: 9 });
    const why = 'node 1 ("node_1") knows later goals, so its database was restored from the past';
    const told = `PA016: this monitor waits to be recovered: ${why}`;
    expect(await refused(says(2, { ...SECONDARY, pgIsRunning: false }))).toContain(told);
    expect(await refused(register(keeper, { port: 5009, identity: identityOf(4) }))).toContain(
      told,
    );
    expect(await decide()).toBe("no group");
    expect((await row()).nodes).toMatchObject([
      { reported: "primary", goal: "primary" },
      { reported: "secondary", pgRunning: true },
    ]);
    await testify();
    // whoever may read it can't speak for the node, and the monitor finds it among what was kept
    expect(await heard()).toEqual([{ said: { nodeId: 1, identity: digestOf(1) } }]);
    await monitor.close();
  },
);

story(
  here,
  "what a keeper keeps is given when something is newer, with all digits",
  async (world) => {
    const { keeper, own, monitor } = await healthyGroup(world, 2);
    await own.query("update pgautofailover.node set sysidentifier = 7434567890123456789");
    const memory = async (known: number) => {
      const [row] = await keeper.query<{ value: never }>(
        "select pgautofailover.group_memory('default', 0, $1) as value",
        [known],
      );
      return row?.value;
    };
    const first = await memory(-1);
    expect(first).toMatchObject({
      roster: [{ nodeId: 1 }, { nodeId: 2, identity: digestOf(2) }],
      nodes: [{ sysidentifier: "7434567890123456789" }, { candidatepriority: 50 }],
      timelines: [{ timeline: 1 }],
    });
    const { version } = first as unknown as { version: number };
    expect(await memory(version)).toBeNull();
    await keeper.query(
      "select pgautofailover.set_node_candidate_priority('default', 'node_2', 70)",
    );
    expect(await memory(version)).toMatchObject({ nodes: [{}, { candidatepriority: 70 }] });
    await monitor.close();
  },
);
