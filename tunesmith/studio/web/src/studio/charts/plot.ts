// A chart of uPlot, made once and then only given data.

import uPlot from "uplot";

import { type Colour, colour, pale } from "./palette";
import { type Column, columnsOf, joined } from "./table";
import type { ChartOptions, Line, Mark, Range } from "./types";

const HEIGHT = 200;
const RAW_ALPHA = 0.28;
const BAND_ALPHA = 0.14;
const FONT = "11.5px system-ui, sans-serif";

export interface Plot {
  show: (lines: Line[], marks: Mark[], range: Range) => void;
  resize: (width: number) => void;
  end: () => void;
}

interface Asked extends ChartOptions {
  box: HTMLElement;
  width: number;
  height?: number;
  lines: Line[];
  /** Calls back with the range that the user drew. */
  onZoom: (low: number, high: number) => void;
  onReset: () => void;
  /** Calls back with the place in the data under the cursor; null if it left. */
  onCursor: (x: number | null, data: uPlot.AlignedData, at: number) => void;
}

export function makePlot(asked: Asked): Plot {
  const columns = columnsOf(asked.lines);
  let marks: Mark[] = [];
  let range: Range = { low: null, high: null };
  let brokenColumns = brokenOf(columns, asked.lines);
  const chart = new uPlot(
    {
      width: asked.width,
      height: asked.height ?? HEIGHT,
      legend: { show: false },
      padding: [8, 18, 0, 0],
      cursor: {
        drag: { x: true, y: false, setScale: false },
        sync: { key: asked.syncKey, setSeries: false },
        points: { show: false },
        bind: { dblclick: () => () => (asked.onReset(), null) },
      },
      scales: {
        x: { time: false, range: (_, first, last) => shownOf(range, first, last) },
        y: asked.log ? { distr: 3, range: powers } : { range: withRoom },
      },
      axes: [axis(asked.xText, 70, undefined), axis(asked.yText, 34, 62)],
      series: [{}, ...columns.map((column) => seriesOf(column, asked.lines[column.line]!, columns))],
      bands: bandsOf(columns, asked.lines),
      hooks: {
        setSelect: [
          (plot) => {
            const { left, width } = plot.select;
            if (width < 4) return;
            asked.onZoom(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          },
        ],
        setCursor: [
          (plot) => {
            const at = plot.cursor.idx;
            asked.onCursor(at == null ? null : (plot.data[0][at] ?? null), plot.data, at ?? 0);
          },
        ],
        draw: [(plot) => (drawMarks(plot, marks), drawBroken(plot, brokenColumns))],
      },
    },
    dataOf(asked.lines, asked.log),
    asked.box,
  );
  return {
    show(lines, nextMarks, nextRange) {
      marks = nextMarks;
      range = nextRange;
      brokenColumns = brokenOf(columns, lines);
      chart.setData(dataOf(lines, asked.log));
    },
    resize: (width) => chart.setSize({ width, height: asked.height ?? HEIGHT }),
    end: () => chart.destroy(),
  };
}

function dataOf(lines: Line[], log: boolean): uPlot.AlignedData {
  const { data } = joined(lines);
  if (!log) return data;
  const [x, ...rest] = data;
  return [x, ...rest.map((column) => Array.from(column, (value) => (value != null && value <= 0 ? null : value)))];
}

/** Curves with few points, such as that of held-out loss, come whole from the server: what is shown is set here. */
function shownOf({ low, high }: Range, first: number | null, last: number | null): uPlot.Range.MinMax {
  const [from, to] = [low ?? first ?? 0, high ?? last ?? 1];
  return from < to && !isOne(from, to) ? [from, to] : [from - 1, from + 1];
}

/** Room above and below, also for a line that is constant. */
function withRoom(_: uPlot, low: number | null, high: number | null): uPlot.Range.MinMax {
  if (low === null || high === null) return [0, 1];
  if (isOne(low, high)) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const room = 0.06 * (high - low);
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** Whole powers of ten around the values. */
function powers(_: uPlot, low: number | null, high: number | null): uPlot.Range.MinMax {
  if (low === null || high === null || low <= 0) return [0.1, 1];
  return isOne(low, high) ? [low / 2, high * 2] : uPlot.rangeLog(low, high, 10, false);
}

/** Whether two numbers are the same but for rounding. uPlot finds no ticks between such. */
function isOne(low: number, high: number): boolean {
  return high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high));
}

function axis(text: (value: number) => string, space: number, size: number | undefined): uPlot.Axis {
  return {
    stroke: () => colour("dim"),
    grid: { stroke: () => colour("rule"), width: 1 },
    ticks: { show: false },
    font: FONT,
    space,
    size: size ?? 30,
    values: (_, splits) => splits.map((value) => (value === null ? "" : text(value))),
  };
}

function seriesOf({ role }: Column, line: Line, columns: Column[]): uPlot.Series {
  const rgb = () => colour(line.colour);
  if (role === "low" || role === "high") return { stroke: () => "transparent", points: { show: false } };
  const isRaw = role === "y" && columns.length > 1 && !!line.smooth?.length;
  return {
    stroke: () => (isRaw ? pale(rgb(), RAW_ALPHA) : rgb()),
    width: isRaw ? 1 : 1.5,
    points: { show: true, size: 5, stroke: rgb, fill: rgb, filter: line.dots ? undefined : alone },
  };
}

/** The places of values without a neighbour, to which no line can be drawn: they are dots. */
function alone(plot: uPlot, series: number): number[] {
  const column = plot.data[series]!;
  const found: number[] = [];
  let before: number | null = null; // the value before, which may be a gap
  let candidate = -1;
  for (let at = 0; at < column.length; at++) {
    const value = column[at];
    if (value === undefined) continue;
    if (value === null) {
      if (candidate >= 0) found.push(candidate);
      candidate = -1;
    } else candidate = before === null ? at : -1;
    before = value;
  }
  if (candidate >= 0) found.push(candidate);
  return found;
}

function bandsOf(columns: Column[], lines: Line[]): uPlot.Band[] {
  return columns.flatMap((column, at) => {
    if (column.role !== "high") return [];
    const fill = () => pale(colour(lines[column.line]!.colour as Colour), BAND_ALPHA);
    return [{ series: [at + 1, at + 2] as [number, number], fill }];
  });
}

/** The x of values that are not numbers. */
function brokenOf(columns: Column[], lines: Line[]): number[] {
  return columns.flatMap(({ line, role }) => {
    const { x, y } = lines[line] ?? { x: [], y: [] };
    return role === "y" ? x.filter((_, at) => y[at] === null) : [];
  });
}

/** A cross at the bottom for each value that is not a number, as far as they can be told apart. */
function drawBroken(plot: uPlot, places: number[]): void {
  const { ctx, bbox } = plot;
  const half = 3 * devicePixelRatio;
  const y = bbox.top + bbox.height - 2 * half;
  ctx.save();
  ctx.strokeStyle = colour("bad");
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.beginPath();
  let last = -Infinity;
  for (const place of places) {
    const x = plot.valToPos(place, "x", true);
    if (Math.abs(x - last) < 3 * half) continue;
    last = x;
    ctx.moveTo(x - half, y - half);
    ctx.lineTo(x + half, y + half);
    ctx.moveTo(x - half, y + half);
    ctx.lineTo(x + half, y - half);
  }
  ctx.stroke();
  ctx.restore();
}

/** A dashed line with a word at places such as a resume. */
function drawMarks(plot: uPlot, marks: Mark[]): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("dim");
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const { x, label } of marks) {
    const at = plot.valToPos(x, "x", true);
    if (at < bbox.left || at > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(at, bbox.top);
    ctx.lineTo(at, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(label, at + 4 * devicePixelRatio, bbox.top + 11 * devicePixelRatio);
  }
  ctx.restore();
}
