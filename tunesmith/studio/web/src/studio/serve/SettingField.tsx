import { Field } from "../../parts/Field";
import { helpOf, type SchemaField } from "../../parts/schema";
import { isSame } from "../../parts/values";
import { WIDGETS } from "../../parts/widgets";

interface Props {
  field: SchemaField;
  value: unknown;
  /** Undefined: as by default. */
  onChange: (value: unknown) => void;
}

/** A setting of an export, with its help. */
export function SettingField({ field, value, onChange }: Props) {
  const Widget = WIDGETS[field.kind];
  return (
    <Field label={field.title} hint={helpOf(field)}>
      {(attributes) => (
        <Widget
          field={field}
          value={value}
          onChange={(next) => onChange(isSame(next, field.default) ? undefined : next)}
          attributes={attributes}
        />
      )}
    </Field>
  );
}
