import { useEffect } from "react";

import { client, data, type RunView } from "../../api/client";
import { followRun } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { integer } from "../numbers";
import { setQuery, usePlace } from "../router";

interface Sample {
  prompt: string;
  reference: string;
  answer?: string;
  before?: string;
  after?: string;
}

interface Moment {
  step: number;
  samples: Sample[];
}

/** Answers to held-out prompts: before and after, and those of each time when they were written during training. */
export function SamplesTab({ id, view }: { id: string; view: RunView }) {
  const { query } = usePlace();
  const { data: history, reload } = useFetched(`history ${id}`, (signal) =>
    data(client.GET("/api/runs/{name}/history", { params: { path: { name: id } }, signal })),
  );
  useEffect(
    () => followRun(id, ({ events }) => events.some(({ event }) => event === "samples") && reload()),
    [id, reload],
  );

  const final = (view.evaluation?.samples ?? []) as Sample[];
  const moments = (history?.events ?? []).filter(({ event }) => event === "samples") as unknown as Moment[];
  if (!history) return <p className="note">Reading the samples…</p>;
  if (!final.length && !moments.length) {
    return (
      <p className="note">
        No samples. <code>evaluate.samples</code> in the recipe says how many prompts are answered, with held-out rows
        of the data.
      </p>
    );
  }
  const asked = Number(query.get("at"));
  const moment = moments.find(({ step }) => step === asked) ?? (final.length ? null : moments.at(-1));
  return (
    <>
      {moments.length > 0 && (
        <label className="choose">
          Answers
          <select value={moment?.step ?? ""} onChange={(event) => setQuery({ at: event.target.value })}>
            {final.length > 0 && <option value="">before and after training</option>}
            {moments.map(({ step }) => (
              <option key={step} value={step}>
                at step {integer(step)}
              </option>
            ))}
          </select>
        </label>
      )}
      <ul className="samples">
        {(moment?.samples ?? final).map((sample, at) => (
          <li key={at}>
            <Text label="Prompt" text={sample.prompt} />
            <Text label="Reference" text={sample.reference} />
            {sample.answer !== undefined && <Text label="Answer" text={sample.answer} />}
            {sample.before !== undefined && <Text label="Before" text={sample.before} />}
            {sample.after !== undefined && <Text label="After" text={sample.after} />}
          </li>
        ))}
      </ul>
    </>
  );
}

function Text({ label, text }: { label: string; text: string }) {
  return (
    <div className={`sample ${label.toLowerCase()}`}>
      <h3>{label}</h3>
      <p>{text || <span className="note">nothing</span>}</p>
    </div>
  );
}
