/** The playbooks on the next Debian, whose PostgreSQL is 17. */
import { fromBareHosts, handOver, lossOfPower, nothingLost, onceMore } from "./chapters.ts";
import { storyOn } from "./story.ts";

const chapter = storyOn({ suite: "trixie", hosts: ["monitor1", "db1", "db2"] });

chapter("site.yml makes a formation of bare hosts with PostgreSQL 17", (story) =>
  fromBareHosts(story, 17),
);

chapter("a second run of it changes nothing", onceMore);

chapter("the primary's host loses power, and comes back by itself", async (story) => {
  story.writer = await story.site.writer();
  await lossOfPower(story);
});

chapter("switchover.yml hands over", handOver);

chapter("no row was lost in all that time", nothingLost);
