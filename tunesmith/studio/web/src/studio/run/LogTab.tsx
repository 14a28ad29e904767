import { useEffect } from "react";

import { client, data, type RunView } from "../../api/client";
import { followRun, queue } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Table } from "../../parts/Table";
import { JobLog } from "../home/LogDialog";
import { moment } from "../numbers";
import { eventText } from "./eventText";

/** What happened, and what the job wrote to its terminal. */
export function LogTab({ id, view }: { id: string; view: RunView }) {
  const job = useValue(queue)?.jobs.find((one) => one.id === view.job);
  const {
    data: history,
    error,
    reload,
  } = useFetched(`history ${id}`, (signal) =>
    data(client.GET("/api/runs/{name}/history", { params: { path: { name: id } }, signal })),
  );
  useEffect(
    () => followRun(id, ({ events }) => events.some(({ event }) => event !== "step") && reload()),
    [id, reload],
  );
  if (error && !history)
    return (
      <p className="notice bad" role="alert">
        {error}
      </p>
    );
  return (
    <div className="stack">
      {job && (
        <section>
          <h2>Output of job {job.id}</h2>
          <JobLog job={job} />
        </section>
      )}
      <section>
        <h2>Events</h2>
        {history?.events.length === 0 && <p className="note">Nothing has happened yet.</p>}
        {!!history?.events.length && (
          <Table
            label="Events"
            rows={[...history.events.entries()].reverse()}
            rowKey={([at]) => at}
            columns={[
              { title: "Time", cell: ([, event]) => moment(event.time as number) },
              { title: "Event", cell: ([, event]) => String(event.event) },
              { title: "Details", cell: ([, event]) => eventText(event) },
            ]}
          />
        )}
      </section>
    </div>
  );
}
