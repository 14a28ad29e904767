import { useState } from "react";

import type { Curve, Curves } from "../../api/client";
import { Table } from "../../parts/Table";
import { AXES } from "../charts/axes";
import { labelOf } from "../charts/panels";
import { decimal } from "../numbers";

const MOST_ROWS = 100;

/** The values of the curves in range, for those who do not see the charts: at most a hundred places, evenly. */
export function CurvesTable({ curves }: { curves: Curves }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="as-table" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>The values as tables</summary>
      {open && <Tables curves={curves} />}
    </details>
  );
}

function Tables({ curves }: { curves: Curves }) {
  const axis = AXES.find(({ value }) => value === curves.x)!;
  const heldOut = curves.curves.find(({ name }) => name === "held_out_loss");
  const others = curves.curves.filter((curve) => curve !== heldOut && curve.x.length);
  const main = others.find(({ name }) => name === "loss") ?? others[0];
  return (
    <>
      {main && (
        <Table
          label="Training steps"
          rows={evenly(main.x)}
          rowKey={(x) => x}
          columns={[
            { title: axis.label, cell: axis.text, number: true },
            ...others.map((curve) => ({
              title: labelOf(curve.name),
              cell: (x: number) => decimal(valueAt(curve, x)),
              number: true,
            })),
          ]}
        />
      )}
      {heldOut && (
        <Table
          label="Held-out loss"
          rows={heldOut.x.map((_, at) => at)}
          rowKey={(at) => at}
          columns={[
            { title: axis.label, cell: (at) => axis.text(heldOut.x[at]!), number: true },
            { title: "held-out loss", cell: (at) => decimal(heldOut.y[at]), number: true },
            {
              title: "95 % interval",
              cell: (at) => `${decimal(heldOut.low[at])} – ${decimal(heldOut.high[at])}`,
              number: true,
            },
          ]}
        />
      )}
    </>
  );
}

function evenly(x: number[]): number[] {
  if (x.length <= MOST_ROWS) return x;
  return Array.from({ length: MOST_ROWS }, (_, at) => x[Math.round((at * (x.length - 1)) / (MOST_ROWS - 1))]!);
}

/** The last value up to a place, as curves are thinned at different places. */
function valueAt({ x, y }: Curve, place: number): number | null | undefined {
  let [low, high] = [0, x.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle]! <= place) low = middle + 1;
    else high = middle;
  }
  return y[Math.max(0, low - 1)];
}
