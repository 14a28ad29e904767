import type { Compared } from "../../api/client";
import { Table } from "../../parts/Table";

/** The keys of the recipes that are not the same in all runs. */
export function Differences({ compared }: { compared: Compared }) {
  const { runs, differences } = compared;
  return (
    <section>
      <h2>Differences of the recipes</h2>
      {differences.length === 0 ? (
        <p className="note">The recipes are the same.</p>
      ) : (
        <Table
          label="Differences of the recipes"
          rows={differences}
          rowKey={({ key }) => key}
          columns={[
            { title: "Key", cell: ({ key }) => <code>{key}</code> },
            ...runs.map((run, at) => ({
              title: run.name,
              cell: ({ values }: (typeof differences)[number]) => valueText(values[at]),
            })),
          ]}
        />
      )}
    </section>
  );
}

function valueText(value: unknown): string {
  return value === null || value === undefined
    ? "–"
    : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);
}
