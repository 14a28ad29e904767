import { useState } from "react";

import type { JobView } from "../../api/client";
import { Button } from "../../parts/Button";
import { Sparkline } from "../charts/Sparkline";
import { moment } from "../numbers";
import { href } from "../router";
import { Icon } from "../shell/Icon";
import { Cancel } from "./Cancel";
import { askJob } from "./jobs";
import { AT_WORK, JobState, WAITING } from "./JobState";
import { LogDialog } from "./LogDialog";
import { ProgressBar } from "./ProgressBar";

interface Props {
  job: JobView;
  earlier?: () => void;
  later?: () => void;
}

export function JobRow({ job, earlier, later }: Props) {
  const [showsLog, setShowsLog] = useState(false);
  const isTraining = job.kind === "train";
  return (
    <div className="job">
      <div className="job-head">
        <span className="job-name">
          {job.run ? <a href={href(["runs", job.run])}>{job.name}</a> : job.name}
          {!isTraining && <span className="note"> · {job.kind}</span>}
        </span>
        <JobState state={job.state} />
        <span className="note facts">{facts(job)}</span>
        <span className="job-actions" role="group" aria-label={`Job ${job.id}, ${job.name}`}>
          {(earlier || later) && (
            <>
              <Button
                look="quiet"
                small
                aria-label="Start earlier"
                title="Start earlier"
                disabled={!earlier}
                onClick={earlier}
              >
                <Icon name="up" />
              </Button>
              <Button look="quiet" small aria-label="Start later" title="Start later" disabled={!later} onClick={later}>
                <Icon name="down" />
              </Button>
            </>
          )}
          {job.state === "running" && isTraining && <Act job={job} verb="pause" text="Pause" />}
          {job.state === "paused" && <Act job={job} verb="resume" text="Continue" />}
          {job.state === "waiting" && <Act job={job} verb="hold" text="Hold" />}
          {job.state === "held" && <Act job={job} verb="release" text="Release" />}
          {["failed", "interrupted", "cancelled"].includes(job.state) && job.run && (
            <Act job={job} verb="retry" text={isTraining ? "Resume" : "Try again"} />
          )}
          <Button look="quiet" small onClick={() => setShowsLog(true)}>
            Log
          </Button>
          {(AT_WORK.includes(job.state) || WAITING.includes(job.state)) && <Cancel job={job} />}
        </span>
      </div>
      {job.progress && (
        <div className="job-progress">
          <ProgressBar progress={job.progress} label={`Progress of ${job.name}`} />
          {job.run && <Sparkline run={job.run} name={job.name} />}
        </div>
      )}
      {(job.why || job.detail) && (
        <p className={job.state === "failed" ? "note bad" : "note"}>{job.why || job.detail}</p>
      )}
      {showsLog && <LogDialog job={job} onClose={() => setShowsLog(false)} />}
    </div>
  );
}

function Act({
  job,
  verb,
  text,
}: {
  job: JobView;
  verb: "pause" | "resume" | "hold" | "release" | "retry";
  text: string;
}) {
  return (
    <Button look="quiet" small onClick={() => askJob(job.id, verb)}>
      {text}
    </Button>
  );
}

function facts(job: JobView): string {
  const found = [`job ${job.id}`];
  if (job.priority !== "normal") found.push(`priority ${job.priority}`);
  if (job.gpus !== null) found.push(`${job.gpus} GPUs`);
  if (job.after !== null) found.push(`after job ${job.after}${job.after_success ? " succeeds" : ""}`);
  if (job.not_before !== null && WAITING.includes(job.state)) found.push(`not before ${moment(job.not_before)}`);
  found.push(job.started === null ? `added ${moment(job.added)}` : `started ${moment(job.started)}`);
  return found.join(" · ");
}
