import { useId } from "react";

import type { Schemas } from "../../api/client";
import { Button } from "../../parts/Button";
import { type Field, sectionsOf } from "./fields";
import { meant, type Values } from "../../parts/values";

export interface GridRow {
  key: string;
  /** The values, divided by commas. */
  text: string;
}

interface Props {
  schema: Schemas["RecipeSchema"];
  values: Values;
  rows: GridRow[];
  onChange: (rows: GridRow[]) => void;
}

const KINDS: Field["kind"][] = ["number", "choice", "flag", "text", "model"];

/** Several values for some fields: one run for each combination. */
export function Grid({ schema, values, rows, onChange }: Props) {
  const id = useId();
  const keys = sectionsOf(schema, values)
    .flatMap(({ fields }) => fields)
    .filter(({ kind, key }) => KINDS.includes(kind) && !["name", "output"].includes(key));
  const change = (at: number, part: Partial<GridRow>) =>
    onChange(rows.map((row, number) => (number === at ? { ...row, ...part } : row)));
  const runs = Object.values(gridOf(rows)).reduce((product, all) => product * all.length, 1);
  return (
    <fieldset className="grid-rows">
      <legend>Several values</legend>
      {rows.map((row, at) => (
        <div key={at} className="row">
          <select
            aria-label={`Field ${at + 1}`}
            value={row.key}
            onChange={(event) => change(at, { key: event.target.value })}
          >
            {keys.map(({ key }) => (
              <option key={key}>{key}</option>
            ))}
          </select>
          <input
            aria-label={`Values of field ${at + 1}`}
            aria-describedby={`${id}-hint`}
            placeholder="1e-4, 2e-4"
            value={row.text}
            onChange={(event) => change(at, { text: event.target.value })}
          />
          <Button
            small
            look="quiet"
            aria-label={`Remove field ${at + 1}`}
            onClick={() => onChange(rows.filter((_, number) => number !== at))}
          >
            ✕
          </Button>
        </div>
      ))}
      <div className="row">
        <Button small onClick={() => onChange([...rows, { key: "train.learning_rate", text: "" }])}>
          Try several values of a field
        </Button>
      </div>
      <p id={`${id}-hint`} className="note small">
        {runs > 1
          ? `${runs} runs, one for each combination. They can be compared afterwards.`
          : "One run for each combination, values divided by commas."}
      </p>
    </fieldset>
  );
}

/** The values by key. */
export function gridOf(rows: GridRow[]): Record<string, unknown[]> {
  const named = rows.map(
    ({ key, text }) =>
      [
        key,
        text
          .split(",")
          .map((word) => word.trim())
          .filter(Boolean)
          .map(meant),
      ] as const,
  );
  return Object.fromEntries(named.filter(([, values]) => values.length));
}
