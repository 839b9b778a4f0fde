/** Encryption as libpq's parameters describe it, and what is wrong where it fails. */
import { existsSync, readFileSync } from "node:fs";
import { AppError, errorText } from "./errors.ts";
import { connectionError, SSL_MODES, type Ssl, sqlState, type Target } from "./sql_target.ts";
import { homeDirectory } from "./user.ts";

export type TlsParams = Readonly<Record<string, string>>;

/**
 * Encryption by `sslmode`, `sslrootcert`, `sslcrl`, `sslcert` and `sslkey`; without a mode it's used where the server has
 * it. The files are read for each connection: renewed ones are taken up.
 *
 * @throws {AppError} usage: there is no such mode
 * @see PostgreSQL 15 docs, "SSL Support" of libpq
 */
export function sslOf(params: TlsParams): () => Ssl {
  const mode = SSL_MODES.find((each) => each === (params["sslmode"] ?? "prefer"));
  if (mode === undefined) {
    throw new AppError("usage", "there is no such sslmode", {
      detail: { sslmode: params["sslmode"] },
      hint: `One of: ${SSL_MODES.join(", ")}.`,
    });
  }
  const standard = `${homeDirectory()}/.postgresql/root.crt`;
  const root = params["sslrootcert"] ?? (existsSync(standard) ? standard : undefined);
  const verify = mode === "verify-ca" || mode === "verify-full";
  return () => ({
    mode,
    ca: verify ? read(root) : undefined,
    crl: verify ? read(params["sslcrl"]) : undefined,
    cert: read(params["sslcert"]),
    key: read(params["sslkey"]),
  });
}

const read = (path: string | undefined): string | undefined =>
  path === undefined ? undefined : readFileSync(path, "utf8");

type Problem = { readonly says: string; readonly hint: string };

const FOREIGN: Problem = {
  says: "its certificate was not issued by the authority in sslrootcert",
  hint: "Give the certificate of the authority (CA) that signed it, with sslrootcert in a URI or --ssl-ca-file.",
};
const PROBLEMS: Readonly<Record<string, Problem>> = {
  NO_TLS: {
    says: "it has no TLS, which sslmode demands",
    hint: "Turn TLS on there first, with the command enable ssl of its role, or give another sslmode.",
  },
  TLS_FILE: {
    says: "a file that the connection's TLS needs can't be read on this side",
    hint: "Put the file there, readable for the user who runs this, or name another.",
  },
  ERR_TLS_CERT_ALTNAME_INVALID: {
    says: "its certificate names another host",
    hint: "Use the name that the certificate has, or have one issued that names this host (subjectAltName).",
  },
  CERT_HAS_EXPIRED: {
    says: "its certificate has expired",
    hint: "Renew the certificate there, and reload that server; if it's valid, check this machine's clock.",
  },
  CERT_NOT_YET_VALID: {
    says: "its certificate is not valid yet",
    hint: "Check the clocks of both machines.",
  },
  CERT_REVOKED: {
    says: "its certificate was revoked",
    hint: "Have a new certificate issued for that server, and reload it.",
  },
  CRL_HAS_EXPIRED: {
    says: "the list of revoked certificates has expired",
    hint: "Fetch the authority's current one, in the place of --ssl-crl-file.",
  },
  UNABLE_TO_GET_CRL: {
    says: "the list of revoked certificates is not of its certificate's authority",
    hint: "Give --ssl-crl-file the lists of all authorities in --ssl-ca-file.",
  },
  SELF_SIGNED_CERT_IN_CHAIN: FOREIGN,
  DEPTH_ZERO_SELF_SIGNED_CERT: FOREIGN,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: FOREIGN,
  UNABLE_TO_GET_ISSUER_CERT: FOREIGN,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: FOREIGN,
  CERT_SIGNATURE_FAILURE: FOREIGN,
};

/** What is wrong with the other side's TLS, or ours; undefined when that is not why the connection failed. */
export function tlsProblem(error: unknown): Problem | undefined {
  const state = sqlState(error);
  if (state === "TLS_FAILED") {
    const said = error instanceof AppError ? String(error.detail["reason"]) : errorText(error);
    return {
      says: `the encrypted connection failed: ${said}`,
      hint: "Its server's log says more; check the files of its and this side's certificate.",
    };
  }
  return state === undefined ? undefined : PROBLEMS[state];
}

/** The target's encryption now. @throws {AppError} postgres: a file of it can't be read */
export function currentSsl(target: Target): Ssl {
  try {
    const { ssl } = target;
    return (typeof ssl === "function" ? ssl() : ssl) ?? { mode: "disable" };
  } catch (error) {
    throw connectionError("TLS_FILE", target, errorText(error));
  }
}
