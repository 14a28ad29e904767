import { useState } from "react";

import { client, data, type Schemas, type Server } from "../../api/client";
import { messageOf, useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { CopyButton } from "../../parts/CopyButton";
import { Dialog } from "../../parts/Dialog";
import { Field } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { integer } from "../numbers";

type Client = Schemas["ClientView"];

/** The configuration with which another program uses a model of a server. */
export function Connect({ server, onClose }: { server: Server; onClose: () => void }) {
  const { data: clients, error } = useFetched("clients", (signal) =>
    data(client.GET("/api/connect/clients", { signal })),
  );
  const tuned = server.models.find(({ kind }) => kind === "tuned") ?? server.models[0]!;
  const [model, setModel] = useState(tuned.name);
  const [name, setName] = useState("");
  const chosen = clients?.find((one) => one.name === name) ?? clients?.[0];
  return (
    <Dialog title="Connect a program" place="side" open onClose={onClose}>
      {error && <p className="note bad">{error}</p>}
      <div className="numbers">
        <Field label="Program">
          {(attributes) => (
            <select {...attributes} value={chosen?.name ?? ""} onChange={(event) => setName(event.target.value)}>
              {clients?.map((one) => (
                <option key={one.name}>{one.name}</option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Model">
          {(attributes) => (
            <select {...attributes} value={model} onChange={(event) => setModel(event.target.value)}>
              {server.models.map((one) => (
                <option key={one.name}>{one.name}</option>
              ))}
            </select>
          )}
        </Field>
      </div>
      {chosen && <Configuration key={`${chosen.name} ${model}`} server={server} model={model} chosen={chosen} />}
    </Dialog>
  );
}

function Configuration({ server, model, chosen }: { server: Server; model: string; chosen: Client }) {
  const path = { name: server.id, client: chosen.name };
  const { data: made, error } = useFetched(`${server.id} ${chosen.name} ${model}`, (signal) =>
    data(client.GET("/api/servers/{name}/connect/{client}", { params: { path, query: { model } }, signal })),
  );
  const [outcome, setOutcome] = useState<{ text: string; isBad: boolean } | null>(null);
  const [busy, setBusy] = useState(false);
  const context = server.models.find(({ name }) => name === model)?.context ?? 0;

  const does = async (asked: () => Promise<Schemas["ConnectOutcome"]>) => {
    setBusy(true);
    setOutcome(null);
    try {
      setOutcome({ text: (await asked()).message, isBad: false });
    } catch (problem) {
      setOutcome({ text: messageOf(problem), isBad: true });
    }
    setBusy(false);
  };
  const asked = { params: { path }, body: { model } };
  const write = () => does(() => data(client.POST("/api/servers/{name}/connect/{client}/write", asked)));
  const test = () => does(() => data(client.POST("/api/servers/{name}/connect/{client}/test", asked)));

  if (error) return <Notice tone="bad">{error}</Notice>;
  if (!made) return <p className="note">Asking the server…</p>;
  return (
    <div className="configuration">
      {context < chosen.context && (
        <Notice tone="warning">
          {chosen.name} needs a context of at least {integer(chosen.context)} tokens; this model has {integer(context)}.
        </Notice>
      )}
      {made.warnings.map((warning) => (
        <Notice key={warning} tone="warning">
          {warning}
        </Notice>
      ))}
      <p className="note">
        It belongs in <code>{made.path}</code>
      </p>
      <div className="row">
        <Button disabled={busy} onClick={() => void write()}>
          Write it there
        </Button>
        <Button disabled={busy} onClick={() => void test()}>
          Test it
        </Button>
        <CopyButton text={made.text} label="Copy the configuration" />
      </div>
      {outcome && <Notice tone={outcome.isBad ? "bad" : "good"}>{outcome.text}</Notice>}
      <p>
        Next: <code>{made.next_step}</code>
      </p>
      <pre className="listing" tabIndex={0} aria-label="Configuration">
        {made.text}
      </pre>
    </div>
  );
}
