// Colours of the canvas, which cannot read CSS variables.

import { theme } from "../settings";
import { Value } from "../../api/value";

export const SERIES = ["series-1", "series-2", "series-3", "series-4", "series-5", "series-6"] as const;
export type Colour = (typeof SERIES)[number] | "ink" | "dim" | "rule" | "bad" | "soft";

/** Rises when the colours change, so that charts are drawn anew. */
export const paletteVersion = new Value(0);

const changed = () => paletteVersion.set(paletteVersion.get() + 1);
theme.subscribe(() => setTimeout(changed)); // once the page has the new theme
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

let probe: HTMLElement | null = null;

/** The present value of a colour, as rgb(). */
export function colour(name: Colour): string {
  if (!probe) {
    probe = document.createElement("i");
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** A colour with a lower opacity. */
export function pale(rgb: string, alpha: number): string {
  return `color-mix(in srgb, ${rgb} ${100 * alpha}%, transparent)`;
}
