import { base, errorOf, send } from "../../api/http";
import type { Rendering } from "../../chat/api";
import type { Message } from "../../chat/types";

/** The prompt that a model's template makes of messages, asked from its server. Throws ApiError. */
export async function render(server: string, model: string, messages: Message[]): Promise<Rendering> {
  const url = `${base}/api/servers/${encodeURIComponent(server)}/proxy/render`;
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ model, messages });
  const response = await send(new Request(url, { method: "POST", headers, body }));
  const answer = await response.json().catch(() => null);
  if (!response.ok) throw errorOf(answer, response.status);
  return answer as Rendering;
}
