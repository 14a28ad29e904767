// The form of a recipe, as its JSON Schema describes it.

import type { Schemas } from "../../api/client";
import * as schema from "../../parts/schema";
import { isMapping, type Values } from "../../parts/values";
import { valueAt } from "./values";

export type Kind = schema.Kind | "model" | "sources";

export interface Field extends Omit<schema.SchemaField, "kind"> {
  kind: Kind;
}

export interface Section {
  key: string;
  title: string;
  help: string;
  fields: Field[];
}

const SPECIAL: Record<string, Kind> = { "model.path": "model", "data.train": "sources", "data.eval": "sources" };

/** The sections of the form. Those of the method are of the one that the values name. */
export function sectionsOf(form: Schemas["RecipeSchema"], values: Values): Section[] {
  const properties = (form.json_schema as schema.Node).properties ?? {};
  return form.sections.map(({ key, help, keys }) => {
    if (!key) return { key, help, title: "This run", fields: keys.map((name) => fieldOf(name, properties[name]!)) };
    const node = properties[key]!;
    const fields = node.oneOf ? methodFields(key, node, values) : fieldsOf(key, node);
    return { key, help, title: node.title ?? key, fields };
  });
}

/** A field of the schema as the form has it. */
function own(field: schema.SchemaField): Field {
  return { ...field, kind: SPECIAL[field.key] ?? field.kind, title: TITLES[field.key] ?? field.title };
}

function fieldsOf(section: string, node: schema.Node): Field[] {
  return schema.fieldsOf(section, node).map(own);
}

function fieldOf(key: string, node: schema.Node): Field {
  return own(schema.fieldOf(key, node, false));
}

/** A union that a name tells apart: the name, and the fields of the kind that is chosen. */
function methodFields(section: string, node: schema.Node, values: Values): Field[] {
  const kinds = node.oneOf ?? [];
  const names = kinds.map((kind) => kind.properties?.name?.const ?? "");
  const initial = isMapping(node.default) ? node.default.name : names[0];
  const chosen = valueAt(values, `${section}.name`) ?? initial;
  const kind = kinds[names.indexOf(String(chosen))];
  const name: Field = {
    ...fieldOf(`${section}.name`, { type: "string", enum: names, default: initial, title: "Name", level: "essential" }),
    help: kinds.map((one) => one.description ?? "").join(" "),
  };
  return [name, ...fieldsOf(section, kind ?? {}).filter(({ key }) => key !== name.key)];
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

export function isShown(field: Field, level: schema.Level): boolean {
  return schema.LEVELS.indexOf(field.level) <= schema.LEVELS.indexOf(level);
}
