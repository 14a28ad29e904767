// Which curves of a run go into which chart.

import type { Curve } from "../../api/client";
import { bytes, decimal, percent } from "../numbers";
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
  { title: "Time spent waiting for data", names: ["waiting_share"], yText: percent, canBeLog: false },
];

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
    const { x, y, smooth, low, high } = curve;
    const isHeldOut = name === "held_out_loss";
    return [{ label: labelOf(name), x, y, smooth, low, high, colour: at ? "series-2" : "series-1", dots: isHeldOut } as Line];
  });
}
