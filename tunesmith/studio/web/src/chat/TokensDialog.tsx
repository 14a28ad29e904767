import { useEffect, useState } from "react";

import { Dialog } from "../parts/Dialog";
import type { ChatApi, Rendering } from "./api";
import type { Message } from "./types";

export interface Prompt {
  model: string;
  messages: Message[];
}

interface Props {
  api: ChatApi;
  /** Whose tokens are shown; null while the dialog is closed. */
  prompt: Prompt | null;
  onClose: () => void;
}

/** What a model read before it answered: the rendered template, and each token with its id. */
export function TokensDialog({ api, prompt, onClose }: Props) {
  return (
    <Dialog id="tokens" title="What the model read" place="side" open={prompt !== null} onClose={onClose}>
      {prompt && <Tokens api={api} prompt={prompt} />}
    </Dialog>
  );
}

function Tokens({ api, prompt }: { api: ChatApi; prompt: Prompt }) {
  const [rendering, setRendering] = useState<Rendering | null>(null);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    let current = true;
    api.render(prompt.model, prompt.messages).then(
      (answer) => current && setRendering(answer),
      (error: Error) => current && setProblem(error.message),
    );
    return () => {
      current = false;
    };
  }, [api, prompt]);

  const summary = rendering && `${prompt.model}: ${rendering.ids.length.toLocaleString("en")} tokens`;
  return (
    <>
      <p id="tokens-summary" className={problem ? "note bad" : "note"} role="status">
        {problem || summary || "Asking the server …"}
      </p>
      {rendering && (
        <>
          <section>
            <h3>Rendered template</h3>
            <pre id="rendered" tabIndex={0} aria-label="Rendered template">
              {rendering.text}
            </pre>
          </section>
          <section>
            <h3>Tokens and their ids</h3>
            <ol id="token-list">
              {rendering.ids.map((id, at) => (
                <li key={at}>
                  <span>{visible(rendering.tokens[at] ?? "")}</span>
                  <small>{id}</small>
                </li>
              ))}
            </ol>
          </section>
        </>
      )}
    </>
  );
}

function visible(token: string): string {
  return token.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}
