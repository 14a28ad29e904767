import { Badge } from "../parts/Badge";
import type { Model } from "./types";

/** A model's kind and id. */
export function ModelName({ id, models }: { id: string; models: Model[] }) {
  const kind = models.find((model) => model.id === id)?.tunesmith?.kind;
  return (
    <>
      {kind && <Badge tone={kind === "tuned" ? "accent" : "plain"}>{kind}</Badge>} {id}
    </>
  );
}
