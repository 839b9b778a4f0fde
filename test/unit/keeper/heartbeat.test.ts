/** When a keeper says its report in short. */
import { expect, test } from "bun:test";
import { tellingTo } from "../../../lib/keeper/heartbeat.ts";
import type { Answer, Report } from "../../../lib/shapes.ts";

const REPORT = {
  identity: "3f8b1e9c-0000-4000-8000-000000000001",
  reportNo: 0n,
  goalVersion: 4,
  state: "secondary",
  pgIsRunning: true,
  timeline: 1,
  lsn: "0/3000000",
} as Report;

/** A monitor that notes what it's told, "full" or "short", and answers, or fails, as it is set. */
function monitorOf() {
  const heard: string[] = [];
  const answers = {
    goal: "secondary",
    token: "a" as string | undefined,
    holds: true,
    fails: false,
  };
  const tell = tellingTo(
    {
      nodeActive: async () => {
        heard.push("full");
        if (answers.fails) throw new Error("gone");
        return { goal: answers.goal, token: answers.token } as Answer;
      },
      heartbeat: async (nodeId, beat, token) => {
        heard.push(`short ${nodeId} ${beat.reportNo}/${beat.fullReport} ${beat.lsn} ${token}`);
        return answers.holds;
      },
    },
    "default",
  );
  let reportNo = 0n;
  const says = async (change: Partial<Report> = {}): Promise<Answer> => {
    reportNo += 1n;
    return tell(7, { ...REPORT, reportNo, ...change }, 1000);
  };
  return { heard, answers, says };
}

test("the same again is said in short, and answered as before; now and then it's said in full", async () => {
  const { heard, says } = monitorOf();
  const first = await says();
  expect(await says({ lsn: "0/4000000" })).toBe(first);
  for (let times = 0; times < 10; times += 1) await says();
  expect(heard).toEqual([
    "full",
    "short 7 2/1 0/4000000 a",
    ...[3, 4, 5, 6, 7, 8, 9, 10].map((number) => `short 7 ${number}/1 0/3000000 a`),
    "full",
    "short 7 12/11 0/3000000 a",
  ]);
});

test("news, a goal that isn't reached, a move, or a monitor that knows no short ones: said in full", async () => {
  const { heard, answers, says } = monitorOf();
  await says();
  await says({ pgIsRunning: false });
  await says({ pgIsRunning: false, goalVersion: 5 });
  answers.goal = "catchingup";
  await says();
  await says();
  await says({ state: "catchingup" });
  await says({ state: "catchingup" });
  answers.goal = "secondary";
  answers.token = undefined;
  await says();
  await says();
  expect(heard).toEqual(Array.from({ length: 9 }, () => "full"));
});

test("a short one that doesn't hold is said in full at once, and so is the next one's first", async () => {
  const { heard, answers, says } = monitorOf();
  await says();
  answers.holds = false;
  answers.token = "b";
  expect(await says()).toMatchObject({ token: "b" });
  answers.holds = true;
  await says();
  expect(heard).toEqual(["full", "short 7 2/1 0/3000000 a", "full", "short 7 3/2 0/3000000 b"]);
});

test("a full report that failed leaves nothing to repeat", async () => {
  const { heard, answers, says } = monitorOf();
  await says();
  answers.fails = true;
  await expect(says({ pgIsRunning: false })).rejects.toThrow("gone");
  answers.fails = false;
  await says();
  await says();
  expect(heard).toEqual(["full", "full", "full", "short 7 4/3 0/3000000 a"]);
});
