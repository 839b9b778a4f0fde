/** The playbooks on bare hosts, up to what every operator goes through: a failover and a switchover. */
import { coreStory } from "./chapters.ts";

coreStory("bookworm", 15);
