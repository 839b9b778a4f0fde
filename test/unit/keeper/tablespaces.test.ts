import { afterEach, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { destroyData, swapSteps } from "../../../lib/keeper/tablespaces.ts";
import { mappingArguments, prepareLocations } from "../../../lib/pg/tablespaces.ts";

const made: string[] = [];
afterEach(() => {
  for (const path of made.splice(0)) rmSync(path, { recursive: true });
});

const VERSION = "PG_15_202209061";
const COPY = "pg_auto_failover_copy";

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

/** Links of a data directory, by oid. */
function link(pgdata: string, targets: Readonly<Record<string, string>>): void {
  write(join(pgdata, "PG_VERSION"), "15\n");
  mkdirSync(join(pgdata, "pg_tblspc"));
  for (const [oid, target] of Object.entries(targets)) {
    symlinkSync(target, join(pgdata, "pg_tblspc", oid));
  }
}

/**
 * A data directory with tablespaces in `kept` and `dropped`, and beside it a complete copy with
 * tablespaces in `kept` and `added`.
 */
function copied(): { base: string; pgdata: string } {
  const base = mkdtempSync(join(tmpdir(), "tablespaces-"));
  made.push(base);
  const pgdata = join(base, "pgdata");
  write(join(pgdata, "old"), "");
  link(pgdata, { "1": join(base, "kept"), "3": join(base, "dropped") });
  write(join(base, "kept", VERSION, "old"), "");
  write(join(base, "kept", "PG_14_202107181", "another major version's"), "");
  write(join(base, "dropped", VERSION, "old"), "");
  const copy = `${pgdata}.basebackup`;
  write(join(copy, "new"), "");
  link(copy, { "1": join(base, "kept", COPY), "2": join(base, "added", COPY) });
  write(join(base, "kept", COPY, VERSION, "new"), "");
  write(join(base, "added", COPY, VERSION, "new"), "");
  return { base, pgdata };
}

/** Every file, and where the links of the data directory lead. */
const outcome = (base: string, pgdata: string) => ({
  files: readdirSync(base, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(base.length + 1))
    .filter((path) => !path.includes("pg_tblspc")) // seen a second time, through the links
    .sort(),
  beside: readdirSync(base).sort(),
  links: readdirSync(join(pgdata, "pg_tblspc"))
    .sort()
    .map((oid) => [oid, readlinkSync(join(pgdata, "pg_tblspc", oid)).slice(base.length + 1)]),
});
const WHOLE = {
  files: [
    `added/${VERSION}/new`,
    "kept/PG_14_202107181/another major version's",
    `kept/${VERSION}/new`,
    "pgdata/PG_VERSION",
    "pgdata/new",
  ],
  beside: ["added", "dropped", "kept", "pgdata"],
  links: [
    ["1", "kept"],
    ["2", "added"],
  ],
};

/** @returns how many steps were taken before there was none left */
function swap(pgdata: string, stepsMax = Number.POSITIVE_INFINITY): number {
  const steps = swapSteps(pgdata);
  let taken = 0;
  while (taken < stepsMax && !steps.next().done) taken += 1;
  return taken;
}

test("a swap that is cut off after any step, and again soon after, ends as one that isn't", () => {
  const whole = copied();
  const count = swap(whole.pgdata);
  expect(outcome(whole.base, whole.pgdata)).toEqual(WHOLE);
  for (let first = 0; first <= count; first += 1) {
    for (const second of [1, 3]) {
      const { base, pgdata } = copied();
      for (const steps of [first, second]) {
        swap(pgdata, steps);
        // the copy is all that is sure to be good: at no moment is a part of it gone
        for (const name of ["kept", "added"]) {
          const places = [join(base, name, VERSION), join(base, name, COPY, VERSION)];
          expect(places.filter((place) => existsSync(join(place, "new")))).toHaveLength(1);
        }
      }
      swap(pgdata);
      expect({ first, second, ...outcome(base, pgdata) }).toEqual({ first, second, ...WHOLE });
    }
  }
}, 20_000);

test("destroyData: nothing of the node is left, half-made copies included; others' files stay", () => {
  const { base, pgdata } = copied();
  destroyData(pgdata);
  expect(readdirSync(base).sort()).toEqual(["added", "dropped", "kept"]);
  expect(readdirSync(join(base, "kept"))).toEqual(["PG_14_202107181"]);
  expect(readdirSync(join(base, "added"))).toEqual([]);
});

test("mappingArguments: an equals sign in a path is escaped", () => {
  expect(mappingArguments([{ oid: "1", location: "/a=b" }])).toEqual([
    "--tablespace-mapping=/a\\=b=/a\\=b/pg_auto_failover_copy",
  ]);
});

test("prepareLocations: another server's files, a shared directory and a place in PGDATA are refused", async () => {
  const { base, pgdata } = copied();
  const options = { pgdata, known: [pgdata], major: 15, sourceHas: async (_path: string) => false };
  const at = (path: string) => [{ oid: "9", location: path }];
  const refusal = (path: string, change: Partial<typeof options> = {}): Promise<string> =>
    prepareLocations(at(path), { ...options, ...change }).then(
      () => "none",
      ({ message, detail }) => `${message}: ${detail.location}`,
    );
  const taken = (path: string) => `the place of a tablespace holds another server's files: ${path}`;
  const kept = join(base, "kept");
  expect(await refusal(kept)).toBe("none");
  expect(await refusal(kept, { known: [] })).toBe(taken(kept));
  expect(await refusal(kept, { known: [], major: 16 })).toBe("none");
  const sourceHas = async (path: string) =>
    existsSync(join(kept, path.replace(/^pg_tblspc\/9\//, "")));
  expect(await refusal(kept, { sourceHas })).toBe(taken(kept));
  const inside = join(pgdata, "inside");
  expect(await refusal(inside)).toBe(
    `a tablespace of the group lies inside this data directory: ${inside}`,
  );
  const missing = join(base, "made", "here");
  expect(await refusal(missing)).toBe("none");
  expect(existsSync(missing)).toBe(true);
  const impossible = join(base, "kept", VERSION, "old", "below a file");
  expect(await refusal(impossible)).toBe(
    `could not make the directory of a tablespace: ${impossible}`,
  );
  // no trace of having looked
  expect(readdirSync(kept).sort()).toEqual(["PG_14_202107181", VERSION, COPY]);
  expect(readFileSync(join(pgdata, "PG_VERSION"), "utf8")).toBe("15\n");
});
