import uPlot from "uplot";

import type { Line } from "./types";

/** The lines' columns over one x, as uPlot wants them. A column is named by its line and its role. */
export interface Joined {
  data: uPlot.AlignedData;
  columns: Column[];
}

export interface Column {
  line: number;
  role: "y" | "smooth" | "low" | "high";
}

/** Which columns a chart of these lines has. Only if that changes, the chart is made anew. */
export function columnsOf(lines: Line[]): Column[] {
  return lines.flatMap((line, at) => {
    const roles: Column["role"][] = ["y"];
    if (line.smooth?.length) roles.push("smooth");
    if (line.low?.length) roles.push("high", "low");
    return roles.map((role) => ({ line: at, role }));
  });
}

/** Puts lines with different x side by side. Where a line has no point, it has undefined, which is no gap. */
export function joined(lines: Line[]): Joined {
  const columns = columnsOf(lines);
  const tables = lines.map((line, at) => {
    const own = columns.filter((column) => column.line === at).map(({ role }) => line[role] ?? []);
    return [line.x, ...own] as uPlot.AlignedData;
  });
  if (!tables.length) return { data: [[]], columns };
  const retained = tables.map((table) => table.map(() => 1 as const));
  return { data: tables.length === 1 ? tables[0]! : uPlot.join(tables, retained), columns };
}

/** The value of a column that is nearest to a place, if it has one close by. */
export function nearest(column: ArrayLike<number | null | undefined>, at: number): number | null | undefined {
  for (let away = 0; away < column.length; away++) {
    const before = column[at - away];
    if (before !== undefined) return before;
    const after = column[at + away];
    if (after !== undefined) return after;
  }
  return undefined;
}
