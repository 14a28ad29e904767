import type { Colour } from "./palette";

/** One line of a chart. A y of null is not a number, and is drawn as a gap with a mark. */
export interface Line {
  label: string;
  x: number[];
  y: (number | null)[];
  /** Drawn over y, which is then pale. */
  smooth?: (number | null)[];
  /** The ends of an interval, drawn as a band. */
  low?: (number | null)[];
  high?: (number | null)[];
  colour: Colour;
  /** Points are drawn too, for values that are few. */
  dots?: boolean;
}

export interface Mark {
  x: number;
  label: string;
}

/** What is shown of the horizontal axis; null: all to that end. */
export interface Range {
  low: number | null;
  high: number | null;
}

export interface ChartOptions {
  /** What the chart shows, for its heading and for screen readers. */
  title: string;
  log: boolean;
  xText: (value: number) => string;
  yText: (value: number) => string;
  /** Charts with the same key show their values at the same place. */
  syncKey: string;
}
