import { decimal, integer, percent, plural } from "../numbers";

/** A line of the table that compares an export with the trained model. */
export interface ParityLine {
  what: string;
  found: string;
  /** Empty where there is none. */
  bound: string;
}

interface Report {
  rows?: number;
  rows_from?: string;
  engine?: string;
  tokens?: { texts: number; conversations: number; not_expressed: string[]; excused: string[] };
  logits?: { mean_kl: number; top1_agreement: number; largest_drift: number } | null;
  bound?: { kl: number; top1: number };
  answers?: { asked: number; identical: number; stopped_trained: number; stopped_of_them: number; bound: number };
  measure?: Record<string, { trained: number | null; exported: number | null }>;
}

/** What was compared, and with which rows; "" if nothing was. */
export function comparedIn(report: Report): string {
  if (!report.engine) return "";
  return `Compared in ${report.engine}, on ${integer(report.rows ?? 0)} ${report.rows_from ?? "rows"}`;
}

/** The lines of a report. Parts that an older report lacks are left out. */
export function parityLines({ tokens, logits, bound, answers, measure }: Report): ParityLine[] {
  const lines: ParityLine[] = [];
  const add = (what: string, found: string, limit = "") => lines.push({ what, found, bound: limit });
  if (tokens) {
    add("Token ids", `${plural(tokens.texts, "text")}, ${plural(tokens.conversations, "conversation")}`, "identical");
    if (tokens.excused.length) add("Other ids, as noted", tokens.excused.join(", "));
    if (tokens.not_expressed.length) add("Conversations not compared", tokens.not_expressed.join(", "));
  }
  if (logits && bound) {
    add("Mean KL of logits, nats", decimal(logits.mean_kl, 3), `≤ ${decimal(bound.kl)}`);
    add("Same top token", share(logits.top1_agreement), `≥ ${percent(bound.top1)}`);
    add("Largest drift of a logit, of the spread", decimal(logits.largest_drift, 3));
  }
  if (answers) {
    const { stopped_of_them: stopped, stopped_trained: trained } = answers;
    add("Answers that stop", `${stopped} of ${trained}`, `≥ ${percent(answers.bound)}`);
    add("Answers word for word the same", `${answers.identical} of ${answers.asked}`);
  }
  for (const [name, { trained, exported }] of Object.entries(measure ?? {})) {
    const after = exported === null ? "not told" : decimal(exported);
    add(`${sentence(name)}, trained → exported`, `${decimal(trained)} → ${after}`);
  }
  return lines;
}

function share(value: number): string {
  return `${decimal(100 * value, 4)} %`;
}

function sentence(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}
