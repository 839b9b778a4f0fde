/** What the Ansible roles repeat of the code is what the code says. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FORMATION_SETTINGS } from "../../lib/monitor/settings.ts";

const read = (path: string) => readFileSync(join(import.meta.dir, "../../ansible", path), "utf8");

test("the precheck knows the formation's settings", () => {
  const [, list = ""] =
    /^precheck_formation_settings:\n((?: {2}- .*\n)+)/m.exec(
      read("roles/precheck/vars/main.yml"),
    ) ?? [];
  const names = list.split("\n").flatMap((line) => (line === "" ? [] : [line.replace("  - ", "")]));
  expect(names).toEqual(FORMATION_SETTINGS.map(({ name }) => name));
});
