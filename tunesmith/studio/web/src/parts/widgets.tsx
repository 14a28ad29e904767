// Inputs for the kinds of values that a schema has. Each shows a value, and gives the next one.

import { type ReactNode, useState } from "react";

import { Button } from "./Button";
import type { Kind, SchemaField } from "./schema";
import { Segments } from "./Segments";
import { isMapping, isSame, meant, textOf } from "./values";

export interface Attributes {
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": boolean | undefined;
}

export interface WidgetProps {
  field: Omit<SchemaField, "kind">;
  /** Undefined if it is not set. */
  value: unknown;
  onChange: (value: unknown) => void;
  attributes: Attributes;
}

/** Choices whose words are together longer than this become a menu. */
const MOST_CHARACTERS = 34;

function Choice({ field, value, onChange, attributes }: WidgetProps) {
  const shown = textOf(value ?? field.default);
  const isShort = field.words.join("   ").length <= MOST_CHARACTERS;
  if (isShort && field.words.includes(shown)) {
    const options = field.words.map((word) => ({ value: word, text: word }));
    return (
      <Segments
        label={field.title}
        options={options}
        value={shown}
        onChange={onChange}
        aria-describedby={attributes["aria-describedby"]}
      />
    );
  }
  return (
    <select {...attributes} value={shown} onChange={(event) => onChange(event.target.value)}>
      {!field.words.includes(shown) && <option value={shown}>{shown}</option>}
      {field.words.map((word) => (
        <option key={word}>{word}</option>
      ))}
    </select>
  );
}

function Flag({ field, value, onChange, attributes }: WidgetProps) {
  const isOn = (value ?? field.default) === true;
  return (
    <label className="switch">
      <input {...attributes} type="checkbox" role="switch" checked={isOn} onChange={() => onChange(!isOn)} />
      <span>{isOn ? "on" : "off"}</span>
    </label>
  );
}

/** A number; where words may stand instead, they are buttons beside it. An empty box means the default. */
function NumberBox({ field, value, onChange, attributes }: WidgetProps) {
  const shown = value ?? field.default;
  const isWord = typeof shown === "string" && field.words.includes(shown);
  const [typed, setTyped] = useState<string | null>(null);
  const initial = typeof field.default === "number" ? String(field.default) : "";
  const read = (text: string) => {
    setTyped(text);
    onChange(text.trim() === "" ? undefined : meant(text));
  };
  return (
    <div className="number-box">
      {field.words.length > 0 && (
        <span className="words">
          {field.words.map((word) => (
            <Button
              key={word}
              small
              look="quiet"
              aria-pressed={isWord && shown === word}
              onClick={() => onChange(word)}
            >
              {word}
            </Button>
          ))}
        </span>
      )}
      <input
        {...attributes}
        inputMode="decimal"
        autoComplete="off"
        spellCheck={false}
        placeholder={initial || (field.words.length ? "a number" : "not set")}
        value={typed ?? (isWord || value === undefined ? "" : textOf(value))}
        onChange={(event) => read(event.target.value)}
        onBlur={() => setTyped(null)}
      />
    </div>
  );
}

function TextBox({ field, value, onChange, attributes }: WidgetProps) {
  return (
    <input
      {...attributes}
      autoComplete="off"
      spellCheck={false}
      placeholder={textOf(field.default) || "not set"}
      value={textOf(value)}
      onChange={(event) => onChange(event.target.value === "" ? undefined : event.target.value)}
    />
  );
}

/** One item a line. A list that may be a word instead (`all-linear`) is that word if it is the only line. */
function ListBox({ field, value, onChange, attributes }: WidgetProps) {
  const [typed, setTyped] = useState<string | null>(null);
  const shown = Array.isArray(value) ? value.map(textOf).join("\n") : textOf(value);
  const takesWord = typeof field.default === "string";
  const read = (text: string) => {
    setTyped(text);
    const items = text
      .split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
    if (!items.length) onChange(undefined);
    else onChange(takesWord && items.length === 1 && items[0] === field.default ? items[0] : items);
  };
  const text = typed ?? shown;
  return (
    <textarea
      {...attributes}
      rows={Math.max(1, text.split("\n").length)}
      spellCheck={false}
      placeholder={takesWord ? String(field.default) : "one a line"}
      value={text}
      onChange={(event) => read(event.target.value)}
      onBlur={() => setTyped(null)}
    />
  );
}

/** Names with values. */
function MapBox({ field, value, onChange, attributes }: WidgetProps) {
  const kept = isMapping(value) ? Object.entries(value).map(([name, one]) => ({ name, text: textOf(one) })) : [];
  const [rows, setRows] = useState(kept);
  // Rows without a name are only here. What comes from elsewhere, such as the YAML, replaces the rest.
  const named = rows.filter(({ name }) => name !== "");
  const isOwn = isSame(mappingOf(named) ?? {}, value ?? {});
  const shown = isOwn ? rows : kept;
  const set = (next: typeof rows) => {
    setRows(next);
    onChange(mappingOf(next.filter(({ name }) => name !== "")));
  };
  const change = (at: number, part: Partial<(typeof rows)[number]>) =>
    set(shown.map((row, number) => (number === at ? { ...row, ...part } : row)));
  return (
    <div className="map-box" role="group" aria-label={field.title} aria-describedby={attributes["aria-describedby"]}>
      {shown.map(({ name, text }, at) => (
        <div key={at}>
          <input
            aria-label={`${field.title}: name ${at + 1}`}
            value={name}
            spellCheck={false}
            onChange={(event) => change(at, { name: event.target.value })}
          />
          <input
            aria-label={`${field.title}: value ${at + 1}`}
            value={text}
            spellCheck={false}
            onChange={(event) => change(at, { text: event.target.value })}
          />
          <Button
            small
            look="quiet"
            aria-label={`Remove ${name || "this row"}`}
            onClick={() => set(shown.filter((_, number) => number !== at))}
          >
            ✕
          </Button>
        </div>
      ))}
      <Button small id={attributes.id} onClick={() => setRows([...shown, { name: "", text: "" }])}>
        Add
      </Button>
    </div>
  );
}

function mappingOf(rows: { name: string; text: string }[]): Record<string, unknown> | undefined {
  return rows.length ? Object.fromEntries(rows.map(({ name, text }) => [name, meant(text)])) : undefined;
}

export const WIDGETS: Record<Kind, (props: WidgetProps) => ReactNode> = {
  choice: Choice,
  flag: Flag,
  number: NumberBox,
  text: TextBox,
  list: ListBox,
  map: MapBox,
};
