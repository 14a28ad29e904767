import type { ReactNode } from "react";

import type { RunRow } from "../../api/client";
import { decimal, duration, energy, integer, moment } from "../numbers";
import { href } from "../router";
import { RunStatus } from "./RunStatus";

export interface RunColumn {
  key: string;
  title: string;
  cell: (run: RunRow) => ReactNode;
  /** What it is sorted by; without a value it goes last. */
  value: (run: RunRow) => string | number | null | undefined;
  number?: boolean;
}

export const COLUMNS: RunColumn[] = [
  {
    key: "name",
    title: "Run",
    cell: (run) => <a href={href(["runs", run.id])}>{run.name}</a>,
    value: (run) => run.name.toLowerCase(),
  },
  { key: "status", title: "Status", cell: (run) => <RunStatus run={run} />, value: (run) => run.status },
  {
    key: "base",
    title: "Base model",
    cell: (run) => lastPart(run.base_model),
    value: (run) => lastPart(run.base_model),
  },
  {
    key: "method",
    title: "Method",
    cell: (run) => [run.method, run.adapter].filter(Boolean).join(", "),
    value: (run) => run.method,
  },
  {
    key: "steps",
    title: "Steps",
    number: true,
    cell: (run) => `${integer(run.steps_done)}${run.steps ? ` / ${integer(run.steps)}` : ""}`,
    value: (run) => run.steps_done,
  },
  {
    key: "before",
    title: "Loss before",
    number: true,
    cell: (run) => orDash(run.loss_before, decimal),
    value: (run) => run.loss_before,
  },
  {
    key: "after",
    title: "after",
    number: true,
    cell: (run) => orDash(run.loss_after, decimal),
    value: (run) => run.loss_after,
  },
  {
    key: "time",
    title: "Time",
    number: true,
    cell: (run) => orDash(run.seconds, duration),
    value: (run) => run.seconds,
  },
  { key: "energy", title: "Energy", number: true, cell: (run) => orDash(run.kwh, energy), value: (run) => run.kwh },
  {
    key: "started",
    title: "Started",
    number: true,
    cell: (run) => (run.started ? moment(Date.parse(run.started) / 1000) : "–"),
    value: (run) => run.started,
  },
];

function lastPart(path: string | null | undefined): string {
  return path?.replace(/\/+$/, "").split("/").pop() ?? "";
}

function orDash(value: number | null | undefined, text: (value: number) => string): string {
  return value == null ? "–" : text(value);
}
