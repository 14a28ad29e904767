// Adds events to curves that the server made, in the way it makes them (tunesmith/studio/curves.py).

import type { Curve, Curves, RunEvents } from "../../api/client";

type Event = Record<string, unknown>;

export function undoesSteps(events: Event[]): boolean {
  return events.some(({ event }) => event === "resume" || event === "recovered");
}

export function appended(curves: Curves, { events, next }: RunEvents, smoothing: number): Curves {
  const found = new Map(curves.curves.map((curve) => [curve.name, copy(curve)]));
  let { step } = curves;
  let at = Math.max(0, ...curves.curves.map(({ x }) => x.at(-1) ?? 0));
  for (const event of events) {
    if (event.event === "step") {
      step = event.step as number;
      at = curves.x === "step" ? step : at + amount(event, curves.x);
      for (const [name, value] of valuesOf(event)) {
        if (value === null && name !== "loss" && !found.has(name)) continue;
        const curve = found.get(name) ?? empty(name);
        found.set(name, curve);
        add(curve, at, value, smoothing);
      }
    } else if (event.event === "eval") {
      const curve = found.get("held_out_loss") ?? empty("held_out_loss");
      found.set("held_out_loss", curve);
      curve.x.push(at);
      curve.y.push(numberOf(event.loss));
      curve.low.push(numberOf(event.low));
      curve.high.push(numberOf(event.high));
      curve.count++;
    }
  }
  return { ...curves, step, offset: next, curves: [...found.values()] };
}

function amount(event: Event, x: Curves["x"]): number {
  return numberOf(x === "tokens" ? event.tokens : x === "time" ? event.seconds : event.joules) ?? 0;
}

function valuesOf(event: Event): [string, number | null][] {
  const { loss, learning_rate, grad_norm, tokens_per_second, memory_bytes, seconds, joules, waiting_seconds } = event;
  const duration = numberOf(seconds);
  const share = (value: unknown) => (duration && numberOf(value) !== null ? numberOf(value)! / duration : null);
  const metrics = Object.entries((event.metrics as Record<string, unknown> | undefined) ?? {});
  return [
    ["loss", numberOf(loss)],
    ["learning_rate", numberOf(learning_rate)],
    ["grad_norm", numberOf(grad_norm)],
    ["tokens_per_second", numberOf(tokens_per_second)],
    ["memory_bytes", numberOf(memory_bytes)],
    ["watts", share(joules)],
    ["waiting_share", share(waiting_seconds)],
    ...metrics.map(([name, value]): [string, number | null] => [`metrics.${name}`, numberOf(value)]),
  ];
}

function add(curve: Curve, x: number, y: number | null, smoothing: number): void {
  if (smoothing) curve.smooth.push(smoothed(curve, y, smoothing));
  curve.x.push(x);
  curve.y.push(y);
  curve.count++;
}

/** The moving average without the bias of its start, continued by one value. */
function smoothed({ smooth, count }: Curve, y: number | null, weight: number): number | null {
  const before = smooth.at(-1) ?? null;
  if (y === null || before === null) return y ?? before;
  const past = before * (1 - weight ** count);
  return (weight * past + (1 - weight) * y) / (1 - weight ** (count + 1));
}

function numberOf(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

function empty(name: string): Curve {
  return { name, x: [], y: [], smooth: [], low: [], high: [], count: 0 };
}

function copy(curve: Curve): Curve {
  const { x, y, smooth, low, high } = curve;
  return { ...curve, x: [...x], y: [...y], smooth: [...smooth], low: [...low], high: [...high] };
}
