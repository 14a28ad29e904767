import type { Model } from "./types";

/** What a model is, and what its server says that it supports, in one line. */
export function facts({ kind, base, context, tools, reasoning, images }: NonNullable<Model["tunesmith"]>): string {
  const origin = kind === "tuned" ? `Tuned from ${base}` : "Not tuned";
  const parts = [`a context of ${context.toLocaleString("en")} tokens`];
  if (tools !== undefined) parts.push(tools ? "tools" : "no tools");
  if (reasoning !== undefined) parts.push(reasoning ? "reasoning" : "no reasoning");
  if (images !== undefined) parts.push(images ? "images" : "no images");
  return `${origin}; ${parts.join(", ")}.`;
}
