import { expect, test } from "bun:test";
import { renderTable } from "../../../lib/sys/table.ts";

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
