/** The playbooks on the next Debian, whose PostgreSQL is 17. */
import { coreStory } from "./chapters.ts";

coreStory("trixie", 17);
