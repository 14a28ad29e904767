// The server, as the page uses it. Paths are relative, so the page also works behind a prefix.

import { loadKey } from "./store.js";

/** Its message is for the user. */
export class ServerError extends Error {}

export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** {text, ids, tokens}: the prompt that the model's template makes of the messages. */
export async function render(model, messages) {
  return (await call("render", { model, messages })).json();
}

/** Yields {text, thought, finish, usage} as they come; `body` is that of OpenAI's chat completions. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions",
    { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const part = JSON.parse(data);
    if (part.error) throw new ServerError(part.error.message);
    const choice = part.choices?.[0];
    const { content, reasoning_content } = choice?.delta ?? {};
    yield { text: content ?? "", thought: reasoning_content ?? "", finish: choice?.finish_reason, usage: part.usage };
  }
  throw new ServerError("The server broke the answer off.");
}

/** Sends `body` as JSON, or asks if there is none. */
async function call(path, body, signal) {
  const key = loadKey();
  const headers = {
    ...(body && { "Content-Type": "application/json" }),
    ...(key && { Authorization: `Bearer ${key}` }),
  };
  const method = body ? "POST" : "GET";
  const response = await reached(fetch(path, { method, headers, body: body && JSON.stringify(body), signal }));
  if (!response.ok) throw new ServerError(await reason(response));
  return response;
}

async function reason(response) {
  if (response.status === 401) return "The server asks for an API key: enter it under Settings.";
  const said = await response.json().catch(() => null);
  return said?.error?.message ?? `The server answered ${response.status}.`;
}

/** The data of server-sent events; each of ours is one line. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

/** A request that was stopped stays an AbortError; any other failure of the connection is said in words. */
async function reached(request) {
  try {
    return await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is tunesmith serve still running?");
  }
}
