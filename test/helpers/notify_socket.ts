/** The service manager's side of sd_notify: a datagram socket, which Bun and Node don't have. Linux. */
import { dlopen, FFIType } from "bun:ffi";
import { rmSync } from "node:fs";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const MSG_DONTWAIT = 0x40;
const { i32, u32, u64, ptr, i64_fast } = FFIType;

export class NotifySocket implements Disposable {
  readonly address: string;
  readonly #libc = dlopen("libc.so.6", {
    socket: { args: [i32, i32, i32], returns: i32 },
    bind: { args: [i32, ptr, u32], returns: i32 },
    recv: { args: [i32, ptr, u64, i32], returns: i64_fast },
    chmod: { args: [ptr, u32], returns: i32 },
    close: { args: [i32], returns: i32 },
  });
  readonly #fd: number;
  readonly #messages: string[] = [];
  /** The kernel keeps no more than a few datagrams, and a service manager reads them at once. */
  readonly #reading = setInterval(() => this.messages, 20);

  /** @param address a path, which anybody may write to, or a name behind "@" */
  constructor(address: string) {
    this.address = address;
    const path = new TextEncoder().encode(`${address}\0`);
    const isAbstract = address.startsWith("@");
    if (isAbstract) path[0] = 0;
    const sockaddr = new Uint8Array([AF_UNIX, 0, ...(isAbstract ? path.slice(0, -1) : path)]);
    const { socket, bind, chmod } = this.#libc.symbols;
    this.#fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (bind(this.#fd, sockaddr, sockaddr.length) !== 0) throw new Error(`bind ${address}`);
    if (!isAbstract) chmod(path, 0o777);
  }

  /** All that has been sent so far, a message an entry. */
  get messages(): readonly string[] {
    const buffer = new Uint8Array(4096);
    for (;;) {
      const length = this.#libc.symbols.recv(this.#fd, buffer, buffer.length, MSG_DONTWAIT);
      if (length < 0) return this.#messages;
      this.#messages.push(new TextDecoder().decode(buffer.subarray(0, Number(length))).trimEnd());
    }
  }

  /** How often a message has come. */
  count(message: string): number {
    return this.messages.filter((each) => each === message).length;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#reading);
    this.#libc.symbols.close(this.#fd);
    if (!this.address.startsWith("@")) rmSync(this.address, { force: true });
  }
}
