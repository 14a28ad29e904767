import { useMemo } from "react";

import { setQuery, usePlace } from "../router";
import { axisOf } from "./axes";

/** What the address says of the charts. */
export interface ChartState {
  axis: ReturnType<typeof axisOf>;
  log: boolean;
  smoothing: number;
  low: number | null;
  high: number | null;
}

const USUAL_SMOOTHING = 0.6;

export function useChartState(): ChartState {
  const { query } = usePlace();
  return useMemo(() => {
    const smoothing = Number(query.get("smoothing") ?? USUAL_SMOOTHING);
    return {
      axis: axisOf(query.get("x")),
      log: query.get("log") === "1",
      smoothing: smoothing >= 0 && smoothing < 1 ? smoothing : USUAL_SMOOTHING,
      low: numberOf(query.get("low")),
      high: numberOf(query.get("high")),
    };
  }, [query]);
}

function numberOf(text: string | null): number | null {
  return text && Number.isFinite(Number(text)) ? Number(text) : null;
}

export const resetZoom = () => setQuery({ low: null, high: null });

/** Shows a range that was drawn, with no more digits than a pixel tells. */
export function zoom(low: number, high: number): void {
  const digits = Math.max(0, 3 - Math.floor(Math.log10(high - low || 1)));
  setQuery({ low: low.toFixed(Math.min(20, digits)), high: high.toFixed(Math.min(20, digits)) });
}
