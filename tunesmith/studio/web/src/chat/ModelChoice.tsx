import { Check } from "../parts/Field";
import { type Model, nameOf, type Settings } from "./types";

interface Props {
  models: Model[];
  settings: Settings;
  disabled: boolean;
  onChange: (changes: Partial<Settings>) => void;
}

/** Which model answers, and which one beside it. */
export function ModelChoice({ models, settings, disabled, onChange }: Props) {
  const options = models.map((model) => (
    <option key={model.id} value={model.id}>
      {model.tunesmith ? `${nameOf(model)} (${model.tunesmith.kind})` : nameOf(model)}
    </option>
  ));
  return (
    <div className="models">
      <select
        id="model"
        aria-label="Model"
        value={settings.model}
        disabled={disabled}
        onChange={(event) => onChange({ model: event.target.value })}
      >
        {options}
      </select>
      <select
        id="other"
        aria-label="Model to compare with"
        hidden={!settings.compare}
        value={settings.other}
        disabled={disabled}
        onChange={(event) => onChange({ other: event.target.value })}
      >
        {options}
      </select>
      <Check
        id="compare"
        label="Compare"
        checked={settings.compare}
        disabled={disabled || models.length < 2}
        onChange={(event) => onChange({ compare: event.target.checked })}
      />
    </div>
  );
}
