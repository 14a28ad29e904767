import { useState } from "react";

import { queue } from "../../api/live";
import type { JobView } from "../../api/client";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Check } from "../../parts/Field";
import { askToNotify, canNotify } from "../notifications";
import { href } from "../router";
import { notifies } from "../settings";
import { say } from "../toasts";
import { JobRow } from "./JobRow";
import { askJob, askQueue, setAfterRestart } from "./jobs";
import { AT_WORK, WAITING } from "./JobState";

const ENDED_SHOWN = 5;

/** The queue: jobs at work, jobs that wait, and the last ones that ended. */
export function Queue() {
  const view = useValue(queue);
  const [dragged, setDragged] = useState<number | null>(null);
  const [all, setAll] = useState(false);
  if (!view) return null;
  const working = view.jobs.filter(({ state }) => AT_WORK.includes(state));
  const waiting = view.jobs.filter(({ state }) => WAITING.includes(state));
  const ended = view.jobs.filter(({ state }) => !AT_WORK.includes(state) && !WAITING.includes(state)).reverse();
  const drop = (before: JobView) => {
    if (dragged !== null && dragged !== before.id) void askJob(dragged, "move", { before: before.id });
    setDragged(null);
  };

  return (
    <section className="panel" aria-labelledby="queue">
      <header className="panel-title">
        <h2 id="queue">Queue</h2>
        <Button small onClick={() => askQueue(view.paused ? "resume" : "pause")}>
          {view.paused ? "Resume the queue" : "Pause the queue"}
        </Button>
      </header>
      {view.paused && <p className="notice warning">The queue is paused: {view.paused}.</p>}
      {view.jobs.length === 0 && (
        <p className="note">
          No jobs. <a href={href(["new"])}>A new run</a> is queued here, and so is what you add with{" "}
          <code>tunesmith queue add</code>.
        </p>
      )}
      <JobList label="Running" jobs={working} />
      <JobList label="Waiting, in starting order" jobs={waiting} moves={{ drag: setDragged, drop, dragged }} />
      <JobList label="Ended" jobs={all ? ended : ended.slice(0, ENDED_SHOWN)} />
      {ended.length > ENDED_SHOWN && (
        <Button look="quiet" small onClick={() => setAll(!all)}>
          {all ? "Show fewer" : `Show all ${ended.length} that ended`}
        </Button>
      )}
      <div className="settings">
        <Check
          label="Start jobs after a restart of the machine"
          checked={view.after_restart}
          onChange={(event) => setAfterRestart(event.target.checked)}
        />
        <NotifySwitch />
      </div>
    </section>
  );
}

interface Moves {
  dragged: number | null;
  drag: (id: number | null) => void;
  drop: (before: JobView) => void;
}

function JobList({ label, jobs, moves }: { label: string; jobs: JobView[]; moves?: Moves }) {
  if (!jobs.length) return null;
  return (
    <>
      <h3 className="list-title">{label}</h3>
      <ul className="jobs">
        {jobs.map((job, at) => (
          <li
            key={job.id}
            className={moves?.dragged === job.id ? "dragged" : ""}
            draggable={moves && jobs.length > 1}
            onDragStart={() => moves?.drag(job.id)}
            onDragEnd={() => moves?.drag(null)}
            onDragOver={(event) => moves && event.preventDefault()}
            onDrop={() => moves?.drop(job)}
          >
            <JobRow
              job={job}
              earlier={moves && jobs[at - 1] ? () => askJob(job.id, "move", { before: jobs[at - 1]!.id }) : undefined}
              later={
                moves && jobs[at + 1] ? () => askJob(job.id, "move", { before: jobs[at + 2]?.id ?? null }) : undefined
              }
            />
          </li>
        ))}
      </ul>
    </>
  );
}

function NotifySwitch() {
  const isOn = useValue(notifies) === "yes";
  if (!canNotify) return null;
  const change = async (on: boolean) => {
    if (!on) notifies.set("no");
    else if (!(await askToNotify())) say("The browser does not allow notifications of this page.", "bad");
  };
  return (
    <Check
      label="Show a browser notification when a job ends or fails"
      checked={isOn}
      onChange={(event) => void change(event.target.checked)}
    />
  );
}
