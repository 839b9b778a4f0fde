/** What the README says of defaults is what the code does. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DEFAULT_POLICY, DEFAULT_SETTINGS } from "../../lib/group/view.ts";

const readme = readFileSync(join(import.meta.dir, "../../README.md"), "utf8");
const schema = readFileSync(join(import.meta.dir, "../../lib/monitor/schema/001_init.sql"), "utf8");

const TIMERS = {
  heartbeat: DEFAULT_POLICY.heartbeatMs,
  network_partition_timeout: DEFAULT_POLICY.networkPartitionTimeoutMs,
  fence_stop_timeout: DEFAULT_POLICY.fenceStopTimeoutMs,
  node_timeout: DEFAULT_POLICY.nodeTimeoutMs,
  unreachable_primary_timeout: DEFAULT_POLICY.unreachablePrimaryTimeoutMs,
  postgres_timeout: DEFAULT_POLICY.postgresTimeoutMs,
  fast_forward_timeout: DEFAULT_POLICY.fastForwardTimeoutMs,
  switchover_timeout: DEFAULT_POLICY.switchoverTimeoutMs,
};

test.each(Object.entries(TIMERS))(
  "the README and the schema have the default of %s",
  (name, ms) => {
    expect(readme).toContain(`\`${name}\` ${ms / 1000} s`);
    expect(schema).toMatch(new RegExp(`\\b${name}_ms +int not null default ${ms}\\b`));
  },
);

test("the schema's other defaults are the code's", () => {
  expect(schema).toContain(`default '${DEFAULT_SETTINGS.durability}'`);
  expect(schema).toContain(`not null default ${DEFAULT_SETTINGS.maximumLagBytes} check`);
  expect(schema).toMatch(
    new RegExp(`caught_up_bytes +bigint not null default ${DEFAULT_POLICY.caughtUpBytes}\\b`),
  );
});
