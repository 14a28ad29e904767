import { useState } from "react";

import { client, data, type Exports } from "../../api/client";
import { messageOf, useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Check, Field } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { fieldsOf, type Node } from "../../parts/schema";
import { SettingField } from "./SettingField";

/** What each form is for; forms of other packages explain themselves. */
const USES: Record<string, string> = {
  adapter: "Only what was learned, as PEFT reads it. Small; needs the base.",
  merged: "A model folder for transformers and vLLM.",
  fp8: "A model folder in 8 bits, for vLLM on newer GPUs.",
  int4: "A model folder in 4 bits, for vLLM.",
  gguf: "One file for llama.cpp, LM Studio and others.",
  "gguf-adapter": "The adapter as GGUF, beside a base in GGUF.",
  ollama: "A GGUF file with the Modelfile that Ollama needs.",
};

interface Props {
  /** The id of the run. */
  run: string;
  onQueued: (exports: Exports) => void;
  onClose: () => void;
}

/** Chooses a form and its settings, and queues the export. */
export function NewExport({ run, onQueued, onClose }: Props) {
  const { data: forms, error } = useFetched("forms", (signal) => data(client.GET("/api/exports/forms", { signal })));
  const [name, setName] = useState("gguf");
  const [values, setValues] = useState<Record<string, unknown>>({});
  const [parity, setParity] = useState(true);
  const [problem, setProblem] = useState("");
  const form = forms?.find((one) => one.name === name) ?? forms?.[0];
  const fields = fieldsOf("", (form?.settings ?? {}) as Node);

  const queue = async () => {
    const set = fields.map(({ key }) => key).filter((key) => values[key] !== undefined);
    const body = { form: form!.name, settings: Object.fromEntries(set.map((key) => [key, values[key]])), parity };
    try {
      onQueued(await data(client.POST("/api/runs/{name}/exports", { params: { path: { name: run } }, body })));
      onClose();
    } catch (failure) {
      setProblem(messageOf(failure));
    }
  };

  return (
    <Dialog
      title="Export"
      place="side"
      open
      onClose={onClose}
      onSubmit={(event) => {
        event.preventDefault();
        void queue();
      }}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="main" disabled={!form}>
            Queue the export
          </Button>
        </>
      }
    >
      {error && <p className="note bad">{error}</p>}
      <Field label="Form" hint={form && USES[form.name]}>
        {(attributes) => (
          <select {...attributes} value={form?.name ?? ""} onChange={(event) => setName(event.target.value)}>
            {forms?.map((one) => (
              <option key={one.name}>{one.name}</option>
            ))}
          </select>
        )}
      </Field>
      {fields.map((field) => (
        <SettingField
          key={`${name} ${field.key}`}
          field={field}
          value={values[field.key]}
          onChange={(value) => setValues({ ...values, [field.key]: value })}
        />
      ))}
      <div>
        <Check
          label="Compare it with the trained model"
          checked={parity}
          onChange={(event) => setParity(event.target.checked)}
        />
        <p className="note">
          {parity
            ? "An export that does not answer as the trained model does is refused."
            : "Nothing then shows that the export is the trained model."}
        </p>
      </div>
      {problem && <Notice tone="bad">{problem}</Notice>}
    </Dialog>
  );
}
