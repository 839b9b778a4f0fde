import { expect, test } from "bun:test";
import { renderMetrics } from "../../../lib/sys/metrics.ts";

test("renderMetrics: labels are escaped, what isn't known is left out, bytes stay exact", () => {
  const page = renderMetrics([
    {
      name: "a_bytes",
      type: "gauge",
      help: "What it is.",
      samples: [
        [{ name: 'q"u\\o\nte', id: 1 }, 9_007_199_254_740_993n],
        [{}, true],
        [{ name: "x" }, undefined],
      ],
    },
    { name: "b_total", type: "counter", help: "More.", samples: [] },
  ]);
  expect(page).toBe(`# HELP a_bytes What it is.
# TYPE a_bytes gauge
a_bytes{name="q\\"u\\\\o\\nte",id="1"} 9007199254740993
a_bytes 1
# HELP b_total More.
# TYPE b_total counter
`);
});
