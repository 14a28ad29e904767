import { useId } from "react";

import { Button } from "../../parts/Button";
import { Prose } from "../../parts/Prose";
import { helpOf } from "../../parts/schema";
import { isSame } from "../../parts/values";
import { WIDGETS, type WidgetProps } from "../../parts/widgets";
import { ModelBox } from "./ModelBox";
import { Sources } from "./Sources";
import type { Field, Kind } from "./fields";

const ALL: Record<Kind, (props: WidgetProps) => React.ReactNode> = { ...WIDGETS, model: ModelBox, sources: Sources };

/** Kinds whose widgets have labels of their own. */
const GROUPS: Kind[] = ["sources", "map"];

/** Kinds of which two fit side by side. */
const HALF: Kind[] = ["number", "choice", "flag"];

interface Props {
  field: Field;
  value: unknown;
  /** What is wrong with it; empty if nothing is. */
  problem: string;
  onChange: (value: unknown) => void;
}

/** One field of the recipe: its title, its input, and its help or what is wrong. */
export function FieldRow({ field, value, problem, onChange }: Props) {
  const id = useId();
  const Widget = ALL[field.kind];
  const isSet = value !== undefined;
  const isGroup = GROUPS.includes(field.kind);
  // A value like the default is taken out, so that the recipe stays short.
  const change = (next: unknown) => onChange(isSame(next, field.default) ? undefined : next);
  return (
    <div
      className={`recipe-field ${HALF.includes(field.kind) ? "half" : ""} ${problem ? "wrong" : ""} ${isSet ? "set" : ""}`}
      data-key={field.key}
    >
      <div className="name">
        {isGroup ? <span className="label">{field.title}</span> : <label htmlFor={id}>{field.title}</label>}
        <code className="key">{field.key}</code>
        {isSet && !field.isRequired && (
          <Button
            small
            look="quiet"
            className="reset"
            aria-label={`${field.title}: back to the default`}
            onClick={() => onChange(undefined)}
          >
            Default
          </Button>
        )}
      </div>
      <Widget
        field={field}
        value={value}
        onChange={change}
        attributes={{ id, "aria-describedby": `${id}-below`, "aria-invalid": problem ? true : undefined }}
      />
      <p id={`${id}-below`} className={problem ? "error" : "hint"}>
        <Prose text={problem || helpOf(field)} />
      </p>
    </div>
  );
}
