/** A formation that site.yml has made on the hosts of a lab, as its operator and its clients see it. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Outcome, REPOSITORY } from "./command.ts";
import type { Lab } from "./lab.ts";
import { run } from "./network.ts";
import type { Login } from "./sql.ts";
import { waitFor } from "./wait.ts";
import { Writer } from "./writer.ts";

/** Longest time that the group may take to be whole again after what a test did to it. */
const SETTLE_MS = 60_000;

/** What `state explain --json` tells about a group, as far as the tests ask. */
type Group = {
  primary: string | null;
  blocked: string | null;
  nodes: { name: string; reported: string; waitsFor: string | null }[];
};

export class Site {
  readonly lab: Lab;

  constructor(lab: Lab) {
    this.lab = lab;
    lab.vars["ha_client_networks"] = [`${lab.controllerAddress}/32`];
  }

  /** Runs a playbook that is to succeed. @throws {Error} it doesn't, with all that it has printed */
  async play(name: string, args: readonly string[] = []): Promise<Outcome> {
    const outcome = await this.lab.playbook(name, args);
    if (outcome.code === 0) return outcome;
    const story = await this.story();
    const { code, stdout, stderr } = outcome;
    throw new Error(`${name} ended with ${code}\n${stdout}\n${stderr}\n${story}`);
  }

  get monitor(): string {
    const [first = ""] = this.lab.groups.monitor;
    return first;
  }

  /** Runs a role script on the monitor's host. @returns what it says on stdout */
  async role(args: string): Promise<string> {
    const { code, stdout, stderr } = await this.lab.ssh(this.monitor, `pg-auto-failover ${args}`);
    if (code !== 0) throw new Error(`pg-auto-failover ${args} ended with ${code}: ${stderr}`);
    return stdout.trim();
  }

  /**
   * Waits until exactly the inventory's nodes are there, none waits for anything, and none is left alone.
   *
   * @returns the primary's name
   */
  healthy(): Promise<string> {
    const wanted = this.lab.groups.nodes.toSorted().join();
    return waitFor(
      `${wanted} to be a healthy group`,
      SETTLE_MS,
      async () => {
        const [group] = JSON.parse(await this.role("state explain --json")) as Group[];
        if (!group || group.blocked !== null || group.primary === null) return undefined;
        const names = group.nodes.map(({ name }) => name);
        if (names.toSorted().join() !== wanted) return undefined;
        const rested = group.nodes.every(
          ({ name, reported, waitsFor }) =>
            waitsFor === null && reported === (name === group.primary ? "primary" : "secondary"),
        );
        return rested ? group.primary : undefined;
      },
      { everyMs: 200, explain: () => this.story() },
    );
  }

  /** Waits for another primary than this one. */
  promoted(former: string): Promise<true> {
    const another = async () => {
      const [group] = JSON.parse(await this.role("state explain --json")) as Group[];
      return group?.primary !== null && group?.primary !== former;
    };
    const options = { everyMs: 200, explain: () => this.story() };
    return waitFor(`another primary than ${former}`, SETTLE_MS, another, options) as Promise<true>;
  }

  /** What the play has made once and kept for the clients. */
  get password(): string {
    const file = readFileSync(join(this.lab.directory, "secrets.yml"), "utf8");
    const [, password] = /^ha_secret_client: *["']?([^"'\s]+)/m.exec(file) ?? [];
    if (password === undefined) throw new Error("secrets.yml has no ha_secret_client");
    return password;
  }

  /** The clients' connection string, with the hosts' names. */
  uri(): Promise<string> {
    return this.role("uri --username app");
  }

  /** One statement as an application's libpq has it done, from the controller. */
  async psql(uri: string, statement: string): Promise<Outcome> {
    const passwords = join(this.lab.directory, "pgpass");
    writeFileSync(passwords, `*:*:*:*:${this.password}\n`, { mode: 0o600 });
    return await this.lab.run([
      ...["env", `PGPASSFILE=${passwords}`, "PGCONNECT_TIMEOUT=3"],
      ...["psql", uri, "--no-psqlrc", "-Atc", statement],
    ]);
  }

  /**
   * A writer on the controller.
   *
   * @param later hosts that it knows of before they are in the connection string
   */
  async writer(later: readonly string[] = []): Promise<Writer> {
    const [, database = ""] = /^[^?]*\/([^?]*)/.exec(await this.uri()) ?? [];
    const hosts = [...this.lab.groups.nodes, ...later].map((name) => this.#address(name));
    const uri = `postgres://${hosts.join()}/${database}`;
    return await Writer.start(uri, { ...this.#login, database });
  }

  /** Stops the writer, and compares what was acknowledged with what every node holds. */
  async lostOn(writer: Writer): Promise<Record<string, number[]>> {
    await this.healthy();
    await writer.waitForWrites(5, 5000);
    await writer.stop();
    const lost: Record<string, number[]> = {};
    for (const name of this.lab.groups.nodes) {
      const address = { host: this.lab.addressOf(name), port: 5432 };
      // A standby may be a moment behind.
      lost[name] = await waitFor(`every row on ${name}`, 10_000, async () => {
        const report = await writer.compareWith(address);
        return report.lost.length === 0 ? [...report.lost, ...report.unexpected] : undefined;
      });
    }
    return lost;
  }

  /** What to read when something went wrong. */
  async story(): Promise<string> {
    const says = async (host: string, command: string): Promise<string> => {
      const said = await this.lab.ssh(host, command).catch((error) => ({ stdout: String(error) }));
      return `--- ${host}: ${command}\n${said.stdout}`;
    };
    const journal = "journalctl --no-pager -n 40 -u 'pg-auto-failover*'";
    return [
      await says(this.monitor, "pg-auto-failover state show"),
      await says(this.monitor, "pg-auto-failover state events --count 20"),
      ...(await Promise.all(this.lab.hosts.map((host) => says(host, journal)))),
    ].join("\n");
  }

  get #login(): Login {
    return { user: "app", password: this.password, ssl: { rejectUnauthorized: false } };
  }

  #address(name: string): string {
    return `${this.lab.addressOf(name)}:5432`;
  }
}

/** Tasks that changed something, over all hosts of a play's recap. */
export const changes = ({ stdout }: Outcome): number =>
  [...stdout.matchAll(/^\S+ +: .*\bchanged=(\d+)/gm)].reduce((sum, [, n]) => sum + Number(n), 0);

/** The outages in ms that a play has printed. */
export const outages = ({ stdout }: Outcome): number[] =>
  [...stdout.matchAll(/nobody could write for (\d+) ms/g)].map(([, ms]) => Number(ms));

/** What a playbook needs of a clone of the repository. */
const CLONE = [
  ...["ansible", "lib", "roles", "package.json", "LICENSE", "README.md"],
  ...["citty", "consola", "postgres", "valibot", "@oven"].map((name) => `node_modules/${name}`),
];

/** A clone with another version of the product, as after `git pull`. */
export function nextRelease(lab: Lab): string {
  const clone = join(lab.directory, "clone");
  mkdirSync(clone);
  const copy = 'cd "$0" && exec cp --archive --parents "$@"';
  run(["sh", "-c", copy, REPOSITORY, ...CLONE, clone]);
  const file = join(clone, "lib/fsm.ts");
  writeFileSync(file, `${readFileSync(file, "utf8")}\n// The next release.\n`);
  return clone;
}
