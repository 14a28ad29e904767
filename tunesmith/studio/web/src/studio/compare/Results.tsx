import type { Compared, RunRow } from "../../api/client";
import { Table } from "../../parts/Table";
import { decimal, duration, energy, percent } from "../numbers";
import { href } from "../router";
import { RunStatus } from "../runs/RunStatus";

interface Interval {
  mean: number | null;
  low?: number | null;
  high?: number | null;
}

type Measures = Record<string, Interval>;

interface Line {
  run: RunRow;
  before?: Measures;
  after?: Measures;
  difference?: Measures;
}

/** What came out of each run, with intervals where they were measured. */
export function Results({ compared }: { compared: Compared }) {
  const rows: Line[] = compared.runs.map((run, at) => ({ run, ...compared.evaluations[at] }));
  const hasExact = rows.some(({ after }) => after?.exact_match);
  return (
    <section>
      <h2>Before and after training</h2>
      <Table
        label="Before and after training"
        rows={rows}
        rowKey={({ run }) => run.id}
        columns={[
          { title: "Run", cell: ({ run }) => <a href={href(["runs", run.id])}>{run.name}</a> },
          { title: "Status", cell: ({ run }) => <RunStatus run={run} /> },
          { title: "Held-out loss before", number: true, cell: (row) => <Figure value={row.before?.loss} /> },
          { title: "after", number: true, cell: (row) => <Figure value={row.after?.loss} /> },
          { title: "Change", number: true, cell: (row) => <Figure value={row.difference?.loss} signed /> },
          ...(hasExact
            ? [
                {
                  title: "Exact match before",
                  number: true,
                  cell: (row: Line) => <Figure value={row.before?.exact_match} share />,
                },
                { title: "after", number: true, cell: (row: Line) => <Figure value={row.after?.exact_match} share /> },
              ]
            : []),
          { title: "Time", number: true, cell: ({ run }) => (run.seconds == null ? "–" : duration(run.seconds)) },
          { title: "Energy", number: true, cell: ({ run }) => (run.kwh == null ? "–" : energy(run.kwh)) },
        ]}
      />
      <p className="note small">Below each figure: its 95 % interval over the held-out rows.</p>
    </section>
  );
}

function Figure({ value, share = false, signed = false }: { value?: Interval; share?: boolean; signed?: boolean }) {
  if (!value) return <>–</>;
  const text = (one: number | null | undefined) => {
    if (one == null) return "not a number";
    return `${signed && one > 0 ? "+" : ""}${share ? percent(one) : decimal(one)}`;
  };
  return (
    <>
      {text(value.mean)}
      {value.low != null && (
        <span className="interval">
          {text(value.low)} – {text(value.high)}
        </span>
      )}
    </>
  );
}
