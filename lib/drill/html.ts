/** A drill's report as one page that needs nothing else. */
import type { Report } from "./run.ts";

export function reportHtml(report: Report, error: string | null): string {
  return `<!doctype html><title>${report.scenario} ${error ?? ""}</title>`;
}
