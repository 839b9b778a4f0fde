/** LSN arithmetic. An LSN is a bigint of bytes in code and `16/B374D848` in text. */

const LSN_MAX = (1n << 64n) - 1n;

/**
 * An LSN as PostgreSQL prints it, in bytes.
 *
 * @throws {RangeError} the text is not two hexadecimal halves of at most 32 bits each
 */
export function parseLsn(text: string): bigint {
  const [, high, low] = /^([0-9A-F]{1,8})\/([0-9A-F]{1,8})$/i.exec(text) ?? [];
  if (high === undefined || low === undefined) {
    throw new RangeError(`not an LSN such as 16/B374D848: "${text}"`);
  }
  return (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`);
}

/**
 * An LSN in bytes, as PostgreSQL prints it.
 *
 * @throws {RangeError} the number is negative or needs more than 64 bits
 */
export function formatLsn(lsn: bigint): string {
  if (lsn < 0n || lsn > LSN_MAX) {
    throw new RangeError(`an LSN has 64 bits and no sign: ${lsn}`);
  }
  const hex = (half: bigint): string => half.toString(16).toUpperCase();
  return `${hex(lsn >> 32n)}/${hex(lsn & 0xffffffffn)}`;
}
