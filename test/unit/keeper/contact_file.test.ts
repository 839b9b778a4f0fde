import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_POLICY } from "../../../lib/group/view.ts";
import { contactMs, loadContact, openContact } from "../../../lib/keeper/contact_file.ts";
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

test("the last contact is what the next keeper finds, timers and all", async () => {
  const path = join(folder, "contact.json");
  expect(loadContact(path)).toBeUndefined();
  let saved = Promise.withResolvers<void>();
  using file = openContact(path, (error) => (error ? saved.reject(error) : saved.resolve()));
  file.save({ ...CONTACT, policy: DEFAULT_POLICY, sentAtMs: 1 });
  // timers that are new don't wait
  file.save({ ...CONTACT, sentAtMs: 2.25 });
  expect(loadContact(path)).toEqual({ ...CONTACT, sentAtMs: 2.25 });
  await saved.promise;
  saved = Promise.withResolvers();
  file.save(CONTACT);
  await saved.promise;
  expect(loadContact(path)).toEqual(CONTACT);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(["contact.json"]);
});

test("a write that is under way doesn't undo new timers", async () => {
  const path = join(folder, "both.json");
  let left = 3;
  const all = Promise.withResolvers<void>();
  using file = openContact(path, () => --left === 0 && all.resolve());
  file.save({ ...CONTACT, policy: DEFAULT_POLICY });
  file.save({ ...CONTACT, policy: DEFAULT_POLICY, sentAtMs: 1 });
  file.save(CONTACT);
  await all.promise;
  expect(loadContact(path)).toEqual(CONTACT);
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
  const errors: unknown[] = [];
  using file = openContact(path, (error) => errors.push(error));
  file.save(CONTACT);
  expect(errors).toEqual([expect.objectContaining({ code: "ENOENT" })]);
});
