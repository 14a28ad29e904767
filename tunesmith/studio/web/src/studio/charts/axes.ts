// The horizontal axes that a run's curves can have.

import type { Axis } from "../../api/client";
import { decimal, duration, energy, integer } from "../numbers";

export const AXES: { value: Axis; label: string; text: (value: number) => string }[] = [
  { value: "step", label: "steps", text: (value) => (Number.isInteger(value) ? integer(value) : "") },
  { value: "tokens", label: "tokens", text: short },
  { value: "time", label: "time", text: duration },
  { value: "energy", label: "energy", text: (joules) => (joules ? energy(joules / 3.6e6) : "0") },
];

export function axisOf(text: string | null): (typeof AXES)[number] {
  return AXES.find(({ value }) => value === text) ?? AXES[0]!;
}

/** A large number with few digits. */
export function short(value: number): string {
  for (const [unit, size] of [
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ] as const) {
    if (Math.abs(value) >= size) return `${decimal(value / size, 3)} ${unit}`;
  }
  return decimal(value, 3);
}
