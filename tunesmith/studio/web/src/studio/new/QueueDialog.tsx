import { type FormEvent, useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { machine, queue } from "../../api/live";
import { messageOf, useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Check, Field } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { Segments } from "../../parts/Segments";
import { Grid, type GridRow, gridOf } from "./Grid";
import type { Values } from "../../parts/values";

type Priority = Schemas["NewJobs"]["priority"];

const PRIORITIES: { value: NonNullable<Priority>; text: string }[] = [
  { value: "low", text: "Low" },
  { value: "normal", text: "Normal" },
  { value: "high", text: "High" },
];
const ENDED = ["finished", "failed", "cancelled", "interrupted"];

interface Props {
  open: boolean;
  schema: Schemas["RecipeSchema"];
  values: Values;
  onQueued: (jobs: number[]) => void;
  onClose: () => void;
}

/** Asks when and how the recipe is run, and queues it. */
export function QueueDialog({ open, schema, values, onQueued, onClose }: Props) {
  const [asked, setAsked] = useState<Omit<Schemas["NewJobs"], "recipe">>({
    priority: "normal",
    hold: false,
    grid: {},
    export: [],
  });
  const [rows, setRows] = useState<GridRow[]>([]);
  const [mustSucceed, setMustSucceed] = useState(true);
  const [after, setAfter] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const jobs = useValue(queue)?.jobs ?? [];
  const gpus = useValue(machine)?.gpus ?? [];
  const forms = useFetched(open ? "forms" : null, (signal) => data(client.GET("/api/exports/forms", { signal })));

  const change = (part: Partial<typeof asked>) => setAsked({ ...asked, ...part });
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    const number = after ? Number(after) : null;
    const wish = { [mustSucceed ? "after_success" : "after"]: number };
    try {
      const body = { ...asked, ...wish, at: asked.at?.trim() || null, grid: gridOf(rows), recipe: values };
      onQueued(await data(client.POST("/api/jobs", { body })));
    } catch (problem) {
      setError(messageOf(problem));
    } finally {
      setBusy(false);
    }
  };
  const toggle = (form: string) => {
    const now = asked.export ?? [];
    change({ export: now.includes(form) ? now.filter((one) => one !== form) : [...now, form] });
  };

  return (
    <Dialog
      title="Queue this recipe"
      open={open}
      onClose={onClose}
      onSubmit={submit}
      place="side"
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="main" disabled={isBusy}>
            {isBusy ? "Queueing…" : asked.hold ? "Queue and hold" : "Queue"}
          </Button>
        </>
      }
    >
      {error && <Notice tone="bad">{error}</Notice>}
      <div className="field">
        <span className="label">Priority</span>
        <Segments
          label="Priority"
          options={PRIORITIES}
          value={asked.priority ?? "normal"}
          onChange={(priority) => change({ priority })}
        />
      </div>
      <Field label="Start after a job">
        {(attributes) => (
          <select {...attributes} value={after} onChange={(event) => setAfter(event.target.value)}>
            <option value="">No job</option>
            {jobs
              .filter(({ state }) => !ENDED.includes(state))
              .map(({ id, name, state }) => (
                <option key={id} value={id}>
                  {id}: {name} ({state})
                </option>
              ))}
          </select>
        )}
      </Field>
      {after && (
        <Check label="Only if that job succeeds" checked={mustSucceed} onChange={() => setMustSucceed(!mustSucceed)} />
      )}
      <Field label="Not before" hint="A time such as 22:30, 2026-12-24T08:00 or +3h. Empty: as soon as it may.">
        {(attributes) => (
          <input
            {...attributes}
            value={asked.at ?? ""}
            autoComplete="off"
            onChange={(event) => change({ at: event.target.value })}
          />
        )}
      </Field>
      {gpus.length > 1 && (
        <Field label="GPUs" hint="It waits until so many are free.">
          {(attributes) => (
            <select
              {...attributes}
              value={asked.gpus ?? ""}
              onChange={({ target }) => change({ gpus: target.value ? Number(target.value) : null })}
            >
              <option value="">As the recipe says, else all</option>
              {gpus.map(({ key }, at) => (
                <option key={key} value={at + 1}>
                  {at + 1}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      <Check
        label="Hold it until it is released"
        checked={asked.hold ?? false}
        onChange={() => change({ hold: !asked.hold })}
      />
      <Grid schema={schema} values={values} rows={rows} onChange={setRows} />
      {!!forms.data?.length && (
        <fieldset className="export-forms">
          <legend>Export when it has finished</legend>
          {forms.data.map(({ name }) => (
            <Check
              key={name}
              label={name}
              checked={(asked.export ?? []).includes(name)}
              onChange={() => toggle(name)}
            />
          ))}
        </fieldset>
      )}
    </Dialog>
  );
}
