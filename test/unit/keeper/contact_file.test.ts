import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_POLICY } from "../../../lib/group/view.ts";
import { contactMs, loadContact, saveContact } from "../../../lib/keeper/contact_file.ts";
import type { Contact } from "../../../lib/shapes.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "contact-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const CONTACT: Contact = {
  bootId: "f612408e-a951-4199-b120-e9a802770caa",
  sentAtMs: 13_295.67,
  policy: { ...DEFAULT_POLICY, networkPartitionTimeoutMs: 900 },
};

test("the last contact is what the next keeper finds, timers and all", () => {
  const path = join(folder, "contact.json");
  expect(loadContact(path)).toBeUndefined();
  saveContact(path, { ...CONTACT, sentAtMs: 1 });
  saveContact(path, CONTACT);
  expect(loadContact(path)).toEqual(CONTACT);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(["contact.json"]);
});

test("its time counts on the clock of the same boot only, and never from the future", () => {
  const boot = CONTACT.bootId as string;
  expect(contactMs(CONTACT, 20_000, boot)).toBe(13_295.67);
  expect(contactMs(CONTACT, 20_000, "0d9c2a1e-0000-4000-8000-000000000000")).toBeUndefined();
  expect(contactMs(CONTACT, 13_000, boot)).toBeUndefined();
  expect(contactMs({ ...CONTACT, bootId: null }, 20_000, boot)).toBeUndefined();
  expect(contactMs(CONTACT, 20_000, undefined)).toBeUndefined();
  expect(contactMs(undefined, 20_000, boot)).toBeUndefined();
});

test.each([
  ["torn", JSON.stringify(CONTACT, ["bootId", "sentAtMs"]).slice(0, 30)],
  ["empty", ""],
  ["without the timers", JSON.stringify({ bootId: CONTACT.bootId, sentAtMs: 1 })],
])("a file that is %s is as good as none", (name, text) => {
  const path = join(folder, name);
  writeFileSync(path, text);
  expect(loadContact(path)).toBeUndefined();
});

test("without room the old one stays, and nothing else", () => {
  const path = join(folder, "missing", "contact.json");
  expect(() => saveContact(path, CONTACT)).toThrow(/ENOENT/);
});
