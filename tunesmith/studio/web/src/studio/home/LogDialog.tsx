import { client, data, type JobView } from "../../api/client";
import { Dialog } from "../../parts/Dialog";
import { FollowedLog } from "../shell/FollowedLog";
import { AT_WORK } from "./JobState";

/** What a job writes to its terminal, to the end and on. */
export function LogDialog({ job, onClose }: { job: JobView; onClose: () => void }) {
  return (
    <Dialog title={`Log of job ${job.id}, ${job.name}`} open onClose={onClose} place="side">
      <JobLog job={job} />
    </Dialog>
  );
}

export function JobLog({ job }: { job: JobView }) {
  return (
    <FollowedLog
      key={job.id}
      label={`Log of ${job.name}`}
      isGrowing={AT_WORK.includes(job.state) || job.state === "waiting"}
      read={(offset) =>
        data(client.GET("/api/jobs/{number}/log", { params: { path: { number: job.id }, query: { offset } } }))
      }
    />
  );
}
