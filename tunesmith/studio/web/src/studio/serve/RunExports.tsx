import { useState } from "react";

import { client, data, type RunRow, type Schemas } from "../../api/client";
import { queue, runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Field } from "../../parts/Field";
import { askJob } from "../home/jobs";
import { JobState } from "../home/JobState";
import { LogDialog } from "../home/LogDialog";
import { href, setQuery } from "../router";
import { newestFirst } from "../runs/list";
import { ExportCard } from "./ExportCard";
import { NewExport } from "./NewExport";

/** The exports of a run, those on the way, and a new one. */
export function RunExports({ runs, chosen }: { runs: RunRow[]; chosen: string | null }) {
  const ready = newestFirst(runs.filter(({ has_result }) => has_result));
  const run = ready.find(({ id }) => id === chosen) ?? (chosen ? undefined : ready[0]);
  const jobs = useValue(queue)?.jobs.filter(({ kind }) => kind === "export");
  const changed = useValue(runsChanged); // as an export that a terminal has written
  const states = jobs?.map(({ id, state }) => `${id} ${state}`).join();
  const {
    data: found,
    error,
    set,
  } = useFetched(run ? `${run.id} ${states} ${changed}` : null, (signal) =>
    data(client.GET("/api/runs/{name}/exports", { params: { path: { name: run!.id } }, signal })),
  );
  const [adds, setAdds] = useState(false);

  return (
    <section aria-label="Exports">
      <div className="section-head">
        <h2>Exports</h2>
        {run && <Button onClick={() => setAdds(true)}>Export</Button>}
      </div>
      {!ready.length && (
        <p className="note">
          There is no run with a result yet. Train one under <a href={href(["new"])}>New run</a>.
        </p>
      )}
      {ready.length > 0 && (
        <Field label="Run">
          {(attributes) => (
            <select {...attributes} value={run?.id ?? ""} onChange={(event) => setQuery({ run: event.target.value })}>
              {!run && <option value="">This run has no result</option>}
              {ready.map(({ id, name }) => (
                <option key={id} value={id}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      {error && (
        <p className="notice bad" role="alert">
          {error}
        </p>
      )}
      {run && found && (
        <ul className="servers">
          {found.jobs.map((job) => (
            <ExportJobLine key={job.job} job={job} view={jobs?.find(({ id }) => id === job.job)} />
          ))}
          {[...found.written]
            .sort((a, b) => b.written - a.written)
            .map((made) => (
              <ExportCard key={made.name} made={made} />
            ))}
          {!found.jobs.length && !found.written.length && (
            <li className="note">
              {run.name} has no exports. An export writes its result in the form that other programs read, and is
              compared with the trained model.
            </li>
          )}
        </ul>
      )}
      {adds && run && <NewExport run={run.id} onQueued={set} onClose={() => setAdds(false)} />}
    </section>
  );
}

interface JobProps {
  job: Schemas["ExportJob"];
  /** As the queue shows it, if it is there still. */
  view?: Schemas["JobView"];
}

function ExportJobLine({ job, view }: JobProps) {
  const state = view?.state ?? job.state;
  const [reads, setReads] = useState(false);
  const isOver = ["failed", "cancelled", "interrupted"].includes(state);
  return (
    <li className="server">
      <div className="server-head">
        <h3>{job.form}</h3>
        <JobState state={state} />
        <div className="row">
          {view && (
            <Button small onClick={() => setReads(true)}>
              Log
            </Button>
          )}
          {isOver && (
            <Button small onClick={() => void askJob(job.job, "retry")}>
              Try again
            </Button>
          )}
          {!isOver && (
            <Button small onClick={() => void askJob(job.job, "cancel", { now: true })}>
              {state === "waiting" || state === "held" ? "Cancel" : "End"}
            </Button>
          )}
        </div>
      </div>
      {(view?.detail || job.detail) && <p className={isOver ? "note bad" : "note"}>{view?.detail || job.detail}</p>}
      {view && reads && <LogDialog job={view} onClose={() => setReads(false)} />}
    </li>
  );
}
