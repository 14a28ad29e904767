import { useState } from "react";

import { client, data, type RunView } from "../../api/client";
import { queue } from "../../api/live";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Confirm } from "../../parts/Confirm";
import { askJob } from "../home/jobs";
import { AT_WORK, WAITING } from "../home/JobState";
import { savesFirst, savesNothing } from "../home/stopping";
import { href } from "../router";
import { tried } from "../toasts";
import { DeleteRun } from "./DeleteRun";

type Verb = "pause" | "continue" | "stop" | "resume";
const RESUMABLE = [
  "cut off",
  "interrupted",
  "not_finite",
  "diverged",
  "out_of_memory",
  "error",
  "no_room",
  "not started",
];

/** What can be done with a run in its present state. */
export function RunActions({ view, onChange }: { view: RunView; onChange: (view: RunView) => void }) {
  const [asks, setAsks] = useState<"stop" | "now" | "delete" | null>(null);
  const { row, wish, job } = view;
  const jobState = useValue(queue)?.jobs.find(({ id }) => id === job)?.state ?? "";
  const isTraining = row.held && row.status !== "finishing";
  // The process of a run lives a little longer than the run.
  const isEnding = !row.held && !row.has_result && AT_WORK.includes(jobState);
  const isResumable = !row.held && !row.has_result && RESUMABLE.includes(row.status) && !WAITING.includes(jobState);
  const ask = (verb: Verb) =>
    void tried(async () => {
      const params = { path: { name: row.id, verb } };
      onChange(await data(client.POST("/api/runs/{name}/{verb}", { params })));
    });

  return (
    <>
      {row.status === "finishing" && <span className="note">Its result is being measured and saved…</span>}
      {isTraining && wish === "run" && <Button onClick={() => ask("pause")}>Pause</Button>}
      {isTraining && wish === "pause" && <Button onClick={() => ask("continue")}>Continue</Button>}
      {isTraining && wish !== "stop" && <Button onClick={() => setAsks("stop")}>Stop</Button>}
      {isTraining && wish === "stop" && <span className="note">Saving and stopping…</span>}
      {row.held && wish === "stop" && job !== null && <Button onClick={() => setAsks("now")}>End now</Button>}
      {isEnding && (
        <span className="note">{row.status === "not started" ? "Starting…" : "Its process is at work…"}</span>
      )}
      {isResumable && !isEnding && (
        <Button look="main" onClick={() => ask("resume")}>
          {row.status === "not started" ? "Queue" : "Resume"}
        </Button>
      )}
      <a className="button" href={href(["new"], { from: row.id })}>
        Use again
      </a>
      {row.has_result && (
        <a className="button" href={href(["serve"], { run: row.id })}>
          Export & serve
        </a>
      )}
      <a className="button" href={href(["compare"], { runs: row.id })}>
        Compare
      </a>
      {!row.held && !isEnding && <Button onClick={() => setAsks("delete")}>Delete</Button>}
      <Confirm
        {...savesFirst(row.name)}
        open={asks === "stop"}
        onClose={() => setAsks(null)}
        onConfirm={() => ask("stop")}
      />
      <Confirm
        {...savesNothing(row.name)}
        open={asks === "now"}
        onClose={() => setAsks(null)}
        onConfirm={() => job !== null && askJob(job, "cancel", { now: true })}
      />
      {asks === "delete" && <DeleteRun view={view} onClose={() => setAsks(null)} />}
    </>
  );
}
