import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkTls, prepareTls, tlsParams, tlsSettings } from "../../../lib/pg/tls.ts";
import { AppError } from "../../../lib/sys/errors.ts";

let folder: string;
const at = (name: string): string => join(folder, name);
const openssl = (...args: string[]): void => {
  const { exitCode, stderr } = Bun.spawnSync(["openssl", ...args], { cwd: folder });
  if (exitCode !== 0) throw new Error(stderr.toString());
};
const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

function issue(name: string, by: string, extension: string): void {
  openssl("req", ...KEY, "-subj", `/CN=${name}`, "-keyout", `${name}.key`, "-out", `${name}.csr`);
  writeFileSync(at("ext"), `${extension}\n`);
  openssl(
    ...["x509", "-req", "-in", `${name}.csr`, "-CA", `${by}.crt`, "-CAkey", `${by}.key`],
    ...["-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", `${name}.crt`],
  );
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tls-"));
  openssl("req", "-x509", ...KEY, "-subj", "/CN=root", "-keyout", "root.key", "-out", "root.crt");
  issue("between", "root", "basicConstraints=critical,CA:true");
  issue("server", "between", "subjectAltName=DNS:db.test,IP:192.0.2.7");
  writeFileSync(
    at("chain.crt"),
    ["server.crt", "between.crt"].map((name) => readFileSync(at(name), "utf8")).join(""),
  );
});
afterAll(() => rmSync(folder, { recursive: true }));

function problem(tls: Partial<Parameters<typeof checkTls>[0]>, nodename = "db.test"): string {
  const files = {
    mode: "verify-full",
    cert: at("chain.crt"),
    key: at("server.key"),
    ca: at("root.crt"),
  } as const;
  try {
    checkTls({ ...files, ...tls }, nodename);
    return "";
  } catch (error) {
    if (!(error instanceof AppError) || error.hint === undefined) throw error;
    return `${error.kind}: ${error.message}`;
  }
}

test("checkTls: a chain to the authority, for a name or an address", () => {
  expect(problem({})).toBe("");
  expect(problem({}, "192.0.2.7")).toBe("");
  expect(problem({}, "db2.test")).toBe("config: the server's certificate does not name this host");
  expect(problem({}, "192.0.2.8")).toBe("config: the server's certificate does not name this host");
  expect(problem({ mode: "verify-ca" }, "db2.test")).toBe("");
  const foreign =
    "config: the server's certificate was not issued by the authority in --ssl-ca-file";
  expect(problem({ cert: at("server.crt") })).toBe(foreign);
  expect(problem({ cert: at("server.crt"), ca: at("between.crt") })).toBe("");
  expect(problem({ ca: at("server.crt") })).toBe(foreign);
});

test("checkTls: files that are not what they should be", () => {
  expect(problem({ key: at("root.key") })).toMatch("is not that of its certificate");
  chmodSync(at("root.crt"), 0o600);
  expect(problem({ key: at("root.crt") })).toMatch("private key can't be read");
  expect(problem({ cert: at("root.key") })).toMatch("is no certificate");
  expect(problem({ ca: at("none") })).toMatch("could not read the authority's certificate");
  expect(problem({ crl: at("none") })).toMatch("could not read the list of revoked certificates");
  const mode = statSync(at("server.key")).mode;
  chmodSync(at("server.key"), 0o644);
  expect(problem({})).toMatch("can be read by others");
  chmodSync(at("server.key"), mode);
});

test("a self-signed certificate is made once for a name, and for the owner's eyes only", async () => {
  const tls = {
    mode: "require",
    selfSigned: true,
    cert: at("own.crt"),
    key: at("own.key"),
  } as const;
  await prepareTls(tls, "db.test");
  expect(statSync(tls.key).mode & 0o777).toBe(0o600);
  expect(problem({ ...tls, mode: "verify-full", ca: undefined })).toBe("");
  const before = readFileSync(tls.cert, "utf8");
  await prepareTls(tls, "db.test");
  expect(readFileSync(tls.cert, "utf8")).toBe(before);
  await prepareTls(tls, "192.0.2.9");
  expect(problem({ ...tls, mode: "verify-full", ca: undefined }, "192.0.2.9")).toBe("");
});

test("what PostgreSQL is told, and what its clients are", () => {
  const tls = { mode: "verify-ca", cert: "/c", key: "/k", ca: "/ca", crl: "/crl" } as const;
  expect(tlsSettings(undefined)).toEqual({});
  expect(tlsSettings(tls)).toEqual({
    ...{ ssl: "on", ssl_cert_file: "/c", ssl_key_file: "/k" },
    ...{ ssl_ca_file: "/ca", ssl_crl_file: "/crl" },
  });
  expect(tlsParams(undefined)).toEqual({ sslmode: "prefer" });
  expect(tlsParams(tls)).toEqual({ sslmode: "verify-ca", sslrootcert: "/ca", sslcrl: "/crl" });
  // libpq would verify by an authority that it's given, whatever the mode
  expect(tlsParams({ ...tls, mode: "require" })).toEqual({ sslmode: "require" });
  expect(tlsParams({ ...tls, mode: "require" }, true)).toEqual({
    ...{ sslmode: "require", sslcert: "/c", sslkey: "/k" },
  });
});
