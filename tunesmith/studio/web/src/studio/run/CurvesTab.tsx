import { useMemo, useRef } from "react";

import type { Curve, Curves } from "../../api/client";
import { Chart } from "../charts/Chart";
import { ChartControls } from "../charts/ChartControls";
import { linesOf, type Panel, panelsOf } from "../charts/panels";
import type { Mark } from "../charts/types";
import { type ChartState, resetZoom, useChartState, zoom } from "../charts/useChartState";
import { useCurves } from "../charts/useCurves";
import { useWidth } from "../charts/useWidth";
import { CurvesTable } from "./CurvesTable";

export function CurvesTab({ id }: { id: string }) {
  const box = useRef<HTMLDivElement>(null);
  const width = useWidth(box);
  return <div ref={box}>{width > 0 && <CurvesOf id={id} pixels={width} />}</div>;
}

function CurvesOf({ id, pixels }: { id: string; pixels: number }) {
  const state = useChartState();
  const { axis, smoothing, low, high } = state;
  const { curves: found, error } = useCurves([id], { x: axis.value, pixels, low, high, smoothing });
  const curves = found?.[0];

  const marks = useMemo(() => curves?.resumed.map((x) => ({ x, label: "resumed" })) ?? [], [curves?.resumed]);
  if (error && !curves)
    return (
      <p className="notice bad" role="alert">
        {error}
      </p>
    );
  if (!curves) return <p className="note">Reading the curves…</p>;
  if (!curves.curves.length) return <p className="note">No steps yet. The curves begin with the first step.</p>;
  const panels = panelsOf(curves.curves.map(({ name }) => name));
  return (
    <>
      <ChartControls state={state} />
      {hasGaps(curves) && <p className="note gaps">✕ marks steps at which a value was not a number.</p>}
      <div className="charts">
        {panels.map((panel, at) => (
          <PanelChart
            key={panel.title}
            panel={panel}
            curves={curves.curves}
            marks={marks}
            state={state}
            isFirst={!at}
          />
        ))}
      </div>
      <CurvesTable curves={curves} />
    </>
  );
}

interface PanelProps {
  panel: Panel;
  curves: Curve[];
  marks: Mark[];
  state: ChartState;
  isFirst: boolean;
}

function PanelChart({ panel, curves, marks, state, isFirst }: PanelProps) {
  const own = panel.names.map((name) => curves.find((curve) => curve.name === name));
  // The lines are new only if a curve of this chart is.
  const lines = useMemo(
    () => linesOf(panel, curves),
    [panel.title, ...own.slice(0, 1), own.length > 1 ? own[1] : null],
  );
  return (
    <Chart
      title={panel.title}
      lines={lines}
      marks={marks}
      range={state}
      log={state.log && panel.canBeLog}
      xText={state.axis.text}
      yText={panel.yText}
      syncKey="run"
      height={isFirst ? 300 : 180}
      onZoom={zoom}
      onReset={resetZoom}
    />
  );
}

function hasGaps({ curves }: Curves): boolean {
  return curves.some(({ y }) => y.includes(null));
}
