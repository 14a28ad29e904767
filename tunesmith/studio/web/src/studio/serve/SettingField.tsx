import { Check, Field } from "../../parts/Field";

/** What a JSON Schema says of a setting. */
export interface Setting {
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  enum?: string[];
  anyOf?: Setting[];
}

interface Props {
  name: string;
  setting: Setting;
  value: unknown;
  /** Undefined: as by default. */
  onChange: (value: unknown) => void;
}

/** The input of a setting, by its type. */
export function SettingField({ name, setting, value, onChange }: Props) {
  const { type, enum: choices } = { ...setting, ...setting.anyOf?.find((one) => one.type !== "null") };
  const label = sentence(setting.title ?? name);
  const shown = value ?? setting.default ?? "";
  if (type === "boolean") {
    return (
      <div>
        <Check label={label} checked={Boolean(shown)} onChange={(event) => onChange(event.target.checked)} />
        {setting.description && <p className="note small">{setting.description}</p>}
      </div>
    );
  }
  return (
    <Field label={label} hint={setting.description}>
      {(attributes) =>
        choices ? (
          <select {...attributes} value={String(shown)} onChange={(event) => onChange(event.target.value)}>
            {choices.map((choice) => (
              <option key={choice}>{choice}</option>
            ))}
          </select>
        ) : (
          <input
            {...attributes}
            type={type === "integer" || type === "number" ? "number" : "text"}
            step={type === "integer" ? 1 : "any"}
            value={String(shown)}
            onChange={({ target }) => onChange(target.value === "" ? undefined : parsed(target.value, type))}
          />
        )
      }
    </Field>
  );
}

function parsed(text: string, type?: string): unknown {
  return type === "integer" || type === "number" ? Number(text) : text;
}

/** Titles of a schema begin each word with a capital letter. */
function sentence(title: string): string {
  return title.charAt(0).toUpperCase() + title.slice(1).toLowerCase();
}
