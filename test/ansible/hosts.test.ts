/** A formation on hosts of their own, through the rest of its life, by the playbooks alone. */
import { expect } from "bun:test";
import { changes, nextRelease } from "../helpers/site.ts";
import { fromBareHosts, nothingLost, onlyChecked, planned, reboots } from "./chapters.ts";
import { storyOn } from "./story.ts";

const chapter = storyOn({ hosts: ["monitor1", "db1", "db2", "db3"] });

chapter("site.yml makes a formation of bare hosts, and prints the clients' URI", (story) =>
  fromBareHosts(story, 15),
);

chapter("a check has nothing to change", onlyChecked);

chapter("site.yml adds the node that is new in the inventory", async (story) => {
  await story.lab.addHost("db4"); // Bare until it is in the inventory: it refuses the writer's connections.
  story.lab.groups.nodes = ["db1", "db2", "db3"];
  story.writer = await story.site.writer(["db4"]);
  story.lab.groups.nodes.push("db4");
  await planned(story, "site.yml");
});

chapter("remove_node.yml takes the first node out", async (story) => {
  const { lab, site } = story;
  await planned(story, "remove_node.yml", ["-e", "ha_remove=db1"], () => {
    lab.groups.nodes = ["db2", "db3", "db4"];
  });
  const left = await lab.ssh("db1", "systemctl is-active pg-auto-failover-keeper; pgrep postgres");
  expect(left.stdout).toBe("inactive\n");
  expect(changes(await site.play("site.yml"))).toBe(0);
});

chapter("update.yml puts the next release on every host", async (story) => {
  const { lab } = story;
  const hosts = [...lab.groups.monitor, ...lab.groups.nodes];
  const releases = async () => {
    const link = "readlink /opt/pg-auto-failover/current";
    return new Set(
      await Promise.all(hosts.map(async (host) => (await lab.ssh(host, link)).stdout)),
    );
  };
  const before = await releases();
  lab.clone = nextRelease(lab);
  await planned(story, "update.yml");
  const after = await releases();
  expect([before.size, after.size, after.isDisjointFrom(before)]).toEqual([1, 1, true]);
});

chapter("replace_monitor.yml makes another monitor when its host is lost", async (story) => {
  const { lab } = story;
  await lab.destroyHost("monitor1");
  await lab.addHost("monitor2");
  lab.groups.monitor = ["monitor2"];
  await planned(story, "replace_monitor.yml");
});

chapter("every host reboots in turn", reboots);

chapter("no row was lost in all that time", nothingLost);

chapter("destroy.yml wants the formation's name, and then leaves nothing", async (story) => {
  const { lab, site } = story;
  const refused = await lab.playbook("destroy.yml");
  expect([refused.code, changes(refused)]).toEqual([2, 0]);
  await site.play("destroy.yml", ["-e", "ha_destroy=default"]);
  const left =
    "pgrep postgres; cd / && ls -d var/lib/pg-auto-failover etc/pg-auto-failover opt/pg-auto-failover 2>/dev/null";
  for (const host of [...lab.groups.monitor, ...lab.groups.nodes]) {
    expect((await lab.ssh(host, left)).stdout).toBe("");
  }
});
