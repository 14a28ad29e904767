import type { Schemas, Server } from "../../api/client";
import type { Model } from "../../chat/types";

/** The models of the servers that can be asked. */
export function chatModels(servers: Server[]): Model[] {
  return servers
    .filter(({ usable }) => usable)
    .flatMap(({ id, models }) =>
      models.map(({ name, kind, base, context }) => ({
        id: `${id}/${name}`,
        name,
        tunesmith: kind === "base" || kind === "tuned" ? { kind, base, context } : undefined,
      })),
    );
}

/** The server and the model that an id of `chatModels` stands for. */
export function askedModel(id: string): Schemas["AskedModel"] {
  const end = id.indexOf("/");
  return { server: id.slice(0, end), model: id.slice(end + 1) };
}
