import { type ChangeEvent, type ComponentProps, type ReactNode, useState } from "react";

import { Dialog } from "../parts/Dialog";
import { Check, Field } from "../parts/Field";
import type { KeyStore } from "./browserStorage";
import { facts } from "./facts";
import { type Model, nameOf, type Settings } from "./types";

interface Props {
  open: boolean;
  settings: Settings;
  models: Model[];
  /** Where the API key is kept; without it none is asked for. */
  apiKey?: KeyStore;
  onChange: (changes: Partial<Settings>) => void;
  /** Further settings. */
  children?: ReactNode;
  /** The key could not be kept. */
  onKeyLost?: () => void;
  onClose: () => void;
}

const LIMITS = {
  temperature: { min: 0, max: 2, step: "any", required: true },
  top_p: { min: 0.001, max: 1, step: "any", required: true },
  max_tokens: { min: 1, max: 10_000_000, step: 1, required: true },
  seed: { min: 0, max: 2_147_483_647, step: 1, placeholder: "new each time" },
} satisfies Record<string, ComponentProps<"input">>;

export function SettingsDialog({ open, settings, models, apiKey, onChange, onKeyLost, onClose, children }: Props) {
  const number = (name: keyof typeof LIMITS, label: string) => (
    <Field label={label}>
      {(attributes) => (
        <input
          {...attributes}
          {...LIMITS[name]}
          name={name}
          type="number"
          defaultValue={settings[name]}
          onChange={accepted((value) => onChange({ [name]: value === "" ? "" : Number(value) }))}
        />
      )}
    </Field>
  );

  const chosen = models.filter(({ id }) => id === settings.model || (settings.compare && id === settings.other));
  return (
    <Dialog id="settings" title="Settings" place="side" open={open} onClose={onClose}>
      {chosen.map((model) => (
        <p key={model.id} className="note model-facts">
          <b>{nameOf(model)}</b> {model.tunesmith && facts(model.tunesmith)}
        </p>
      ))}
      <Field label="System prompt">
        {(attributes) => (
          <textarea
            {...attributes}
            name="system"
            rows={5}
            defaultValue={settings.system}
            onChange={(event) => onChange({ system: event.target.value })}
          />
        )}
      </Field>
      <div className="numbers">
        {number("temperature", "Temperature")}
        {number("top_p", "Top-p")}
        {number("max_tokens", "Longest answer, in tokens")}
        {number("seed", "Seed")}
      </div>
      <p className="note">
        Temperature 0 always gives the likeliest answer. When comparing, both models get the same messages, settings and
        seed.
      </p>
      <Check
        name="markdown"
        label="Show answers as Markdown"
        checked={settings.markdown}
        onChange={(event) => onChange({ markdown: event.target.checked })}
      />
      {children}
      {apiKey && <ApiKey store={apiKey} onLost={() => onKeyLost?.()} />}
    </Dialog>
  );
}

/** A value that the form does not accept leaves the setting as it was. */
function accepted(use: (value: string) => void) {
  return ({ target }: ChangeEvent<HTMLInputElement>) => {
    if (target.checkValidity()) use(target.value);
  };
}

function ApiKey({ store, onLost }: { store: KeyStore; onLost: () => void }) {
  const [initial] = useState(store.load);
  return (
    <Field
      label="API key"
      hint="The key is forgotten when this tab is closed. The conversation and the other settings stay in this browser."
    >
      {(attributes) => (
        <input
          {...attributes}
          name="key"
          type="password"
          autoComplete="off"
          placeholder="only if the server asks for one"
          defaultValue={initial}
          onChange={(event) => store.save(event.target.value) || onLost()}
        />
      )}
    </Field>
  );
}
