/** What PGDATA holds against what the state file remembers: there, to be copied anew, or refused. */
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NodeState } from "../../../lib/fsm.ts";
import { ownDataIsThere } from "../../../lib/keeper/own_data.ts";
import { newState } from "../../../lib/keeper/state_file.ts";
import { errorText } from "../../../lib/sys/errors.ts";

const base = mkdtempSync(join(tmpdir(), "pgaf-own-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

const OWN = 7_654_321_098_765_432_109n;

/** A directory with these files, and a pg_control of that cluster. */
function directory(names: readonly string[], cluster?: bigint): string {
  const path = mkdtempSync(join(base, "data-"));
  for (const name of names) writeFileSync(join(path, name), "");
  if (cluster !== undefined) {
    const control = Buffer.alloc(8192);
    new BigUint64Array(control.buffer, control.byteOffset, 1)[0] = cluster;
    mkdirSync(join(path, "global"));
    writeFileSync(join(path, "global/pg_control"), control);
  }
  return path;
}

function said(pgdata: string, state: NodeState, data: "ready" | "copied" = "ready"): string {
  try {
    const known = { ...newState(), state, data, systemIdentifier: String(OWN) };
    return ownDataIsThere(pgdata, known) ? "there" : "lost";
  } catch (error) {
    return errorText(error);
  }
}

const STANDBYS: readonly NodeState[] = ["secondary", "catchingup", "report_lsn", "maintenance"];
const PRIMARIES: readonly NodeState[] = [
  ...(["single", "primary", "wait_primary", "stop_replication"] as const),
  ...(["draining", "demote_timeout", "demoted", "prepare_maintenance"] as const),
];

test("its own cluster is there, in every state", () => {
  const pgdata = directory(["PG_VERSION"], OWN);
  for (const state of [...STANDBYS, ...PRIMARIES]) expect(said(pgdata, state)).toBe("there");
});

test("an empty or absent directory, but for what the keeper has written into it, is lost to a standby", () => {
  const ours = directory(["standby.signal", "postgresql-auto-failover.conf", "pg_hba.conf"]);
  for (const pgdata of [directory([]), join(base, "absent"), ours]) {
    for (const state of STANDBYS) expect(said(pgdata, state)).toBe("lost");
    expect(said(pgdata, "catchingup", "copied")).toBe("there"); // Between the two renames of a swap.
  }
});

test("who was the primary last copies nothing over a cluster that isn't there", () => {
  for (const pgdata of [directory([]), join(base, "absent"), directory(["lost+found"])]) {
    for (const state of PRIMARIES) expect(said(pgdata, state)).toContain("was the primary: mount");
  }
});

test("files of somebody else are no empty directory", () => {
  expect(said(directory(["letters.txt"]), "secondary")).toContain("move them away");
});

test("another cluster's data is refused in every state, with both identifiers", () => {
  const pgdata = directory(["PG_VERSION"], OWN + 1n);
  for (const state of [...STANDBYS, ...PRIMARIES]) {
    expect(said(pgdata, state)).toContain(`own=${OWN} found=${OWN + 1n}`);
  }
  expect(said(pgdata, "catchingup", "copied")).toContain("another cluster");
});
