/** Bun for a service that idles: settings of its engine that are read at start only. */

/** Compiling hot code over again, and looking for garbage every second, is for programs that have any. */
const LEAN: Readonly<Record<string, string>> = {
  BUN_JSC_useDFGJIT: "0",
  BUN_JSC_useConcurrentJIT: "0",
  BUN_GC_TIMER_INTERVAL: "10000",
};
/** A few calls a second are interpreted as fast as they'd be compiled, and what they leave is needed again at the next. */
const IDLE: Readonly<Record<string, string>> = {
  BUN_JSC_useBaselineJIT: "0",
  MIMALLOC_PURGE_HOLES: "0",
  MIMALLOC_PURGE_DELAY: "2000",
};

/**
 * Replaces this process by itself with those settings: same pid, same words, some 50 ms later.
 * Call it before anything is held. An idle keeper takes half the CPU and 5 MB less memory so
 * (test/bench/idle.ts). Where it doesn't work, or the operator has set them, nothing happens.
 *
 * @param busy it may have much to do, as the monitor of many nodes has
 */
export function runLean({ busy }: { readonly busy: boolean }): void {
  const settings = busy ? LEAN : { ...LEAN, ...IDLE };
  if (typeof process.execve !== "function") return;
  if (Object.keys(settings).some((name) => process.env[name] !== undefined)) return;
  const { execPath, execArgv, argv } = process;
  try {
    process.execve(execPath, [execPath, ...execArgv, ...argv.slice(1)], {
      ...process.env,
      ...settings,
    });
  } catch {
    // as it is, then
  }
}
