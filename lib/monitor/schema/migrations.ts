/** The monitor's schema, forward only: the index + 1 of a text is its number. */
import init from "./001_init.sql" with { type: "text" };
import sqlInterface from "./002_interface.sql" with { type: "text" };
import recover from "./003_recover.sql" with { type: "text" };

export const MIGRATIONS: readonly string[] = [init, sqlInterface, recover];
