import { useEffect, useState } from "react";

import { client, data, type JobView } from "../../api/client";
import { messageOf } from "../../api/useFetched";
import { Dialog } from "../../parts/Dialog";
import { LogText } from "../shell/LogText";
import { AT_WORK } from "./JobState";

const POLL_MS = 1000;

/** What a job writes to its terminal, to the end and on. */
export function LogDialog({ job, onClose }: { job: JobView; onClose: () => void }) {
  return (
    <Dialog title={`Log of job ${job.id}, ${job.name}`} open onClose={onClose} place="side">
      <JobLog job={job} />
    </Dialog>
  );
}

export function JobLog({ job }: { job: JobView }) {
  const [text, setText] = useState<string | null>(null);
  const [error, setError] = useState("");
  const isGrowing = AT_WORK.includes(job.state) || job.state === "waiting";

  useEffect(() => {
    let timer = 0;
    let offset: number | undefined;
    let isOver = false;
    const read = async () => {
      try {
        const params = { path: { number: job.id }, query: { offset } };
        const part = await data(client.GET("/api/jobs/{number}/log", { params }));
        if (isOver) return;
        const begins = offset === undefined;
        offset = part.offset;
        setText((before) => (begins ? part.text : (before ?? "") + part.text));
        setError("");
      } catch (problem) {
        if (!isOver) setError(messageOf(problem));
      }
      if (!isOver && isGrowing) timer = window.setTimeout(read, POLL_MS);
    };
    void read();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [job.id, isGrowing]);

  if (error) return <p className="note bad">{error}</p>;
  if (text === null) return <p className="note">Reading…</p>;
  return text ? <LogText text={text} label={`Log of ${job.name}`} /> : <p className="note">It has written nothing.</p>;
}
