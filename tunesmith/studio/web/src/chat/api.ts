import { eventData } from "../http/events";
import { request, ServerError } from "../http/request";
import type { Message, Model } from "./types";

/** The prompt that a model's template makes of messages. */
export interface Rendering {
  text: string;
  ids: number[];
  tokens: string[];
}

export interface ChatRequest {
  model: string;
  messages: Message[];
  temperature: number;
  top_p: number;
  max_tokens: number;
  seed: number;
}

export interface Piece {
  text: string;
  thought: string;
  finish?: string;
  usage?: { completion_tokens: number };
}

/** The server, as the chat uses it. */
export interface ChatApi {
  listModels: () => Promise<Model[]>;
  render: (model: string, messages: Message[]) => Promise<Rendering>;
  /** Yields an answer as it comes. */
  answer: (asked: ChatRequest, signal: AbortSignal) => AsyncIterable<Piece>;
}

/** The API of `tunesmith serve` under a base path, "" or one with a slash at its end. */
export function chatApi(base: string, headers: () => Record<string, string>): ChatApi {
  const call = (path: string, body?: unknown, signal?: AbortSignal) =>
    request(base + path, { body, headers: headers(), signal });

  return {
    listModels: async () => (await (await call("v1/models")).json()).data,
    render: async (model, messages) => (await call("render", { model, messages })).json(),
    async *answer(asked, signal) {
      const body = { ...asked, stream: true, stream_options: { include_usage: true } };
      const response = await call("v1/chat/completions", body, signal);
      for await (const data of eventData(response.body!)) {
        if (data === "[DONE]") return;
        yield piece(JSON.parse(data));
      }
      throw new ServerError("The server broke the answer off.");
    },
  };
}

interface Chunk {
  choices?: { delta?: { content?: string; reasoning_content?: string }; finish_reason?: string }[];
  usage?: { completion_tokens: number };
  error?: { message: string };
}

function piece({ choices, usage, error }: Chunk): Piece {
  if (error) throw new ServerError(error.message);
  const choice = choices?.[0];
  const { content, reasoning_content } = choice?.delta ?? {};
  return { text: content ?? "", thought: reasoning_content ?? "", finish: choice?.finish_reason, usage };
}
