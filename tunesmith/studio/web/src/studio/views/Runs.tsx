import { useDeferredValue, useMemo } from "react";

import type { RunRow } from "../../api/client";
import { runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Empty } from "../../parts/Empty";
import { integer } from "../numbers";
import { go, href, setQuery, usePlace } from "../router";
import { getRuns } from "../runs/list";
import { COLUMNS } from "../runs/columns";
import { RunsTable } from "../runs/RunsTable";
import { statusText } from "../runs/RunStatus";
import { View } from "../shell/View";
import { sortedBy, sortOf } from "../sorting";

const MOST_COMPARED = 12;

export function Runs() {
  const changed = useValue(runsChanged);
  const { query } = usePlace();
  const { data: runs, error, busy } = useFetched(`runs ${changed}`, getRuns);
  const search = query.get("q") ?? "";
  const status = query.get("status") ?? "";
  const sort = sortOf(query.get("sort") ?? "-started");
  const chosen = useMemo(() => new Set(query.get("chosen")?.split(",").filter(Boolean)), [query]);
  const found = useDeferredValue(
    useMemo(
      () => sortedBy(filtered(runs ?? [], search, status), COLUMNS, sort),
      [runs, search, status, sort.key, sort.down],
    ),
  );

  const choose = (id: string) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setQuery({ chosen: [...next].join(",") });
  };

  return (
    <View
      title="Runs"
      aside={
        <>
          <Button
            disabled={chosen.size < 2 || chosen.size > MOST_COMPARED}
            title={chosen.size < 2 ? "Choose two or more runs" : undefined}
            onClick={() => go(["compare"], { runs: [...chosen].join(",") })}
          >
            Compare{chosen.size > 0 && ` ${chosen.size}`}
          </Button>
          <a className="button main" href={href(["new"])}>
            New run
          </a>
        </>
      }
    >
      {error && (
        <p className="notice bad" role="alert">
          {error}
        </p>
      )}
      {runs?.length === 0 && (
        <Empty title="No runs yet">
          <p>
            A run appears here as soon as it is queued or started, also with <code>tunesmith train</code>.
          </p>
        </Empty>
      )}
      {!!runs?.length && (
        <>
          <div className="filters">
            <input
              type="search"
              aria-label="Search by name, base model or method"
              placeholder="Search"
              value={search}
              onChange={(event) => setQuery({ q: event.target.value })}
            />
            <select aria-label="Status" value={status} onChange={(event) => setQuery({ status: event.target.value })}>
              <option value="">All states</option>
              {[...new Set(runs.map(statusText))].sort().map((text) => (
                <option key={text}>{text}</option>
              ))}
            </select>
            <span className="note" role="status">
              {found.length === runs.length
                ? `${integer(runs.length)} runs`
                : `${found.length} of ${integer(runs.length)} runs`}
            </span>
          </div>
          <RunsTable runs={found} sort={sort} chosen={chosen} onChoose={choose} />
        </>
      )}
      {!runs && busy && <p className="note">Reading the runs…</p>}
    </View>
  );
}

function filtered(runs: RunRow[], search: string, status: string): RunRow[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return runs.filter((run) => {
    if (status && statusText(run) !== status) return false;
    const text = `${run.name} ${run.base_model ?? ""} ${run.method ?? ""} ${run.adapter ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}
