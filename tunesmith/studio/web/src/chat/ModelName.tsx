import { Badge } from "../parts/Badge";
import { type Model, nameOf } from "./types";

/** A model's kind and name. */
export function ModelName({ name, models }: { name: string; models: Model[] }) {
  const kind = models.find((model) => nameOf(model) === name)?.tunesmith?.kind;
  return (
    <>
      {kind && <Badge tone={kind === "tuned" ? "accent" : "plain"}>{kind}</Badge>} {name}
    </>
  );
}
