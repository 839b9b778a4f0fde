/** TLS of a server: its files, looked through before PostgreSQL is told of them; and its settings. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { chmodSync, existsSync, readFileSync, renameSync, statSync } from "node:fs";
import { isIP } from "node:net";
import { dirname } from "node:path";
import { AppError, errorText } from "../sys/errors.ts";
import { run } from "../sys/exec.ts";
import { syncDirectory } from "../sys/files.ts";
import type { Ssl, TlsParams } from "../sys/sql.ts";

/** Paths of PEM files, absolute. */
export type Tls = {
  /** How this side connects to others. */
  readonly mode: Ssl["mode"];
  readonly cert: string;
  readonly key: string;
  readonly ca?: string | undefined;
  readonly crl?: string | undefined;
};

/** Whether others may connect by TLS only. */
export const demandsTls = (tls: Tls | undefined): boolean =>
  tls !== undefined && tls.mode !== "disable" && tls.mode !== "prefer";

export const verifies = (mode: Ssl["mode"]): boolean =>
  mode === "verify-ca" || mode === "verify-full";

/** For the file of managed settings; nothing without TLS of ours: what postgresql.conf says then stays. */
export function tlsSettings(tls: Tls | undefined): Record<string, string> {
  if (tls === undefined) return {};
  return {
    ssl: "on",
    ssl_cert_file: tls.cert,
    ssl_key_file: tls.key,
    ...(tls.ca === undefined ? {} : { ssl_ca_file: tls.ca }),
    ...(tls.crl === undefined ? {} : { ssl_crl_file: tls.crl }),
  };
}

/**
 * How this side connects to others, as libpq's parameters.
 *
 * @param withCertificate log in by the server's own certificate
 */
export function tlsParams(tls: Tls | undefined, withCertificate = false): TlsParams {
  if (tls === undefined) return { sslmode: "prefer" };
  const { mode, ca, crl, cert, key } = tls;
  return {
    sslmode: mode,
    ...(verifies(mode) && ca !== undefined ? { sslrootcert: ca } : {}),
    ...(verifies(mode) && crl !== undefined ? { sslcrl: crl } : {}),
    ...(withCertificate ? { sslcert: cert, sslkey: key } : {}),
  };
}

const fail = (message: string, path: string, hint: string, detail: object = {}): AppError =>
  new AppError("config", message, { detail: { path, ...detail }, hint });

function readPem(what: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw fail(
      `could not read the ${what}`,
      path,
      "Give the path of a PEM file that the user who runs PostgreSQL may read.",
      { reason: errorText(error) },
    );
  }
}

/** All certificates of a PEM file. @throws {AppError} config: it has none */
function certificates(what: string, path: string): [X509Certificate, ...X509Certificate[]] {
  const blocks = readPem(what, path).match(
    /-----BEGIN (?:TRUSTED )?CERTIFICATE-----[^-]+-----END (?:TRUSTED )?CERTIFICATE-----/g,
  );
  try {
    const [first, ...rest] = (blocks ?? []).map((block) => new X509Certificate(block));
    if (first) return [first, ...rest];
  } catch {
    // said below
  }
  throw fail(`the ${what} is no certificate`, path, "Give a PEM file: BEGIN CERTIFICATE …");
}

/**
 * What PostgreSQL would refuse to start with, and what others would refuse to connect to.
 *
 * @param nodename what they reach this server at
 * @throws {AppError} config, naming the file and what is wrong with it
 */
export function checkTls(tls: Tls, nodename: string): void {
  const [own, ...between] = certificates("server's certificate", tls.cert);
  checkKey(tls, own);
  checkDates(own, "server's certificate", tls.cert);
  if (tls.crl !== undefined) readPem("list of revoked certificates", tls.crl);
  if (tls.ca !== undefined) {
    const authorities = certificates("authority's certificate", tls.ca);
    const chain = [own];
    for (let at: X509Certificate | undefined = own; at; ) {
      const issuer: X509Certificate | undefined = issuerOf(at, authorities);
      if (issuer) {
        checkDates(issuer, "authority's certificate", tls.ca);
        break;
      }
      at = issuerOf(
        at,
        between.filter((each) => !chain.includes(each)),
      );
      if (at === undefined) {
        throw fail(
          "the server's certificate was not issued by the authority in --ssl-ca-file",
          tls.cert,
          "Give the authority (CA) that signed it, and put certificates in between into --server-cert.",
          { ca: tls.ca },
        );
      }
      chain.push(at);
    }
  }
  const names = isIP(nodename) ? own.checkIP(nodename) : own.checkHost(nodename);
  if (tls.mode === "verify-full" && names === undefined) {
    throw fail(
      "the server's certificate does not name this host",
      tls.cert,
      "Have one issued whose subjectAltName has that name, give the name that it has as --nodename, or take --ssl-mode verify-ca.",
      { nodename, names: own.subjectAltName ?? own.subject.replaceAll("\n", ", ") },
    );
  }
}

const issuerOf = (
  certificate: X509Certificate,
  candidates: readonly X509Certificate[],
): X509Certificate | undefined =>
  candidates.find((each) => certificate.checkIssued(each) && certificate.verify(each.publicKey));

function checkDates(certificate: X509Certificate, what: string, path: string): void {
  const now = Date.now();
  if (certificate.validToDate.getTime() < now) {
    throw fail(`the ${what} has expired`, path, "Renew it, or check this machine's clock.", {
      not_after: certificate.validTo,
    });
  }
  if (certificate.validFromDate.getTime() > now) {
    throw fail(`the ${what} is not valid yet`, path, "Check this machine's clock.", {
      not_before: certificate.validFrom,
    });
  }
}

/**
 * Makes sure that the files of a server's TLS are there and good.
 *
 * @throws {AppError} config: what is wrong with them
 */
export async function prepareTls(
  tls: (Tls & { readonly selfSigned: boolean }) | undefined,
  nodename: string,
): Promise<void> {
  if (tls?.selfSigned) await makeSelfSigned(tls, nodename);
  else if (tls) checkTls(tls, nodename);
}

/** As PostgreSQL wants it: the user's own and for nobody else, or root's, and then for a group at most. */
function checkKey({ key: path }: Tls, certificate: X509Certificate): void {
  const pem = readPem("server's private key", path);
  const { uid, mode } = statSync(path);
  const allowed = uid === 0 ? 0o640 : 0o600;
  if (uid !== 0 && uid !== process.geteuid?.()) {
    throw fail(
      "the server's private key belongs to another user",
      path,
      "Give it to the user who runs PostgreSQL, or to root: chown.",
    );
  }
  if ((mode & 0o777 & ~allowed & 0o077) !== 0) {
    throw fail(
      "the server's private key can be read by others",
      path,
      `chmod ${allowed.toString(8)} ${path}`,
      { mode: (mode & 0o777).toString(8) },
    );
  }
  let fits: boolean;
  try {
    fits = certificate.checkPrivateKey(createPrivateKey(pem));
  } catch {
    throw fail(
      "the server's private key can't be read",
      path,
      "Give a PEM file without a passphrase: nobody is there to type it.",
    );
  }
  if (!fits) {
    throw fail(
      "the server's private key is not that of its certificate",
      path,
      "Give the --server-key that belongs to --server-cert.",
    );
  }
}

const DAYS = 3650;
const OPENSSL_TIMEOUT_MS = 30_000;

/**
 * A certificate that nobody vouches for: it encrypts, and proves nothing. One that is there and good
 * for this name stays.
 *
 * @param files where it's kept: a directory for the owner only
 * @throws {AppError} config: there is no openssl, or it fails
 */
async function makeSelfSigned(
  { cert, key }: Pick<Tls, "cert" | "key">,
  nodename: string,
): Promise<void> {
  if (existsSync(cert)) {
    try {
      checkTls({ mode: "verify-full", cert, key }, nodename);
      return;
    } catch {
      // another name since, or too old
    }
  }
  const [newCert, newKey] = [`${cert}.new`, `${key}.new`];
  const command = [
    ...["openssl", "req", "-x509", "-nodes", "-sha256"],
    ...["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
    ...["-days", String(DAYS), "-keyout", newKey, "-out", newCert],
    ...["-subj", `/CN=${nodename.replaceAll(/[^\w.:-]/g, "_").slice(0, 64)}`],
    ...["-addext", `subjectAltName=${isIP(nodename) ? "IP" : "DNS"}:${nodename}`],
  ];
  const hint = "Install openssl, or give --server-cert and --server-key instead.";
  const failed = (reason: string, cause?: unknown): AppError =>
    new AppError("config", "could not make a self-signed certificate", {
      detail: { program: "openssl", reason },
      hint,
      cause,
    });
  const { code, stderr } = await run(command, { timeoutMs: OPENSSL_TIMEOUT_MS }).catch((cause) => {
    throw failed(errorText(cause), cause);
  });
  if (code !== 0) throw failed(stderr.trim().split("\n").at(-1) ?? "");
  chmodSync(newKey, 0o600);
  // never a new certificate beside an old key for longer than a crash would take
  renameSync(newKey, key);
  renameSync(newCert, cert);
  syncDirectory(dirname(cert));
}
