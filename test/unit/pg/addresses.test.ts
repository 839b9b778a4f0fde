import { expect, test } from "bun:test";
import { makeHostBook } from "../../../lib/pg/addresses.ts";

test("a host's name becomes its addresses, so that PostgreSQL asks no DNS; without an answer it stays as it was", async () => {
  let answer: string[] | undefined;
  const asked: string[] = [];
  const book = makeHostBook(async (host) => {
    asked.push(host);
    if (answer === undefined) throw new Error("SERVFAIL");
    return answer.map((address) => ({ address }));
  });
  const hosts = ["db1.test", "10.0.0.5", "localhost"];
  const fields = () => hosts.map((host) => book.hbaAddresses(host));
  const others = [["10.0.0.5/32"], ["127.0.0.1/32", "::1/128"]];
  await book.refresh(hosts);
  expect(fields()).toEqual([["db1.test"], ...others]);
  answer = ["2001:db8::1", "10.0.0.1"];
  await book.refresh(hosts);
  expect(fields()).toEqual([["10.0.0.1/32", "2001:db8::1/128"], ...others]);
  answer = undefined;
  await book.refresh(hosts);
  answer = [];
  await book.refresh(hosts);
  expect(fields()).toEqual([["10.0.0.1/32", "2001:db8::1/128"], ...others]);
  expect(asked).toEqual(Array(4).fill("db1.test"));
});

test("one question at a time: an answer that doesn't come is not asked for again and again", async () => {
  let count = 0;
  const { promise, resolve } = Promise.withResolvers<{ address: string }[]>();
  const book = makeHostBook(() => {
    count += 1;
    return promise;
  });
  const both = [book.refresh(["a.test"]), book.refresh(["a.test"])];
  resolve([{ address: "10.0.0.1" }]);
  await Promise.all(both);
  expect(count).toBe(1);
  expect(book.hbaAddresses("a.test")).toEqual(["10.0.0.1/32"]);
});
