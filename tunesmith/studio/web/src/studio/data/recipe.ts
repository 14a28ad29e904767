// The sources of a recipe that the address has, as New run puts it there.

import type { Schemas } from "../../api/client";
import { isMapping, textOf, type Values } from "../../parts/values";
import { valueAt } from "../new/values";

export interface Source {
  path: string;
  weight: number;
  isHeldOut: boolean;
}

/** What decides how rows are read. */
const SECTIONS = ["model", "data", "method"];

/** A recipe's address in the Data view. */
export function recipeText(values: Values): string {
  return JSON.stringify(Object.fromEntries(SECTIONS.filter((key) => key in values).map((key) => [key, values[key]])));
}

/** Null if the text is none of `recipeText`. */
export function recipeIn(text: string): Values | null {
  try {
    const values: unknown = JSON.parse(text);
    return isMapping(values) ? values : null;
  } catch {
    return null;
  }
}

/** The sources in the order of reports: those of training first. */
export function sourcesOf(values: Values): Source[] {
  const short = isMapping(values.data) ? null : values.data; // a path in the place of the section
  const train = short ?? valueAt(values, "data.train");
  return [...listed(train, false), ...listed(valueAt(values, "data.eval"), true)];
}

function listed(value: unknown, isHeldOut: boolean): Source[] {
  const items = Array.isArray(value) ? value : value === undefined || value === null ? [] : [value];
  return items.map((item: unknown) => {
    if (!isMapping(item)) return { path: textOf(item), weight: 1, isHeldOut };
    return { path: textOf(item.path), weight: Number(item.weight ?? 1), isHeldOut };
  });
}

/** Counts of several sources together. Those that need a model are null without one. */
export function together(reports: Schemas["DataReport"][]): { read: number; kept: number; tokens: number | null } {
  const sum = (of: (report: Schemas["DataReport"]) => number) => reports.reduce((all, one) => all + of(one), 0);
  const hasTokens = reports.every(({ tokens }) => tokens !== null && tokens !== undefined);
  return {
    read: sum(({ read }) => read),
    kept: sum(({ kept }) => kept),
    tokens: hasTokens ? sum(({ tokens }) => tokens ?? 0) : null,
  };
}
