import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../../../lib/sys/exec.ts";
import { feedEveryMs, openNotifier } from "../../../lib/sys/notify.ts";
import { NotifySocket } from "../../helpers/notify_socket.ts";
import { waitFor } from "../../helpers/wait.ts";

const isLinux = process.platform === "linux";
if (!isLinux) console.warn("skipped: sd_notify is of Linux alone");
const onLinux = test.skipIf(!isLinux);

let made = 0;
const abstract = (): NotifySocket => {
  made += 1;
  return new NotifySocket(`@pgaf-notify-${process.pid}-${made}`);
};

test("feedEveryMs: a third of the watchdog's time, where it is meant for this process", () => {
  expect(feedEveryMs({ WATCHDOG_USEC: "10000000", WATCHDOG_PID: "7" }, 7)).toBe(3333);
  expect(feedEveryMs({ WATCHDOG_USEC: "10000000" }, 7)).toBe(3333);
  expect(feedEveryMs({ WATCHDOG_USEC: "10000000", WATCHDOG_PID: "8" }, 7)).toBeUndefined();
  for (const us of [undefined, "", "0", "-1", "soon"])
    expect(feedEveryMs({ WATCHDOG_USEC: us }, 7)).toBeUndefined();
});

onLinux("what is told, over a path and over an abstract socket", async () => {
  const directory = mkdtempSync(join(tmpdir(), "pgaf-notify-"));
  for (const address of [join(directory, "socket"), `@${directory}`]) {
    using socket = new NotifySocket(address);
    using notifier = openNotifier({ NOTIFY_SOCKET: address });
    notifier.starting(Promise.resolve());
    notifier.reloading(Promise.resolve());
    notifier.ready();
    notifier.ready();
    notifier.status('Node "a"\nis "primary"');
    notifier.status('Node "a"\nis "primary"');
    notifier.status("postgres://u:secret@h");
    const settled = Promise.withResolvers<void>();
    notifier.reloading(settled.promise);
    notifier.reloading(Promise.reject(new Error("no")));
    await Bun.sleep(0);
    settled.resolve();
    await Bun.sleep(0);
    notifier.stopping();
    notifier.stopping();
    const usec = (text: string) => Number(/^MONOTONIC_USEC=(\d+)$/m.exec(text)?.[1]);
    const uptimeUs = 1e6 * Number((await Bun.file("/proc/uptime").text()).split(" ")[0]);
    const reloads = socket.messages.filter((text) => text.startsWith("RELOADING=1\n"));
    expect(reloads.map((text) => Math.abs(usec(text) - uptimeUs) < 5e6)).toEqual([true, true]);
    expect(socket.messages.filter((text) => !text.startsWith("RELOADING"))).toEqual([
      "EXTEND_TIMEOUT_USEC=30000000",
      "READY=1",
      'STATUS=Node "a" is "primary"',
      "STATUS=postgres://u:***@h",
      "READY=1",
      "STOPPING=1",
    ]);
  }
  rmSync(directory, { recursive: true });
});

onLinux("the watchdog is fed until something that ends by itself is overdue", async () => {
  using socket = abstract();
  using notifier = openNotifier({ NOTIFY_SOCKET: socket.address, WATCHDOG_USEC: "30000" });
  const fed = (): number => socket.count("WATCHDOG=1");
  const goesOn = async (): Promise<void> => {
    const before = fed();
    await waitFor("signs of life", 2000, () => fed() > before + 2);
  };
  await goesOn();
  notifier.expect("a promise", 5000);
  await goesOn();
  notifier.expect("a promise", 0);
  await waitFor("the end of signs of life", 2000, async () => {
    const before = fed();
    await Bun.sleep(100);
    return fed() === before;
  });
  notifier.met("a promise");
  await goesOn();
  notifier.expect("a promise", 0);
  notifier.stopping();
  await goesOn();
});

onLinux("a manager that is away holds up nothing, and hears it when it is back", () => {
  const address = `@pgaf-notify-${process.pid}-late`;
  using notifier = openNotifier({ NOTIFY_SOCKET: address });
  notifier.ready();
  notifier.status("a");
  using socket = new NotifySocket(address);
  notifier.status("b");
  expect(socket.messages).toEqual(["READY=1\nSTATUS=a\nSTATUS=b"]);
});

test("nothing is sent, and nothing fails, without a manager or with one that can't be", () => {
  for (const address of [undefined, "", "vsock:2:1", "relative", `/${"x".repeat(200)}`]) {
    using notifier = openNotifier({ NOTIFY_SOCKET: address, WATCHDOG_USEC: "1000" });
    notifier.ready();
    notifier.status("a");
    notifier.reloading(Promise.resolve());
    notifier.stopping();
  }
});

test("programs that are run don't inherit the manager", async () => {
  const names = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
  for (const name of names) process.env[name] = "1";
  try {
    const { stdout } = await run(["env"], { timeoutMs: 5000 });
    expect(stdout).toContain("PATH=");
    for (const name of names) expect(stdout).not.toContain(name);
  } finally {
    for (const name of names) delete process.env[name];
  }
});
