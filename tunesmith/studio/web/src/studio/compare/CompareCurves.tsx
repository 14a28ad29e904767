import { useMemo, useRef } from "react";

import type { Curves, RunRow } from "../../api/client";
import { Chart } from "../charts/Chart";
import { ChartControls } from "../charts/ChartControls";
import { SERIES } from "../charts/palette";
import { lineOf, type Panel, panelsOf } from "../charts/panels";
import type { Line } from "../charts/types";
import { type ChartState, resetZoom, useChartState, zoom } from "../charts/useChartState";
import { useCurves } from "../charts/useCurves";
import { useWidth } from "../charts/useWidth";

/** The curves of several runs over one another. Those of runs at work grow. */
export function CompareCurves({ runs }: { runs: RunRow[] }) {
  const box = useRef<HTMLElement>(null);
  const width = useWidth(box);
  return (
    <section ref={box}>
      <h2>Curves</h2>
      {width > 0 && <CurvesOf runs={runs} pixels={width} />}
    </section>
  );
}

function CurvesOf({ runs, pixels }: { runs: RunRow[]; pixels: number }) {
  const state = useChartState();
  const { axis, low, high, smoothing } = state;
  const ids = runs.map(({ id }) => id);
  const { curves: all, error } = useCurves(ids, { x: axis.value, pixels, low, high, smoothing });

  if (error && !all)
    return (
      <p className="notice bad" role="alert">
        {error}
      </p>
    );
  if (!all) return <p className="note">Reading the curves…</p>;
  const names = [...new Set(all.flatMap(({ curves }) => curves.map(({ name }) => name)))];
  return (
    <>
      <ChartControls state={state} />
      <div className="charts">
        {separated(panelsOf(names)).map((panel, at) => (
          <RunsChart key={panel.title} panel={panel} runs={runs} all={all} state={state} isFirst={!at} />
        ))}
      </div>
    </>
  );
}

interface ChartProps {
  panel: Panel;
  runs: RunRow[];
  all: Curves[];
  state: ChartState;
  isFirst: boolean;
}

function RunsChart({ panel, runs, all, state, isFirst }: ChartProps) {
  const name = panel.names[0]!;
  const lines = useMemo(() => linesOf(name, runs, all), [name, runs, all]);
  return (
    <Chart
      title={panel.title}
      lines={lines}
      range={state}
      log={state.log && panel.canBeLog}
      xText={state.axis.text}
      yText={panel.yText}
      syncKey="compare"
      height={isFirst ? 280 : 180}
      onZoom={zoom}
      onReset={resetZoom}
    />
  );
}

/** One curve a chart, as each has a line for every run. */
function separated(panels: Panel[]): Panel[] {
  return panels.flatMap((panel) =>
    panel.names.map((name) => ({
      ...panel,
      names: [name],
      title: name === "held_out_loss" ? "Held-out loss, with its 95 % interval" : panel.title,
    })),
  );
}

function linesOf(name: string, runs: RunRow[], all: Curves[]): Line[] {
  return runs.flatMap((run, at) => {
    const curve = all[at]!.curves.find((one) => one.name === name);
    if (!curve?.x.length) return [];
    return [lineOf(curve, run.name, SERIES[at % SERIES.length]!)];
  });
}
