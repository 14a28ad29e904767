// Values of a recipe, nested like it, read and changed by dotted keys. Nothing is changed in place.

import { isMapping, meant, type Values } from "../../parts/values";

/** The value of a key; undefined if it is not set. */
export function valueAt(values: Values, key: string): unknown {
  let found: unknown = values;
  for (const name of key.split(".")) {
    if (!isMapping(found)) return undefined;
    found = found[name];
  }
  return found;
}

/** The values with a key set, or without it if the value is undefined. A section without keys goes too. */
export function withValue(values: Values, key: string, value: unknown): Values {
  const [name = "", ...rest] = key.split(".");
  const next = { ...values };
  if (rest.length) {
    const inner = isMapping(values[name]) ? values[name] : {};
    const changed = withValue(inner, rest.join("."), value);
    if (Object.keys(changed).length) next[name] = changed;
    else delete next[name];
  } else if (value === undefined) delete next[name];
  else next[name] = value;
  return next;
}

/** The values with the changes that a text says: `train.micro_batch: 1, adapter.kind: lora`. */
export function withChanges(values: Values, text: string): Values {
  const changes = text.split(", ").map((change) => /^([\w.]+): (.+)$/.exec(change));
  return changes.reduce((next, found) => (found ? withValue(next, found[1]!, meant(found[2]!)) : next), values);
}
