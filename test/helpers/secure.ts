/**
 * A cluster that trusts nobody, on loopback neither: passwords, and certificates of an authority of its own that
 * everybody verifies. The test's own login has a password as well.
 */
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { Cluster } from "./cluster.ts";
import { giveTo, isRoot, type Owner } from "./owner.ts";
import type { Service } from "./service.ts";

export type Issue = {
  /** subjectAltName, as openssl writes it. */
  names: string;
  commonName?: string;
  expired?: boolean;
};

/** An authority of a test, with openssl; its files belong to the servers' owner. */
export class Authority {
  readonly directory: string;
  readonly #owner: Owner;

  constructor(directory: string, owner: Owner) {
    this.directory = directory;
    this.#owner = owner;
    mkdirSync(directory);
    this.#openssl(
      "req",
      "-x509",
      ...NEW_KEY,
      "-subj",
      `/CN=${basename(directory)}`,
      "-days",
      "30",
      ...this.#files("ca", "crt"),
    );
    writeFileSync(join(directory, "index.txt"), "");
    writeFileSync(join(directory, "crlnumber"), "01\n");
    const settings = [
      "[ca]",
      "default_ca = d",
      "[d]",
      "database = index.txt",
      "crlnumber = crlnumber",
    ];
    writeFileSync(
      join(directory, "ca.cnf"),
      [...settings, "default_md = sha256", "default_crl_days = 30", ""].join("\n"),
    );
    giveTo(owner, directory);
  }

  get ca(): string {
    return join(this.directory, "ca.crt");
  }

  /** Issues a certificate. @returns the flags that name it, and this authority's */
  issue(name: string, { names, commonName = "localhost", expired = false }: Issue): string[] {
    const path = (suffix: string) => join(this.directory, `${name}.${suffix}`);
    this.#openssl("req", ...NEW_KEY, "-subj", `/CN=${commonName}`, ...this.#files(name, "csr"));
    writeFileSync(path("ext"), `subjectAltName=${names}\n`);
    this.#openssl(
      ...[
        "x509",
        "-req",
        "-in",
        path("csr"),
        "-CA",
        this.ca,
        "-CAkey",
        join(this.directory, "ca.key"),
      ],
      ...["-CAcreateserial", "-extfile", path("ext"), "-out", path("crt")],
      // Its last second is over when anybody looks at it; newer programs refuse one that ends before it begins.
      ...["-days", expired ? "0" : "30"],
    );
    giveTo(this.#owner, path("crt"));
    giveTo(this.#owner, path("key"));
    chmodSync(path("key"), 0o600);
    return ["--ssl-ca-file", this.ca, "--server-cert", path("crt"), "--server-key", path("key")];
  }

  /** @returns the list of revoked certificates, this one's among them */
  revoked(name?: string): string {
    const list = join(this.directory, "revoked.crl");
    const as = ["ca", "-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key"];
    if (name !== undefined) this.#openssl(...as, "-revoke", `${name}.crt`);
    this.#openssl(...as, "-gencrl", "-out", list);
    return list;
  }

  #files(name: string, suffix: string): string[] {
    return [
      "-keyout",
      join(this.directory, `${name}.key`),
      "-out",
      join(this.directory, `${name}.${suffix}`),
    ];
  }

  #openssl(...args: string[]): void {
    const { exitCode, stderr } = Bun.spawnSync(["openssl", ...args], { cwd: this.directory });
    if (exitCode !== 0) throw new Error(`openssl ${args.join(" ")}\n${stderr}`);
  }
}

const NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

export class SecureCluster extends Cluster {
  readonly authority: Authority;
  readonly auth: string;
  readonly #password = crypto.randomUUID();

  constructor(label: string, auth = "scram-sha-256") {
    super(label, { auth, flags: (base) => flagsIn(base, "monitor") });
    this.auth = auth;
    this.authority = new Authority(join(this.base, "tls"), this.owner);
    this.authority.issue("monitor", { names: "DNS:localhost" });
    this.login.ssl = { ca: readFileSync(this.authority.ca, "utf8") };
  }

  override get monitorUri(): string {
    const query = `sslmode=verify-full&sslrootcert=${encodeURIComponent(this.authority.ca)}`;
    return `${super.monitorUri}?${query}`;
  }

  /** Where a service keeps its own files. */
  ownDirectory(service: Service): string {
    return join(this.env["XDG_DATA_HOME"] ?? "", "pg_auto_failover", service.pgdata);
  }

  /** The monitor's login is handed out by its file, as an operator would. */
  override async startMonitor(): Promise<void> {
    await super.startMonitor();
    copyFileSync(join(this.ownDirectory(this.monitor), "autoctl_node.pgpass"), this.passwords);
    chmodSync(this.passwords, 0o600);
    giveTo(this.owner, this.passwords);
    const password = readFileSync(this.passwords, "utf8").trim().split(":").at(-1) ?? "";
    const ssl = { rejectUnauthorized: false, ...(this.auth === "cert" ? this.#certificate() : {}) };
    this.monitorLogin = { password, ssl };
  }

  override async startNode(label: string, flags: readonly string[] = []): Promise<Service> {
    const files = this.authority.issue(label, { names: "DNS:localhost,IP:127.0.0.1" });
    const node = this.addNode(label, ["--auth", this.auth, ...files, ...flags]);
    await node.create();
    if (this.nodes.length === 1) this.#giveTestPassword(node);
    node.start();
    return node;
  }

  #certificate(): { cert: string; key: string } {
    this.authority.issue("operator", { names: "DNS:operator", commonName: "operator" });
    const read = (suffix: string) =>
      readFileSync(join(this.authority.directory, `operator.${suffix}`), "utf8");
    return { cert: read("crt"), key: read("key") };
  }

  /** The running of nodes takes no environment once they are made. */
  forgetPasswords(): void {
    rmSync(this.passwords);
  }

  /** Over the Unix socket, as the servers' owner. */
  asOwner(service: Service, statement: string, database = "postgres"): string {
    const [, , , , socket = ""] = readFileSync(
      join(service.pgdata, "postmaster.pid"),
      "utf8",
    ).split("\n");
    const { name, uid, gid } = this.owner;
    const become = ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--clear-groups", "--"];
    const psql = [
      "psql",
      "-XAtq",
      "-v",
      "ON_ERROR_STOP=1",
      "-h",
      socket,
      "-p",
      String(service.port),
    ];
    const { exitCode, stdout, stderr } = Bun.spawnSync(
      [...(isRoot ? become : []), ...psql, "-U", name, "-d", database],
      { stdin: Buffer.from(statement), env: this.env },
    );
    if (exitCode !== 0) throw new Error(stderr.toString());
    return stdout.toString().trim();
  }

  /** Its log has every statement from then on, and would have their values. */
  logEverything(service: Service): void {
    this.asOwner(service, "alter system set log_statement = 'all'; select pg_reload_conf()");
  }

  #giveTestPassword(node: Service): void {
    this.asOwner(node, `alter role "${this.owner.name}" password '${this.#password}'`);
    this.login.password = this.#password;
  }
}

function flagsIn(base: string, label: string): string[] {
  const file = (name: string) => join(base, "tls", name);
  return [
    ...["--ssl-ca-file", file("ca.crt")],
    ...["--server-cert", file(`${label}.crt`), "--server-key", file(`${label}.key`)],
  ];
}
