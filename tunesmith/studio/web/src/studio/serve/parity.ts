import { decimal, integer, percent, plural } from "../numbers";

/** A line of the table that compares an export with the trained model. */
export interface ParityLine {
  what: string;
  /** By engine, in the order of `enginesIn`. */
  found: string[];
  /** Empty where there is none. */
  bound: string;
}

/** What was compared in one engine. */
interface Comparison {
  passed?: boolean | null;
  problem?: string | null;
  engine?: string;
  tokens?: { texts: number; conversations: number; not_expressed: string[]; excused: string[] };
  logits?: { mean_kl: number; top1_agreement: number; largest_drift: number } | null;
  bound?: { kl: number; top1: number };
  answers?: { asked: number; identical: number; stopped_trained: number; stopped_of_them: number; bound: number };
  measure?: Record<string, { trained: number | null; exported: number | null }>;
}

interface Report extends Comparison {
  rows?: number;
  rows_from?: string;
  elsewhere?: Record<string, Comparison>;
}

/** The engines in which an export was compared. */
export function enginesIn(report: Report): string[] {
  return comparisons(report).map(({ engine }, at) => engine ?? `Engine ${at + 1}`);
}

/** What was compared, and with which rows; "" if nothing was. */
export function comparedIn(report: Report): string {
  if (!report.engine) return "";
  return `Compared in ${enginesIn(report).join(" and ")}, on ${integer(report.rows ?? 0)} ${report.rows_from ?? "rows"}`;
}

/** The engines in which it could not be compared, with the reason. */
export function notCompared({ elsewhere }: Report): string[] {
  return Object.entries(elsewhere ?? {})
    .filter(([, there]) => !there.engine)
    .map(([name, { problem }]) => `Not compared in ${name}: ${problem ?? "it says no reason"}`);
}

function comparisons(report: Report): Comparison[] {
  return [report, ...Object.values(report.elsewhere ?? {}).filter(({ engine }) => engine)];
}

/** The lines of a report. Parts that an older report lacks are left out. */
export function parityLines(report: Report): ParityLine[] {
  const all = comparisons(report);
  const { bound, answers, measure } = report;
  const lines: ParityLine[] = [];
  const add = (what: string, value: (one: Comparison) => string | undefined, limit = "") => {
    const found = all.map((one) => value(one) ?? "");
    if (found.some(Boolean)) lines.push({ what, found: found.map((text) => text || "not told"), bound: limit });
  };
  const list = (what: string, names: (tokens: NonNullable<Comparison["tokens"]>) => string[]) => {
    if (all.some(({ tokens }) => tokens && names(tokens).length))
      add(what, ({ tokens }) => (tokens ? names(tokens).join(", ") || "none" : undefined));
  };
  add(
    "Token ids",
    ({ tokens }) => tokens && `${plural(tokens.texts, "text")}, ${plural(tokens.conversations, "conversation")}`,
    "identical",
  );
  list("Other ids, as noted", ({ excused }) => excused);
  list("Conversations not compared", ({ not_expressed }) => not_expressed);
  if (bound) {
    add(
      "Mean KL of logits, nats",
      ({ logits }) => (logits ? decimal(logits.mean_kl, 3) : undefined),
      `≤ ${decimal(bound.kl)}`,
    );
    add(
      "Same top token",
      ({ logits }) => (logits ? share(logits.top1_agreement) : undefined),
      `≥ ${percent(bound.top1)}`,
    );
    add("Largest drift of a logit, of the spread", ({ logits }) =>
      logits ? decimal(logits.largest_drift, 3) : undefined,
    );
  }
  if (answers) {
    const stopped = ({ stopped_of_them, stopped_trained }: typeof answers) =>
      `${stopped_of_them} of ${stopped_trained}`;
    add("Answers that stop", (one) => one.answers && stopped(one.answers), `≥ ${percent(answers.bound)}`);
    add("Answers word for word the same", (one) => one.answers && `${one.answers.identical} of ${one.answers.asked}`);
  }
  for (const [name, { trained }] of Object.entries(measure ?? {})) {
    add(`${sentence(name)}, trained ${decimal(trained)}`, (one) => {
      const after = one.measure?.[name]?.exported;
      return after == null ? undefined : decimal(after);
    });
  }
  return lines;
}

function share(value: number): string {
  return `${decimal(100 * value, 4)} %`;
}

function sentence(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}
