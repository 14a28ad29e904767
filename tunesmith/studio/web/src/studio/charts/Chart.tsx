import "uplot/dist/uPlot.min.css";

import { useEffect, useRef } from "react";
import type uPlot from "uplot";

import { useValue } from "../../api/value";
import { paletteVersion } from "./palette";
import { makePlot, type Plot } from "./plot";
import { columnsOf, nearest } from "./table";
import type { ChartOptions, Line, Mark, Range } from "./types";

interface Props extends ChartOptions {
  lines: Line[];
  marks?: Mark[];
  range: Range;
  height?: number;
  onZoom: (low: number, high: number) => void;
  onReset: () => void;
}

const NONE: Mark[] = [];

/** A chart with its heading, and the values under the cursor. React makes the box; what is in it, uPlot alone. */
export function Chart(props: Props) {
  const { title, lines, marks = NONE, range, log, height } = props;
  const box = useRef<HTMLDivElement>(null);
  const readout = useRef<HTMLParagraphElement>(null);
  const plot = useRef<Plot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const version = useValue(paletteVersion);
  const shape = JSON.stringify([columnsOf(lines), lines.map(({ label, colour }) => [label, colour]), height]);

  useEffect(() => {
    const own = box.current!;
    const made = makePlot({
      ...latest.current,
      xText: (value) => latest.current.xText(value),
      yText: (value) => latest.current.yText(value),
      onZoom: (low, high) => latest.current.onZoom(low, high),
      onReset: () => latest.current.onReset(),
      onCursor: (x, data, at) => {
        readout.current!.textContent = x === null ? lastText(latest.current) : textAt(latest.current, x, data, at);
      },
      box: own,
      width: own.clientWidth || 400,
    });
    plot.current = made;
    const sizes = new ResizeObserver(() => made.resize(own.clientWidth));
    sizes.observe(own);
    return () => {
      sizes.disconnect();
      made.end();
      plot.current = null;
    };
  }, [shape, log, version]);

  useEffect(() => {
    plot.current?.show(lines, marks, range);
    readout.current!.textContent = lastText(latest.current);
  }, [lines, marks, range.low, range.high, shape, log, version]);

  return (
    <figure className="chart">
      <figcaption>
        <h3>{title}</h3>
        <p className="readout" ref={readout} />
      </figcaption>
      <div
        ref={box}
        role="img"
        aria-label={`${title}: ${lines.map(({ label }) => label).join(", ")}. The table below has the values.`}
      />
    </figure>
  );
}

function lastText({ lines, yText }: Props): string {
  return lines
    .filter(({ y }) => y.length)
    .map(({ label, y }) => `${label} ${valueText(y.at(-1), yText)}`)
    .join(" · ");
}

function textAt({ lines, xText, yText }: Props, x: number, data: uPlot.AlignedData, at: number): string {
  const columns = columnsOf(lines);
  const values = columns.flatMap(({ line, role }, column) => {
    if (role === "low" || role === "high") return [];
    const value = nearest(data[column + 1]!, at);
    if (value === undefined) return [];
    return [`${lines[line]!.label}${role === "smooth" ? " smoothed" : ""} ${valueText(value, yText)}`];
  });
  return [xText(x), ...values].join(" · ");
}

function valueText(value: number | null | undefined, text: (value: number) => string): string {
  return value == null ? "not a number" : text(value);
}
