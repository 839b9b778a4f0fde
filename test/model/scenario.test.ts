/** Every scenario goes well: the safety properties at each step, and then the healing. */
import { expect, test } from "bun:test";
import { parseScenario, printScenario, SCENARIOS, scenarioOf } from "./scenario.ts";
import { replay } from "./walk.ts";

test.each(SCENARIOS)("%s", (_, run) => {
  const failure = replay(run);
  expect(failure ? scenarioOf(failure) : "goes well").toBe("goes well");
});

test("a scenario that is printed is read as the same one", () => {
  const run = {
    setup: { nodes: 3, members: 2 },
    events: [["cut", 1, 0], ["tick"]],
    missing: 2,
  } as const;
  expect(parseScenario(printScenario(run, "two lines\nof why"))).toEqual(run);
});
