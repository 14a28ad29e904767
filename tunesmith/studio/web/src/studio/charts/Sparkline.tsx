import type { Curve } from "../../api/client";
import { decimal, integer } from "../numbers";
import type { CurvesAsked } from "./followCurves";
import { useCurves } from "./useCurves";

const WIDTH = 120;
const HEIGHT = 28;
const MARGIN = 2;
const ASKED: CurvesAsked = { x: "step", pixels: 60, low: null, high: null, smoothing: 0 };

/** The loss of a run at work as a small line that grows. A loss that is not a number is a gap. */
export function Sparkline({ run, name }: { run: string; name: string }) {
  const { curves } = useCurves([run], ASKED);
  const loss = curves?.[0]?.curves.find((curve) => curve.name === "loss");
  if (!loss || loss.x.length < 2) return null;
  return (
    <svg
      className="sparkline"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={textOf(name, loss)}
    >
      <path d={pathOf(loss)} />
    </svg>
  );
}

function pathOf({ x, y }: Curve): string {
  const values = y.filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [x[0]!, x.at(-1)!];
  let isGap = true;
  return y
    .map((value, at) => {
      const place = MARGIN + ((WIDTH - 2 * MARGIN) * (x[at]! - first)) / (last - first || 1);
      // A line of no length is drawn as a dot, for a number between two gaps.
      const move = isGap ? "M" : "L";
      isGap = value === null;
      if (value === null) return "";
      const height = MARGIN + ((HEIGHT - 2 * MARGIN) * (high - value)) / (high - low || 1);
      return `${move}${place.toFixed(1)} ${height.toFixed(1)}${move === "M" ? "h0" : ""}`;
    })
    .join("");
}

function textOf(name: string, { x, y }: Curve): string {
  const at = (place: number) => `${decimal(y.at(place))} at step ${integer(x.at(place)!)}`;
  const gaps = y.includes(null) ? "; not a number at some steps" : "";
  return `Loss of ${name}: ${at(0)}, ${at(-1)}${gaps}`;
}
