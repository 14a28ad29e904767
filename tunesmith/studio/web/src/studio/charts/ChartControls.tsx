import { useEffect, useState } from "react";

import { Button } from "../../parts/Button";
import { Check } from "../../parts/Field";
import { setQuery } from "../router";
import { AXES } from "./axes";
import type { ChartState } from "./useChartState";

const SETTLE_MS = 150;

/** The settings that all charts of a view share. */
export function ChartControls({ state, canZoom = true }: { state: ChartState; canZoom?: boolean }) {
  const { axis, log, smoothing, low, high } = state;
  const isZoomed = low !== null || high !== null;
  return (
    <div className="chart-controls" role="group" aria-label="Curves">
      <label>
        by
        <select value={axis.value} onChange={(event) => setQuery({ x: event.target.value, low: null, high: null })}>
          {AXES.map(({ value, label }) => (
            <option key={value} value={value}>
              {label}
            </option>
          ))}
        </select>
      </label>
      <Smoothing value={smoothing} />
      <Check label="Log scale" checked={log} onChange={(event) => setQuery({ log: event.target.checked ? 1 : null })} />
      {canZoom && (
        <>
          <Bound name="low" label="From" value={low} />
          <Bound name="high" label="to" value={high} />
          <Button small disabled={!isZoomed} onClick={() => setQuery({ low: null, high: null })}>
            Show all
          </Button>
        </>
      )}
    </div>
  );
}

function Smoothing({ value }: { value: number }) {
  const [now, setNow] = useState(value);
  useEffect(() => setNow(value), [value]);
  useEffect(() => {
    if (now === value) return;
    const timer = setTimeout(() => setQuery({ smoothing: now || "0" }), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [now, value]);
  return (
    <label>
      smoothed
      <input
        type="range"
        min={0}
        max={0.99}
        step={0.01}
        value={now}
        onChange={(event) => setNow(event.target.valueAsNumber)}
      />
      <output>{now ? now.toFixed(2) : "off"}</output>
    </label>
  );
}

/** One end of the range that is shown. It can also be drawn in a chart. */
function Bound({ name, label, value }: { name: "low" | "high"; label: string; value: number | null }) {
  const [text, setText] = useState("");
  useEffect(() => setText(value === null ? "" : String(value)), [value]);
  return (
    <label>
      {label}
      <input
        type="number"
        step="any"
        placeholder={name === "low" ? "start" : "end"}
        value={text}
        onChange={(event) => setText(event.target.value)}
        onBlur={() => setQuery({ [name]: text })}
        onKeyDown={(event) => event.key === "Enter" && setQuery({ [name]: text })}
      />
    </label>
  );
}
