/** A real HAProxy, configured as README.md says: writes and reads find their nodes through a failover. */
import { expect, test } from "bun:test";
import { Cluster } from "../helpers/cluster.ts";
import { HAPROXY, startHaproxy } from "../helpers/haproxy.ts";
import { freePort } from "../helpers/ports.ts";
import { onShared } from "../helpers/scenario.ts";
import type { Service } from "../helpers/service.ts";
import { type Client, type Login, openClient } from "../helpers/sql.ts";
import { nowMs } from "../helpers/wait.ts";
import { Writer } from "../helpers/writer.ts";

/** From the promotion until sessions come through to where they belong. */
const FOLLOW_MS = 3000;
const SETTLE_MS = 30_000;

const obstacle = HAPROXY === undefined ? "there is no haproxy here" : undefined;
if (obstacle !== undefined) console.error(`haproxy is skipped: ${obstacle}`);

type Read = { atMs: number; port: number; isStandby: boolean };

/** A session that reads all the time, and opens another one when it is ended. */
class Reader implements AsyncDisposable {
  readonly reads: Read[] = [];
  #client: Client | undefined;
  #stopping = false;
  readonly #running: Promise<void>;

  constructor(port: number, login: Login) {
    this.#running = this.#run(port, login);
  }

  async #run(port: number, login: Login): Promise<void> {
    while (!this.#stopping) {
      try {
        this.#client ??= openClient({ host: "127.0.0.1", port }, login);
        const [row] = await this.#client.query(
          "select pg_is_in_recovery() as standby, current_setting('port') as port",
        );
        this.reads.push({
          atMs: nowMs(),
          port: Number(row?.["port"]),
          isStandby: row?.["standby"] === true,
        });
      } catch {
        await this.#client?.close();
        this.#client = undefined;
      }
      await Bun.sleep(10);
    }
    await this.#client?.close();
  }

  since(timeMs: number): Read[] {
    return this.reads.filter(({ atMs }) => atMs >= timeMs);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    return this.#running;
  }
}

const ports = [freePort(), freePort(), freePort()];
const onThree = onShared(
  () =>
    Cluster.of(
      "haproxy",
      ports.map((port) => ["--http", String(port)]),
    ),
  (obstacle === undefined ? test : test.skip) as typeof test,
);

function proxyOf(cluster: Cluster) {
  const backends = cluster.nodes.map(({ port }, index) => ({ port, httpPort: ports[index] ?? 0 }));
  return startHaproxy(cluster.base, cluster.owner, backends);
}

/** When a node other than the primary first takes writes. */
async function promoted(
  cluster: Cluster,
  before: Service,
): Promise<{ node: Service; atMs: number }> {
  const node = await cluster.waitFor("a promotion", 15_000, async () =>
    (await cluster.writableNodes()).find((each) => each !== before),
  );
  return { node, atMs: nowMs() };
}

/** @param breakIt makes another node the primary */
async function followsThrough(
  cluster: Cluster,
  breakIt: (primary: Service) => Promise<unknown>,
): Promise<void> {
  const primary = await cluster.healthy(SETTLE_MS);
  await using proxy = proxyOf(cluster);
  await using writer = await Writer.start(
    `postgres://127.0.0.1:${proxy.writePort}/postgres`,
    cluster.login,
  );
  await using reader = new Reader(proxy.readPort, cluster.login);
  // HAProxy takes every server for one that is up until it has asked it once
  await cluster.waitFor("reads from standbys", 10_000, () => {
    return reader.reads.length > 50 && reader.reads.slice(-50).every(({ isStandby }) => isStandby);
  });

  const breaking = breakIt(primary);
  const { node, atMs } = await promoted(cluster, primary);
  await writer.waitForWrites(1, 10_000);
  const writesFollowMs = nowMs() - atMs;
  const late = () => reader.since(atMs + FOLLOW_MS);
  await cluster.waitFor("reads", 10_000, () => late().length > 20);
  const readsFollowMs = (reader.since(atMs).find(({ isStandby }) => isStandby)?.atMs ?? 0) - atMs;
  expect(writesFollowMs).toBeLessThan(FOLLOW_MS);
  expect(readsFollowMs).toBeWithin(0, FOLLOW_MS);
  expect(late().filter(({ isStandby }) => !isStandby)).toEqual([]);
  await breaking;

  expect(await cluster.healthy(SETTLE_MS)).toBe(node);
  await cluster.waitFor("reads from the old primary, a standby now", 5000, () => {
    return Promise.all(
      Array.from({ length: 4 }, () => readOnce(proxy.readPort, cluster.login)),
    ).then((found) => found.includes(primary.port));
  });
  await writer.waitForWrites(20, 5000);
  await writer.stop();
  expect(await writer.compareWith(node.address)).toMatchObject({ lost: [], unexpected: [] });
}

async function readOnce(port: number, login: Login): Promise<number> {
  await using stack = new AsyncDisposableStack();
  const client = openClient({ host: "127.0.0.1", port }, login);
  stack.defer(() => client.close());
  const [row] = await client.query("select current_setting('port') as port");
  return Number(row?.["port"]);
}

onThree("the primary is killed: writes and reads follow, nothing is lost", 60_000, (cluster) =>
  followsThrough(cluster, async (primary) => primary.killPostgres()),
);

onThree("a failover by hand: writes and reads follow, nothing is lost", 60_000, (cluster) =>
  followsThrough(cluster, () =>
    cluster.askMonitor("select pgautofailover.perform_failover('default', 0)"),
  ),
);
