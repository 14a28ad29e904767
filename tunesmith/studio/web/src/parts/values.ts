// Plain values, as forms have them.

export type Values = Record<string, unknown>;

export function isMapping(value: unknown): value is Values {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether two plain values are the same. */
export function isSame(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** A value as YAML would say it on one line. */
export function textOf(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** What people mean by a word: a number, a truth value, or the text. */
export function meant(text: string): unknown {
  const word = text.trim();
  if (word === "true" || word === "false") return word === "true";
  if (word === "null") return null;
  return word !== "" && Number.isFinite(Number(word)) ? Number(word) : word;
}
