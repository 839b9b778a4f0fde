/** Guards the directions of imports and a few bans, so that the core stays pure. Nothing about sizes. */

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

const ROOT = join(import.meta.dir, "..");

type Source = { path: string; code: string; imports: string[] };

/** All our sources below a folder; `imports` are paths from the root, or package names as written. */
function sources(folder: string): Source[] {
  const paths = [...new Bun.Glob(`${folder}/**/*.ts`).scanSync({ cwd: ROOT })]
    .filter((path) => !path.endsWith(".d.ts"))
    .sort();
  return paths.map((path) => {
    const text = readFileSync(join(ROOT, path), "utf8");
    return { path, code: withoutComments(text), imports: importsOf(path, text) };
  });
}

/** The code with its comments and the insides of its strings taken out; template literals keep their `${}`. */
function withoutComments(text: string): string {
  return text.replace(
    /\/\*[\s\S]*?\*\/|\/\/[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`/g,
    (token) => (token.startsWith("`") ? (token.match(/\$\{[^}]*\}/g) ?? []).join(" ") : '""'),
  );
}

const IMPORT =
  /^\s*(?:import\s+(?:[\w*{}\s,$]+\sfrom\s+)?|export\s+(?:type\s+)?(?:\*|\{[^}]*\})[\w\s]*\sfrom\s+)"([^"]+)"|\bimport\(\s*"([^"]+)"/gm;

function importsOf(path: string, text: string): string[] {
  const bare = text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  return [...bare.matchAll(IMPORT)].map((match) => {
    const name = match[1] ?? match[2] ?? "";
    return name.startsWith(".") ? relative(ROOT, join(ROOT, dirname(path), name)) : name;
  });
}

const LIB = sources("lib");
const ROLES = sources("roles");

const isBuiltin = (name: string) => /^(node|bun)(:|$)/.test(name);
const isOurs = (name: string) => /^(lib|roles|test|ansible)\//.test(name);

/** Which of our files a file may import: prefixes of paths. The first row that fits a file counts. */
const DIRECTIONS: readonly [file: RegExp, mayImport: readonly string[]][] = [
  [/^lib\/fsm\.ts$/, []],
  [/^lib\/group\//, ["lib/fsm.ts", "lib/group/"]],
  [/^lib\/keeper\/(step|fence)\.ts$/, ["lib/fsm.ts", "lib/group/"]],
  [/^lib\/sys\//, ["lib/sys/"]],
  [/^lib\/shapes\.ts$/, ["lib/fsm.ts", "lib/group/view.ts"]],
  // It says what is wrong with a setting, and keeps the file that it read.
  [/^lib\/config\.ts$/, ["lib/shapes.ts", "lib/fsm.ts", "lib/group/view.ts", "lib/sys/"]],
  [/^lib\/pg\//, ["lib/pg/", "lib/sys/"]],
  [
    /^lib\/monitor\//,
    [
      "lib/monitor/",
      "lib/fsm.ts",
      "lib/group/",
      "lib/shapes.ts",
      "lib/config.ts",
      "lib/pg/",
      "lib/sys/",
    ],
  ],
  [
    /^lib\/keeper\//,
    [
      "lib/keeper/",
      "lib/monitor/client.ts",
      "lib/fsm.ts",
      "lib/group/",
      "lib/shapes.ts",
      "lib/config.ts",
      "lib/pg/",
      "lib/sys/",
    ],
  ],
  [
    /^lib\/drill\//,
    [
      "lib/drill/",
      "lib/monitor/client.ts",
      "lib/monitor/failovers.ts",
      "lib/fsm.ts",
      "lib/group/",
      "lib/shapes.ts",
      "lib/pg/processes.ts",
      "lib/sys/",
    ],
  ],
  [/^roles\//, ["lib/"]],
];

test("imports follow the directions", () => {
  // Who sees no imports finds none that are wrong.
  const seen = LIB.find(({ path }) => path === "lib/sys/sql.ts")?.imports;
  expect(seen).toEqual(expect.arrayContaining(["node:net", "postgres", "lib/sys/sql_target.ts"]));
  const wrong = [...LIB, ...ROLES].flatMap(({ path, imports }) => {
    const row = DIRECTIONS.find(([file]) => file.test(path));
    if (row === undefined) return [`${path} has no place in the tree`];
    return imports
      .filter((name) => isOurs(name) && !row[1].some((allowed) => name.startsWith(allowed)))
      .map((name) => `${path} imports ${name}`);
  });
  expect(wrong).toEqual([]);
});

const PURE = LIB.filter(({ path }) =>
  /^lib\/(fsm\.ts|group\/.*|keeper\/(step|fence|report)\.ts|pg\/timeline\.ts)$/.test(path),
);

test("the core is pure: no packages, no waiting, no clock, no chance, no process", () => {
  const banned = /(?<![.\w$])(async|await|Date|Math\.random|process|Bun|console)(?![\w$])/g;
  const wrong = PURE.flatMap(({ path, code, imports }) => [
    ...imports.filter((name) => !isOurs(name)).map((name) => `${path} imports ${name}`),
    ...[...code.matchAll(banned)].map(([word]) => `${path} uses ${word}`),
  ]);
  expect(wrong).toEqual([]);
});

/** Each package and the files that may import it. */
const DOORS: Readonly<Record<string, RegExp>> = {
  postgres: /^lib\/sys\/sql\.ts$/,
  consola: /^lib\/sys\/log\.ts$/,
  valibot: /^lib\/(config|shapes)\.ts$/,
  citty: /^(roles\/.*|lib\/sys\/cli\.ts)$/,
};

test("each package has one door", () => {
  const wrong = [...LIB, ...ROLES].flatMap(({ path, imports }) =>
    imports
      .filter((name) => !isOurs(name) && !isBuiltin(name))
      .filter((name) => DOORS[name.split("/")[0] ?? ""]?.test(path) !== true)
      .map((name) => `${path} imports ${name}`),
  );
  expect(wrong).toEqual([]);
});

test("no folder index, no default export, no class but errors and handles", () => {
  const wrong = [...LIB, ...ROLES].flatMap(({ path, code }) => [
    ...(path.endsWith("/index.ts") ? [path] : []),
    ...(/^\s*export\s+default\b/m.test(code) ? [`${path} has a default export`] : []),
    ...[...code.matchAll(/\bclass\s+(\w+)(?![^{]*(?:Error|Disposable)\b)/g)].map(
      (match) => `${path} has class ${match[1]}`,
    ),
  ]);
  expect(wrong).toEqual([]);
});

test("every rule of the state machine is named by a test", () => {
  const fsm = LIB.find(({ path }) => path === "lib/fsm.ts");
  const text = readFileSync(join(ROOT, fsm?.path ?? ""), "utf8");
  const rules = [...text.matchAll(/\bid: "([A-Z]\d+)"/g)];
  expect(rules.length).toBeGreaterThan(30);
  const told = [...new Bun.Glob("test/**/*.{ts,txt}").scanSync({ cwd: ROOT })]
    // The golden print lists every rule by itself, and so proves nothing.
    .filter((path) => !path.startsWith("test/golden/"))
    .map((path) => readFileSync(join(ROOT, path), "utf8"))
    .join("\n");
  const named = new Set(told.match(/\b[A-Z]\d+\b/g));
  expect(rules.map((match) => match[1] ?? "").filter((id) => !named.has(id))).toEqual([]);
});

/**
 * Words of other products for what has a name here; split so that this file may name them. A path that load balancers
 * are configured to ask for is what it is.
 */
const FOREIGN = /\b(mas(?:ter)|sl(?:ave)|lead(?:er)|(?<!\/)repl(?:ica)|follow(?:er))s?\b/i;

test("PostgreSQL's words: primary and standby", () => {
  const paths = [
    ...new Bun.Glob("{lib,roles,ansible}/**/*.{ts,sql,yml,j2,sh,md}").scanSync({ cwd: ROOT }),
  ];
  const wrong = paths.flatMap((path) =>
    readFileSync(join(ROOT, path), "utf8")
      .split("\n")
      .flatMap((line, i) => (FOREIGN.test(line) ? [`${path}:${i + 1}: ${line.trim()}`] : [])),
  );
  expect(wrong).toEqual([]);
});
