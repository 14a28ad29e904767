/** One server-sent event. */
export interface Message {
  event: string;
  data: string;
}

/** Yields the events of a stream. Ends with it, and throws what breaks it off. */
export async function* messages(stream: ReadableStream<Uint8Array>): AsyncGenerator<Message> {
  const reader = stream.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  let message: Message = { event: "message", data: "" };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (message.data) yield message;
        message = { event: "message", data: "" };
        continue;
      }
      const [, field, text = ""] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
      if (field === "event") message.event = text;
      if (field === "data") message.data += (message.data && "\n") + text;
    }
  }
}
