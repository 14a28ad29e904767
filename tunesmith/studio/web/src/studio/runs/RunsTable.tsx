import { memo } from "react";

import type { RunRow } from "../../api/client";
import { Scroller } from "../../parts/Scroller";
import { SortHead } from "../SortHead";
import type { Sort } from "../sorting";
import { COLUMNS } from "./columns";

interface Props {
  runs: RunRow[];
  sort: Sort;
  chosen: Set<string>;
  onChoose: (id: string) => void;
}

export function RunsTable({ runs, sort, chosen, onChoose }: Props) {
  return (
    <Scroller label="Runs">
      <table className="table runs">
        <thead>
          <tr>
            <th scope="col">
              <span className="unseen">Compare</span>
            </th>
            <SortHead columns={COLUMNS} sort={sort} />
          </tr>
        </thead>
        <tbody onChange={(event) => onChoose((event.target as unknown as HTMLInputElement).value)}>
          {runs.map((run) => (
            <RunLine key={run.id} run={run} isChosen={chosen.has(run.id)} />
          ))}
        </tbody>
      </table>
    </Scroller>
  );
}

/** Drawn again only if the run or its choice changed, as there may be many. */
const RunLine = memo(function RunLine({ run, isChosen }: { run: RunRow; isChosen: boolean }) {
  return (
    <tr className={isChosen ? "chosen" : undefined}>
      <td>
        <input type="checkbox" value={run.id} checked={isChosen} readOnly aria-label={`Compare ${run.name}`} />
      </td>
      {COLUMNS.map(({ key, cell, number }) => (
        <td key={key} className={number ? "number" : undefined}>
          {cell(run)}
        </td>
      ))}
    </tr>
  );
});
