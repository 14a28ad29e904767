import { useContext, useState } from "react";

import { Button } from "../../parts/Button";
import { Prose } from "../../parts/Prose";
import { isMapping, isSame, textOf, type Values } from "../../parts/values";
import { WIDGETS, type WidgetProps } from "../../parts/widgets";
import { recipeText, sourcesOf } from "../data/recipe";
import { FilePicker } from "../files/FilePicker";
import { href } from "../router";
import { RecipeValues } from "./recipeValues";
import { valueAt } from "./values";

type Source = Values;

/** Files that rows come from. Each has a path; further settings open below it. */
export function Sources({ field, value, onChange, attributes }: WidgetProps) {
  const [isPicking, setPicking] = useState(false);
  const recipe = useContext(RecipeValues);
  const sources: Source[] = Array.isArray(value) ? value.map(sourceOf) : [];
  const set = (next: Source[]) => onChange(next.length ? next : undefined);
  const add = (path: string) => set([...sources.filter((source) => source.path !== ""), { path }]);
  return (
    <div className="sources" role="group" aria-label={field.title} aria-describedby={attributes["aria-describedby"]}>
      {sources.map((source, at) => (
        <SourceRow
          key={at}
          field={field}
          number={at + 1}
          source={source}
          look={lookAt(recipe, field.key, at, textOf(source.path))}
          onChange={(next) => set(sources.map((one, number) => (number === at ? next : one)))}
          onRemove={() => set(sources.filter((_, number) => number !== at))}
        />
      ))}
      <div className="row">
        <Button small id={attributes.id} onClick={() => setPicking(true)}>
          {sources.length ? "Add a file" : "Choose or upload a file"}
        </Button>
        <Button small look="quiet" onClick={() => set([...sources, { path: "" }])}>
          Type a path
        </Button>
      </div>
      <FilePicker
        title={field.title}
        open={isPicking}
        kinds={["data", "text"]}
        onClose={() => setPicking(false)}
        onPick={(path) => {
          setPicking(false);
          add(path);
        }}
      />
    </div>
  );
}

function sourceOf(value: unknown): Source {
  return isMapping(value) ? value : { path: textOf(value) };
}

/** The address of a source's rows: among those of the recipe, or without a model by themselves. */
function lookAt(recipe: Values, key: string, at: number, path: string): string {
  if (!textOf(valueAt(recipe, "model.path"))) return href(["data"], { file: path });
  const before = key === "data.eval" ? sourcesOf(recipe).filter(({ isHeldOut }) => !isHeldOut).length : 0;
  return href(["data"], { recipe: recipeText(recipe), source: before + at + 1 });
}

interface RowProps {
  field: WidgetProps["field"];
  number: number;
  source: Source;
  /** The address of its rows. */
  look: string;
  onChange: (source: Source) => void;
  onRemove: () => void;
}

function SourceRow({ field, number, source, look, onChange, onRemove }: RowProps) {
  const path = textOf(source.path);
  const further = Object.keys(source).filter((name) => name !== "path");
  const inner = field.items.filter(({ key }) => key !== "path");
  const set = (name: string, value: unknown) => {
    const { [name]: _, ...rest } = source;
    onChange(value === undefined ? rest : { ...rest, [name]: value });
  };
  return (
    <div className="source">
      <div className="row">
        <input
          aria-label={`${field.title} ${number}: path`}
          placeholder="File, folder, pattern, or hub:org/name"
          value={path}
          spellCheck={false}
          onChange={(event) => onChange({ ...source, path: event.target.value })}
        />
        {path && (
          <a className="button small quiet" href={look} aria-label={`Look at ${path}`}>
            Look
          </a>
        )}
        <Button small look="quiet" aria-label={`Remove ${path || "this source"}`} onClick={onRemove}>
          ✕
        </Button>
      </div>
      <details>
        <summary>
          {further.length
            ? further.map((name) => `${name}: ${textOf(source[name])}`).join(" · ")
            : "Format, columns, weight"}
        </summary>
        <div className="inner">
          {inner.map((one) => {
            const Widget = WIDGETS[one.kind];
            const id = `${field.key}.${number}.${one.key}`;
            const change = (value: unknown) => set(one.key, isSame(value, one.default) ? undefined : value);
            return (
              <div key={one.key} className="recipe-field">
                <div className="name">
                  {one.kind === "map" ? (
                    <span className="label">{one.title}</span>
                  ) : (
                    <label htmlFor={id}>{one.title}</label>
                  )}
                </div>
                <Widget
                  field={one}
                  value={source[one.key]}
                  onChange={change}
                  attributes={{ id, "aria-describedby": `${id}-below`, "aria-invalid": undefined }}
                />
                <p id={`${id}-below`} className="hint">
                  <Prose text={one.help} />
                </p>
              </div>
            );
          })}
        </div>
      </details>
    </div>
  );
}
