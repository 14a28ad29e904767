import type { Schemas, Server } from "../../api/client";
import { type Model, nameOf, type Settings } from "../../chat/types";

/** The models of the servers that can be asked. */
export function chatModels(servers: Server[]): Model[] {
  return servers
    .filter(({ usable }) => usable)
    .flatMap(({ id, models }) =>
      models.map(({ name, kind, ...facts }) => ({
        id: `${id}/${name}`,
        name,
        tunesmith: kind === "base" || kind === "tuned" ? { kind, ...facts } : undefined,
      })),
    );
}

/** The server to ask for a model: the one that was asked before, else another that has a model of this name. */
export function serverOf(models: Model[], server: string, model: string): string {
  const found = models.find(({ id }) => id === `${server}/${model}`) ?? models.find(({ name }) => name === model);
  return found ? askedModel(found.id).server : server;
}

/** Why images cannot be sent to the chosen models; empty if they can. */
export function imageRefusal(models: Model[], { model, other, compare }: Settings): string {
  const chosen = models.filter(({ id }) => id === model || (compare && id === other));
  const refusing = chosen.find(({ tunesmith }) => !tunesmith?.images);
  if (!models.length) return "No model is running; start a server first.";
  return refusing ? `${nameOf(refusing)} takes text only, so no image can be sent to it.` : "";
}

/** The server and the model that an id of `chatModels` stands for. */
export function askedModel(id: string): Schemas["AskedModel"] {
  const end = id.indexOf("/");
  return { server: id.slice(0, end), model: id.slice(end + 1) };
}
