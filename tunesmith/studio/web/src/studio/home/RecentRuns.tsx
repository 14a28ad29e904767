import { queue, runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Sparkline } from "../charts/Sparkline";
import { integer } from "../numbers";
import { href } from "../router";
import { Change } from "../runs/Change";
import { getRuns, newestFirst } from "../runs/list";
import { RunStatus } from "../runs/RunStatus";
import { AT_WORK } from "./JobState";

const SHOWN = 6;

export function RecentRuns() {
  const changed = useValue(runsChanged);
  const queued = useValue(queue)?.jobs.filter(({ state }) => AT_WORK.includes(state));
  const { data: runs, error } = useFetched(`runs ${changed}`, getRuns);
  if (error && !runs) return <p className="note bad">{error}</p>;
  if (!runs) return null;
  return (
    <section className="panel" aria-labelledby="recent">
      <header className="panel-title">
        <h2 id="recent">Recent runs</h2>
        {runs.length > SHOWN && <a href={href(["runs"])}>All {integer(runs.length)}</a>}
      </header>
      {runs.length === 0 && <p className="note">No runs yet.</p>}
      <ul className="recent">
        {newestFirst(runs)
          .slice(0, SHOWN)
          .map((run) => (
            <li key={run.id}>
              <a href={href(["runs", run.id])}>{run.name}</a>
              <RunStatus run={run} />
              {run.held && !queued?.some((job) => job.run === run.id) && <Sparkline run={run.id} name={run.name} />}
              <Change run={run} />
            </li>
          ))}
      </ul>
    </section>
  );
}
