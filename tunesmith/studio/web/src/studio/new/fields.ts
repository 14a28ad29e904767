// The form of a recipe, as its JSON Schema describes it.

import type { Schemas } from "../../api/client";
import { isMapping, valueAt, type Values } from "./values";

export type Level = "essential" | "more" | "all";
export const LEVELS: readonly Level[] = ["essential", "more", "all"];

export type Kind = "model" | "sources" | "choice" | "flag" | "number" | "text" | "list" | "map";

export interface Field {
  /** Dotted. */
  key: string;
  title: string;
  help: string;
  level: Level;
  kind: Kind;
  /** The words that may be chosen: all of a choice; for other kinds, what may stand instead of a number or a list. */
  words: string[];
  isRequired: boolean;
  isNullable: boolean;
  default: unknown;
  /** The range of numbers, in words; empty if all are allowed. */
  range: string;
  /** Fields of the items of a list. */
  items: Field[];
}

export interface Section {
  key: string;
  title: string;
  help: string;
  fields: Field[];
}

/** A part of a JSON Schema, as far as forms need it. */
interface Node {
  type?: string;
  title?: string;
  description?: string;
  level?: Level;
  default?: unknown;
  const?: string;
  enum?: string[];
  anyOf?: Node[];
  oneOf?: Node[];
  items?: Node;
  properties?: Record<string, Node>;
  required?: string[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
}

const SPECIAL: Record<string, Kind> = { "model.path": "model", "data.train": "sources", "data.eval": "sources" };

/** The sections of the form. Those of the method are of the one that the values name. */
export function sectionsOf(schema: Schemas["RecipeSchema"], values: Values): Section[] {
  const properties = (schema.json_schema as Node).properties ?? {};
  return schema.sections.map(({ key, help, keys }) => {
    if (!key)
      return { key, help, title: "This run", fields: keys.map((name) => fieldOf(name, properties[name]!, false)) };
    const node = properties[key]!;
    const fields = node.oneOf ? methodFields(key, node, values) : fieldsOf(key, node);
    return { key, help, title: node.title ?? key, fields };
  });
}

function fieldsOf(section: string, node: Node): Field[] {
  const required = node.required ?? [];
  const key = (name: string) => (section ? `${section}.${name}` : name);
  return Object.entries(node.properties ?? {}).map(([name, inner]) =>
    fieldOf(key(name), inner, required.includes(name)),
  );
}

/** A union that a name tells apart: the name, and the fields of the kind that is chosen. */
function methodFields(section: string, node: Node, values: Values): Field[] {
  const kinds = node.oneOf ?? [];
  const names = kinds.map((kind) => kind.properties?.name?.const ?? "");
  const initial = isMapping(node.default) ? node.default.name : names[0];
  const chosen = valueAt(values, `${section}.name`) ?? initial;
  const kind = kinds[names.indexOf(String(chosen))];
  const name: Field = {
    ...fieldOf(
      `${section}.name`,
      { type: "string", enum: names, default: initial, title: "Name", level: "essential" },
      false,
    ),
    help: kinds.map((one) => one.description ?? "").join(" "),
  };
  return [name, ...fieldsOf(section, kind ?? {}).filter(({ key }) => key !== name.key)];
}

function fieldOf(key: string, node: Node, isRequired: boolean): Field {
  const all = node.anyOf ?? [node];
  const kinds = all.filter(({ type }) => type !== "null");
  const words = kinds.flatMap((kind) => kind.enum ?? (kind.const === undefined ? [] : [kind.const]));
  const number = kinds.find(({ type }) => type === "number" || type === "integer");
  return {
    key,
    title: titleOf(key, node.title),
    help: node.description ?? "",
    level: node.level ?? "all",
    kind: SPECIAL[key] ?? kindOf(kinds, words),
    words,
    isRequired,
    isNullable: kinds.length < all.length,
    default: node.default,
    range: number ? rangeOf(number) : "",
    items: node.items?.properties ? fieldsOf("", node.items) : [],
  };
}

function kindOf(kinds: Node[], words: string[]): Kind {
  const types = kinds.map(({ type }) => type);
  if (types.includes("boolean")) return "flag";
  if (types.includes("number") || types.includes("integer")) return "number";
  if (types.includes("array")) return "list";
  if (types.includes("object")) return "map";
  return words.length ? "choice" : "text";
}

function rangeOf({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }: Node): string {
  const low =
    minimum !== undefined ? `from ${minimum}` : exclusiveMinimum !== undefined ? `above ${exclusiveMinimum}` : "";
  const high =
    maximum !== undefined ? `to ${maximum}` : exclusiveMaximum !== undefined ? `below ${exclusiveMaximum}` : "";
  return [low, high].filter(Boolean).join(" ");
}

/** Titles that say more than the last part of the key. */
const TITLES: Record<string, string> = {
  "model.path": "Base model",
  "model.chat_template_kwargs": "Chat template variables",
  "data.train": "Training data",
  "data.eval": "Held-out data",
  "data.eval_share": "Held-out share",
  "data.eval_limit": "Held-out limit",
  "adapter.rslora": "rsLoRA",
  "adapter.dora": "DoRA",
  "method.name": "Method",
  "train.tiled_mlp": "Tiled MLP",
  "power.price_per_kwh": "Price per kWh",
};

function titleOf(key: string, title: string | undefined): string {
  return TITLES[key] ?? title ?? key;
}

export function isShown(field: Field, level: Level): boolean {
  return LEVELS.indexOf(field.level) <= LEVELS.indexOf(level);
}
