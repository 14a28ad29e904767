// A JSON Schema as the fields of a form.

export type Level = "essential" | "more" | "all";
export const LEVELS: readonly Level[] = ["essential", "more", "all"];

/** The kinds of values that widgets.tsx has inputs for. */
export type Kind = "choice" | "flag" | "number" | "text" | "list" | "map";

export interface SchemaField {
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
  items: SchemaField[];
}

/** A part of a JSON Schema, as far as forms need it. */
export interface Node {
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

/** The fields of an object, whose key is `section`; "" for the whole schema. */
export function fieldsOf(section: string, node: Node): SchemaField[] {
  const required = node.required ?? [];
  const key = (name: string) => (section ? `${section}.${name}` : name);
  return Object.entries(node.properties ?? {}).map(([name, inner]) =>
    fieldOf(key(name), inner, required.includes(name)),
  );
}

export function fieldOf(key: string, node: Node, isRequired: boolean): SchemaField {
  const all = node.anyOf ?? [node];
  const kinds = all.filter(({ type }) => type !== "null");
  const words = kinds.flatMap((kind) => kind.enum ?? (kind.const === undefined ? [] : [kind.const]));
  const number = kinds.find(({ type }) => type === "number" || type === "integer");
  return {
    key,
    title: node.title ?? key,
    help: node.description ?? "",
    level: node.level ?? "all",
    kind: kindOf(kinds, words),
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

/** The help below a field's input. */
export function helpOf({ help, range }: Pick<SchemaField, "help" | "range">): string {
  return range ? `${help} Range: ${range}.` : help;
}
