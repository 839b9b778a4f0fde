import { expect, test } from "bun:test";
import { fitTable, renderTable } from "../../../lib/sys/table.ts";

test("renderTable: right-aligned columns with a rule below the header", () => {
  const text = renderTable(
    ["Name", "Node", "Reported State"],
    [["node_1", "1", "primary"], ["zwölf", "12", "secondary"], ["short"]],
  );
  expect(text).toBe(
    [
      "  Name | Node | Reported State",
      "-------+------+---------------",
      "node_1 |    1 |        primary",
      " zwölf |   12 |      secondary",
      " short |      |               ",
    ].join("\n"),
  );
});

test("renderTable: no rows, one column, wide characters", () => {
  expect(renderTable(["a", "b"], [])).toBe("a | b\n--+--");
  expect(renderTable(["a"], [["日本"]])).toBe("   a\n----\n日本");
});

test("renderTable: prose begins at the left, and nothing trails", () => {
  const rows = [
    ["R1", "long words"],
    ["R22", "short"],
  ];
  expect(renderTable(["Rule", "Comment"], rows, ["Comment"])).toBe(
    ["Rule | Comment", "-----+-----------", "  R1 | long words", " R22 | short"].join("\n"),
  );
});

test("fitTable: columns go in the given order until the rest fits, and no line is wider", () => {
  const header = ["Name", "Port", "State", "Comment"];
  const rows = [
    ["node_1", "5432", "primary", "a long sentence that is cut wherever the line ends"],
  ];
  const fit = (columns: number) => fitTable(header, rows, columns, ["Port", "State"], ["Comment"]);
  expect(fit(200)).toEqual(renderTable(header, rows, ["Comment"]).split("\n"));
  expect(fit(44)).toEqual([
    "  Name |   State | Comment",
    "-------+---------+--------------------------",
    "node_1 | primary | a long sentence that is c",
  ]);
  expect(fit(36)[0]).toBe("  Name | Comment");
  expect(fit(12)[2]).toBe("node_1 | a l");
});
