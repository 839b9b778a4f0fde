/**
 * Tests that are one story: each goes on where the one before it has ended, on the same hosts. Once one
 * has failed, the others say so and fail.
 */
import { afterAll, test } from "bun:test";
import { Lab, type LabOptions, labObstacle } from "../helpers/lab.ts";
import { Site } from "../helpers/site.ts";
import type { Writer } from "../helpers/writer.ts";

const obstacle = labObstacle();
if (obstacle !== undefined) console.error(`skipped: playbooks on hosts: ${obstacle}`);

/** The first one may have to make the root file system. */
const CHAPTER_MS = 900_000;

export type Story = {
  lab: Lab;
  site: Site;
  /** Writes from when it is made to the end of the story. */
  writer?: Writer;
};

/** @returns a function like bun's `test`, whose body gets the hosts as they are by then */
export function storyOn(options: LabOptions) {
  let story: Story | undefined;
  let failed = "";
  afterAll(async () => {
    await story?.writer?.stop();
    await story?.lab[Symbol.asyncDispose]();
  }, 60_000);
  return (name: string, body: (story: Story) => Promise<void>): void => {
    test.skipIf(obstacle !== undefined)(
      name,
      async () => {
        if (failed) throw new Error(`not tried, since this failed: ${failed}`);
        failed = name;
        if (!story) {
          const lab = await Lab.open(options);
          story = { lab, site: new Site(lab) };
        }
        await body(story);
        failed = "";
      },
      CHAPTER_MS,
    );
  };
}
