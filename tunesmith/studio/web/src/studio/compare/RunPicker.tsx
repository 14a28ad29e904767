import { type RunRow } from "../../api/client";
import { Button } from "../../parts/Button";
import { href, setQuery } from "../router";
import { newestFirst } from "../runs/list";
import { SERIES } from "../charts/palette";

const MOST = 12;

/** The runs that are compared, each in the colour of its curves. */
export function RunPicker({ ids, runs }: { ids: string[]; runs: RunRow[] }) {
  const choose = (next: string[]) => setQuery({ runs: next.join(",") });
  const others = newestFirst(runs).filter(({ id }) => !ids.includes(id));
  return (
    <div className="picker">
      <ul className="chosen-runs">
        {ids.map((id, at) => (
          <li key={id}>
            <i className={`part-${(at % SERIES.length) + 1}`} />
            <a href={href(["runs", id])}>{nameOf(id, runs)}</a>
            <Button
              look="quiet"
              small
              aria-label={`Leave out ${nameOf(id, runs)}`}
              onClick={() => choose(ids.filter((one) => one !== id))}
            >
              ✕
            </Button>
          </li>
        ))}
      </ul>
      {others.length > 0 && ids.length < MOST && (
        <select aria-label="Add a run" value="" onChange={(event) => choose([...ids, event.target.value])}>
          <option value="">Add a run…</option>
          {others.map(({ id, name }) => (
            <option key={id} value={id}>
              {name}
            </option>
          ))}
        </select>
      )}
    </div>
  );
}

function nameOf(id: string, runs: RunRow[]): string {
  return runs.find((run) => run.id === id)?.name ?? id;
}
