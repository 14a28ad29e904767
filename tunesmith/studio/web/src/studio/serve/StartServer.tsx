import { useState } from "react";

import { client, data, type Schemas, type Server } from "../../api/client";
import { messageOf, useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Check, Field } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { bytes } from "../numbers";
import { canBeServed, GROUPS, servedAs } from "./servable";

interface Props {
  /** What is chosen at first, as `servedAs` names it. */
  first?: string | null;
  onStarted: (server: Server) => void;
}

/** Chooses what to serve and how, and starts a server. */
export function StartServer({ first, onStarted }: Props) {
  const { data: models, error } = useFetched("models", (signal) => data(client.GET("/api/models", { signal })));
  const [chosen, setChosen] = useState<string[]>(first ? [first] : []);
  const [context, setContext] = useState("");
  const [engine, setEngine] = useState<"here" | "vllm">("here");
  const [cpu, setCpu] = useState(false);
  const [withKey, setWithKey] = useState(false);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);

  const start = async () => {
    setBusy(true);
    setProblem("");
    try {
      const body: Schemas["NewServer"] = { models: chosen, engine, cpu, with_key: withKey };
      if (context) body.context = Number(context);
      onStarted(await data(client.POST("/api/servers", { body })));
    } catch (failure) {
      setProblem(messageOf(failure));
    }
    setBusy(false);
  };

  const toggle = (value: string) =>
    setChosen(chosen.includes(value) ? chosen.filter((one) => one !== value) : [...chosen, value]);

  if (error) return <p className="note bad">{error}</p>;
  if (!models) return <p className="note">Looking for models…</p>;
  const servable = models.filter(canBeServed);
  if (!servable.length) {
    return (
      <p className="note">
        There is no model on this machine that can be served. Train one under <a href="#/new">New run</a>, or download a
        base under <a href="#/models">Models</a>.
      </p>
    );
  }
  return (
    <div className="start-server">
      <fieldset className="choices" tabIndex={0}>
        <legend>Runs and models</legend>
        {GROUPS.map(({ title, kinds }) => {
          const rows = servable.filter(({ kind }) => kinds.includes(kind));
          return (
            rows.length > 0 && (
              <div key={title} role="group" aria-label={title}>
                <p className="note">{title}</p>
                {rows.map((row) => (
                  <Check
                    key={row.id}
                    checked={chosen.includes(servedAs(row))}
                    onChange={() => toggle(servedAs(row))}
                    label={
                      <>
                        {row.name} <span className="note">{bytes(row.bytes)}</span>
                      </>
                    }
                  />
                ))}
              </div>
            )
          );
        })}
      </fieldset>
      <p className="note">A run is served with its base beside it, so that both can be compared.</p>
      <details>
        <summary>More settings</summary>
        <div className="numbers">
          <Field label="Context, in tokens" hint="Prompt and answer together; empty: as long as fits.">
            {(attributes) => (
              <input
                {...attributes}
                type="number"
                min={2}
                step={1}
                value={context}
                onChange={(event) => setContext(event.target.value)}
              />
            )}
          </Field>
          <Field label="Engine" hint="vLLM must be installed, and needs a GPU.">
            {(attributes) => (
              <select
                {...attributes}
                value={engine}
                onChange={(event) => setEngine(event.target.value as "here" | "vllm")}
              >
                <option value="here">Tunesmith’s own</option>
                <option value="vllm">vLLM</option>
              </select>
            )}
          </Field>
        </div>
        <Check label="Compute on the CPU, also if there is a GPU" checked={cpu} onChange={() => setCpu(!cpu)} />
        <Check label="Clients need a key" checked={withKey} onChange={() => setWithKey(!withKey)} />
      </details>
      {problem && <Notice tone="bad">{problem}</Notice>}
      <Button look="main" disabled={!chosen.length || busy} onClick={() => void start()}>
        Start the server
      </Button>
    </div>
  );
}
