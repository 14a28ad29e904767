// Which curves of a run go into which chart.

import type { Curve } from "../../api/client";
import { bytes, decimal } from "../numbers";
import { short } from "./axes";
import type { Line } from "./types";

export interface Panel {
  title: string;
  /** The names of its curves. */
  names: string[];
  yText: (value: number) => string;
  /** Whether a logarithmic scale makes sense. */
  canBeLog: boolean;
}

const number = (value: number) => decimal(value, 3);

const PANELS: Panel[] = [
  { title: "Loss", names: ["loss", "held_out_loss"], yText: decimal, canBeLog: true },
  { title: "Learning rate", names: ["learning_rate"], yText: number, canBeLog: false },
  { title: "Gradient norm", names: ["grad_norm"], yText: number, canBeLog: true },
  { title: "Tokens per second", names: ["tokens_per_second"], yText: short, canBeLog: false },
  { title: "Memory", names: ["memory_bytes"], yText: bytes, canBeLog: false },
  { title: "Power", names: ["watts"], yText: (watts) => `${decimal(watts, 3)} W`, canBeLog: false },
  {
    title: "Time spent waiting for data",
    names: ["waiting_share"],
    yText: (share) => `${decimal(100 * share, 3)} %`,
    canBeLog: false,
  },
];

/** Curves without noise, which are shown as they are. */
const EXACT = ["learning_rate", "memory_bytes"];

const LABELS: Record<string, string> = {
  loss: "loss",
  held_out_loss: "held-out loss",
  learning_rate: "learning rate",
  grad_norm: "gradient norm",
  tokens_per_second: "tokens/s",
  memory_bytes: "memory",
  watts: "power",
  waiting_share: "waiting",
};

/** The charts of these curves: the usual ones, then one for each metric of the method. */
export function panelsOf(names: string[]): Panel[] {
  const metrics = names.filter((name) => name.startsWith("metrics."));
  return [
    ...PANELS.filter((panel) => panel.names.some((name) => names.includes(name))),
    ...metrics.map((name) => ({ title: labelOf(name), names: [name], yText: number, canBeLog: false })),
  ];
}

export function labelOf(name: string): string {
  return LABELS[name] ?? name.replace(/^metrics\./, "").replaceAll("_", " ");
}

export function linesOf(panel: Panel, curves: Curve[]): Line[] {
  return panel.names.flatMap((name, at) => {
    const curve = curves.find((one) => one.name === name);
    if (!curve) return [];
    return [lineOf(curve, labelOf(name), at ? "series-2" : "series-1")];
  });
}

export function lineOf(curve: Curve, label: string, colour: Line["colour"]): Line {
  const { name, x, y, low, high } = curve;
  // The server's average goes on where a value is not a number; its line must not hide that.
  const smooth = EXACT.includes(name) ? [] : curve.smooth.map((value, at) => (y[at] === null ? null : value));
  return { label, x, y, smooth, low, high, colour, dots: name === "held_out_loss" };
}
