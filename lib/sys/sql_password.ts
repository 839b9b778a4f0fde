/** Passwords, from where libpq takes them. */
import { type PassfileKey, passwordIn, standardPassfile } from "./passfile.ts";

/**
 * PGPASSWORD, else what fits in the file PGPASSFILE or ~/.pgpass, else in `passfile`; undefined when there is none.
 *
 * A file that this process's environment names goes before one that was written down with the connection: who has
 * changed a password can say so without touching what is stored.
 */
export function passwordFor(
  target: PassfileKey & { readonly passfile?: string | undefined },
): string | undefined {
  return (
    (process.env["PGPASSWORD"] || undefined) ??
    passwordIn(standardPassfile(), target) ??
    (target.passfile === undefined ? undefined : passwordIn(target.passfile, target))
  );
}
