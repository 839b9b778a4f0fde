/**
 * The one kind of error that this program throws on purpose, and how it is shown.
 *
 * A message is constant and lower-case, its values stand in `detail`, and `hint` is a sentence to act on.
 */

/** What went wrong, as a caller can react to it; each has its exit code. */
export type Kind =
  | "usage"
  | "config"
  | "state"
  | "postgres"
  | "permission"
  | "monitor"
  | "conflict"
  | "timeout"
  | "dropped"
  | "internal";

/** The values of a message or of a log line, in the order in which they are printed. */
export type Detail = Readonly<Record<string, string | number | bigint | boolean | undefined>>;

/** The exit code of a command that ended with an error of that kind. Documented: don't renumber. */
export const EXIT_CODES: Readonly<Record<Kind, number>> = {
  usage: 2,
  config: 2,
  state: 3,
  postgres: 4,
  permission: 5,
  monitor: 6,
  conflict: 7,
  timeout: 8,
  internal: 12,
  dropped: 121,
};

/** What an `AppError` may carry besides its kind and message. */
export type ErrorOptions = {
  readonly detail?: Detail | undefined;
  readonly hint?: string | undefined;
  readonly cause?: unknown;
};

/** An error with a kind, values and a hint; everything else that is thrown is a bug. */
export class AppError extends Error {
  readonly kind: Kind;
  readonly detail: Detail;
  readonly hint: string | undefined;

  constructor(kind: Kind, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "AppError";
    this.kind = kind;
    this.detail = options.detail ?? {};
    this.hint = options.hint;
  }
}

/**
 * Says what the code takes for granted.
 *
 * @throws {AppError} internal, when it does not hold
 */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AppError("internal", message);
}

/**
 * An error as one line without its stack: the message, then the values, then why.
 *
 * Passwords are taken out, so the line may go to a log, an event or another host.
 */
export function errorText(error: unknown): string {
  return scrub(oneLine(describe(error, 0)));
}

/** Longer chains of causes repeat themselves. */
const CAUSES_MAX = 3;

function describe(error: unknown, depth: number): string {
  if (!(error instanceof Error)) return typeof error === "string" ? error : safeString(error);
  const values = error instanceof AppError ? detailText(error.detail) : "";
  const text = `${error.message || error.name}${values === "" ? "" : ` ${values}`}`;
  // A message of our own already says what the cause said where that matters: it then stands in `reason`.
  const told = error instanceof AppError && "reason" in error.detail;
  if (error.cause === undefined || told || depth >= CAUSES_MAX) return text;
  const cause = describe(error.cause, depth + 1);
  return text.includes(cause) ? text : `${text}: ${cause}`;
}

function safeString(value: unknown): string {
  try {
    return String(value);
  } catch {
    return "an error that can't be printed";
  }
}

/** `detail` as `key=value` pairs; values with blanks or quotes are quoted as in JSON. */
export function detailText(detail: Detail): string {
  return (
    Object.entries(detail)
      .filter(([, value]) => value !== undefined)
      // Before quoting, which changes the shape that a secret is known by.
      .map(([key, value]) => `${key}=${quoteValue(scrub(String(value)))}`)
      .join(" ")
  );
}

function quoteValue(value: string): string {
  return /^[^\s"=\\]+$/.test(value) ? value : JSON.stringify(value);
}

/** The text with line breaks and other control characters made visible or blank. */
export function oneLine(text: string): string {
  return (
    text
      .replace(/\s*[\r\n]+\s*/g, " ")
      // biome-ignore lint/suspicious/noControlCharactersInRegex: a server's text must not move the cursor
      .replace(/[\u0000-\u001f\u007f-\u009f]/g, " ")
      .trim()
  );
}

/**
 * The text with each secret that can be recognised replaced by `***`.
 *
 * Known forms: the password of a URI (`scheme://user:secret@host`), `password=secret` in a connection
 * string, a URI's query, an environment or SQL (`PASSWORD 'secret'`), and `"password":"secret"` in JSON.
 */
export function scrub(text: string): string {
  return (
    text
      // A raw "@" in a password is the commonest mistake in a URI: up to the last one before the path.
      .replace(/([a-z][a-z0-9+.-]*:\/\/[^\s:@/?#"']*):[^\s/?#"']*@/gi, "$1:***@")
      .replace(
        /((?:ssl)?password)("?\s*[=:]\s*|\s+(?='))('(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|[^\s&'",;}]+)/gi,
        (_, key: string, between: string, value: string) => {
          const quote = value.startsWith("'") || value.startsWith('"') ? (value[0] ?? "") : "";
          return `${key}${between}${quote}***${quote}`;
        },
      )
  );
}
