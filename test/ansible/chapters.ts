/** What formations on hosts of any suite go through. */
import { expect } from "bun:test";
import type { Suite } from "../helpers/lab.ts";
import { changes, outages } from "../helpers/site.ts";
import { nowMs } from "../helpers/wait.ts";
import { type Story, storyOn } from "./story.ts";

/** Longest time without an acknowledged write in a change that was planned: all hosts share one disk. */
const PLANNED_MS = 3000;
/** node_timeout, the monitor's checks and the promotion, on a busy machine. */
const FAILOVER_MS = 15_000;

const tell = (what: string, gapMs: number, more = ""): void =>
  console.error(`${what}: longest time without a write ${Math.round(gapMs)} ms${more}`);

/** Runs the playbook that makes the formation, and logs in as a client does. */
export async function fromBareHosts({ site }: Story, major: number): Promise<void> {
  const made = await site.play("site.yml");
  await site.healthy();
  const uri = await site.uri();
  expect(made.stdout).toContain(uri);
  const asked = `select ssl, current_user, current_setting('server_version_num')::int / 10000
                   from pg_stat_ssl where pid = pg_backend_pid()`;
  expect((await site.psql(uri, asked)).stdout).toBe(`t|app|${major}\n`);
  const plain = await site.psql(uri.replace("sslmode=require", "sslmode=disable"), asked);
  expect([plain.code, plain.stderr]).toEqual([2, expect.stringContaining("no encryption")]);
}

/** A second run of it changes nothing. */
async function onceMore({ site }: Story): Promise<void> {
  expect(changes(await site.play("site.yml"))).toBe(0);
}

/** Nor has a check anything to change. */
export async function onlyChecked({ site }: Story): Promise<void> {
  expect(changes(await site.play("site.yml", ["--check", "--diff"]))).toBe(0);
}

/** The primary's host loses power: another takes over, and it comes back by itself. */
async function lossOfPower({ lab, site, writer }: Story): Promise<void> {
  const primary = await site.healthy();
  const cutMs = nowMs();
  await lab.powerCut(primary);
  await site.promoted(primary);
  await writer?.waitForWrites(20, FAILOVER_MS);
  const gapMs = writer?.longestGapMs(cutMs) ?? Number.NaN;
  tell("loss of power", gapMs);
  expect(gapMs).toBeLessThanOrEqual(FAILOVER_MS);
  await lab.boot(primary);
  expect(await site.healthy()).not.toBe(primary);
}

/**
 * Runs a playbook for a planned change, which clients hardly notice.
 *
 * @param edit what becomes of the inventory after it
 * @returns the outages that it has told
 */
export async function planned(
  { site, writer }: Story,
  play: string,
  args: readonly string[] = [],
  edit: () => void = () => {},
): Promise<number[]> {
  const sinceMs = nowMs();
  const told = outages(await site.play(play, args));
  edit();
  await site.healthy();
  await writer?.waitForWrites(5, 5000);
  const gapMs = writer?.longestGapMs(sinceMs) ?? Number.NaN;
  tell(play, gapMs, `, told: ${told.join() || "none"}`);
  expect(gapMs).toBeLessThanOrEqual(PLANNED_MS);
  return told;
}

/** A node that isn't the primary is made the primary. */
async function handOver(story: Story): Promise<void> {
  const primary = await story.site.healthy();
  const to = story.lab.groups.nodes.find((name) => name !== primary) ?? "";
  const told = await planned(story, "switchover.yml", ["-e", `ha_to=${to}`]);
  expect([told.length, await story.site.healthy()]).toEqual([1, to]);
}

/** An orderly reboot of each host, one after the other. */
export async function reboots({ lab, site, writer }: Story): Promise<void> {
  for (const host of [...lab.groups.monitor, ...lab.groups.nodes]) {
    const sinceMs = nowMs();
    await lab.reboot(host);
    await site.healthy();
    await writer?.waitForWrites(20, FAILOVER_MS);
    tell(`reboot of ${host}`, writer?.longestGapMs(sinceMs) ?? Number.NaN);
  }
}

/** Every survivor holds every row that was acknowledged to the writer, and none that was refused. */
export async function nothingLost({ site, writer }: Story): Promise<void> {
  if (!writer) throw new Error("nobody has written");
  const lost = await site.lostOn(writer);
  expect(Object.values(lost).flat()).toEqual([]);
  console.error(`${writer.acknowledged} rows on each of ${Object.keys(lost).join(", ")}`);
}

/** The services of the monitor and of a node can do little beside what they are for, by systemd's own measure. */
async function sandboxes({ lab }: Story): Promise<void> {
  const exposures = [];
  for (const [host, unit] of Object.entries({ monitor1: "monitor", db1: "keeper" })) {
    const analyze = `systemd-analyze security --no-pager pg-auto-failover-${unit}.service`;
    const { stdout } = await lab.ssh(host, analyze);
    exposures.push(Number(/exposure level for \S+: ([\d.]+)/.exec(stdout)?.[1]));
  }
  expect(exposures.filter((exposure) => exposure <= 4)).toEqual(exposures);
}

/** Nobody but the keeper starts PostgreSQL: not systemd, nor who asks it to. */
async function ownServiceIsMasked({ lab }: Story, major: number): Promise<void> {
  const unit = `postgresql@${major}-main.service`;
  for (const host of lab.groups.nodes) {
    const { stdout } = await lab.ssh(host, `systemctl is-enabled ${unit}`);
    const { code, stderr } = await lab.ssh(host, `systemctl start ${unit}`);
    expect([stdout, code, stderr]).toEqual(["masked\n", 1, expect.stringContaining("is masked")]);
  }
}

/** From bare hosts of a suite, whose PostgreSQL is of this version, to the second primary. */
export function coreStory(suite: Suite, major: number): void {
  const chapter = storyOn({ suite, hosts: ["monitor1", "db1", "db2"] });
  chapter(`site.yml makes a formation of bare hosts with PostgreSQL ${major}`, (story) =>
    fromBareHosts(story, major),
  );
  chapter("a second run of it changes nothing", onceMore);
  chapter("both services live in a sandbox", sandboxes);
  chapter("the distribution's own service of PostgreSQL is masked", (story) =>
    ownServiceIsMasked(story, major),
  );
  chapter("the primary's host loses power, and comes back by itself", async (story) => {
    story.writer = await story.site.writer();
    await lossOfPower(story);
  });
  chapter("switchover.yml hands over", handOver);
  chapter("no row was lost in all that time", nothingLost);
}
