import type { ReactNode } from "react";

import type { ModelRow } from "../../api/client";
import { Badge } from "../../parts/Badge";
import { bytes, integer } from "../numbers";
import { href } from "../router";

export const KINDS: Record<ModelRow["kind"], string> = {
  hub: "base, hub cache",
  folder: "model folder",
  adapter: "adapter",
  gguf: "GGUF file",
  unpacked: "unpacked GGUF",
  result: "result",
  export: "export",
};

interface ModelColumn {
  key: string;
  title: string;
  cell: (row: ModelRow) => ReactNode;
  /** What it is sorted by; null goes last. */
  value: (row: ModelRow) => string | number | null;
  number?: boolean;
}

export const COLUMNS: ModelColumn[] = [
  {
    key: "name",
    title: "Model",
    cell: (row) => (
      <>
        <span className="model-name" title={row.path}>
          {row.kind === "result" && row.run ? <a href={href(["runs", row.run])}>{row.name}</a> : row.name}
        </span>
        {!row.is_complete && <Badge tone="warning">no weights</Badge>}
        {row.base && row.kind !== "export" && <span className="note model-base">from {lastPart(row.base)}</span>}
      </>
    ),
    value: ({ name }) => name.toLowerCase(),
  },
  { key: "kind", title: "Kind", cell: ({ kind }) => KINDS[kind], value: ({ kind }) => KINDS[kind] },
  { key: "size", title: "Size", number: true, cell: (row) => bytes(row.bytes), value: (row) => row.bytes },
  {
    key: "architecture",
    title: "Architecture",
    cell: ({ architecture, quantized }) =>
      [architecture?.replace(/For(CausalLM|ConditionalGeneration)$/, ""), quantized].filter(Boolean).join(", ") || "–",
    value: ({ architecture }) => architecture,
  },
  {
    key: "context",
    title: "Context",
    number: true,
    cell: ({ context }) => (context === null ? "–" : integer(context)),
    value: ({ context }) => context,
  },
  { key: "licence", title: "Licence", cell: ({ licence }) => licence ?? "–", value: ({ licence }) => licence },
  { key: "used", title: "Used by", cell: (row) => <UsedBy row={row} />, value: (row) => row.used_by.length || null },
];

function UsedBy({ row: { used_by } }: { row: ModelRow }) {
  const [first, ...others] = used_by;
  if (!first) return "–";
  return (
    <span title={used_by.map(({ name }) => name).join(", ")}>
      {first.run ? <a href={href(["runs", first.run])}>{first.name}</a> : first.name}
      {others.length > 0 && <span className="note"> and {others.length} more</span>}
    </span>
  );
}

export function lastPart(path: string): string {
  return path.replace(/\/+$/, "").split("/").pop() ?? path;
}
