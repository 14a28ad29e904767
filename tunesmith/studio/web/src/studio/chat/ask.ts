import { client, data, type Schemas } from "../../api/client";
import type { Settings } from "../../chat/types";
import { setQuery } from "../router";
import { noteChange } from "./ConversationList";
import type { Followed } from "./conversation";
import { askedModel } from "./models";

/** A request for answers of the chosen models. */
export function questionOf(settings: Settings, changes: Partial<Schemas["Question"]>): Schemas["Question"] {
  const { model, other, compare, temperature, top_p, max_tokens, seed } = settings;
  const sampling: Schemas["Sampling"] = { temperature, top_p, max_tokens };
  if (seed !== "") sampling.seed = seed;
  const models = (compare ? [model, other] : [model]).map(askedModel);
  return { images: [], models, sampling, ...changes };
}

/** Asks in the open conversation, or in a new one, which is then opened. Throws ApiError if it is refused. */
export async function ask(followed: Followed | null, system: string, question: Schemas["Question"]): Promise<void> {
  if (followed) {
    await followed.ask(question);
  } else {
    const { id } = await data(client.POST("/api/conversations", { body: { system } }));
    const params = { path: { name: id } };
    try {
      await data(client.POST("/api/conversations/{name}/ask", { params, body: question }));
    } catch (error) {
      await data(client.DELETE("/api/conversations/{name}", { params }));
      throw error;
    }
    setQuery({ conversation: id, serve: null });
  }
  noteChange();
}
