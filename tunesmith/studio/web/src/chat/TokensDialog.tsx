import { useEffect, useState } from "react";

import { Dialog } from "../parts/Dialog";
import type { Rendering } from "./api";

/** The prompt of an answer. */
export interface Prompt {
  model: string;
  /** Asks the server for it. */
  read: () => Promise<Rendering>;
}

interface Props {
  /** Whose tokens are shown; null while the dialog is closed. */
  prompt: Prompt | null;
  onClose: () => void;
}

/** What a model read before it answered: the rendered template, and each token with its id. */
export function TokensDialog({ prompt, onClose }: Props) {
  return (
    <Dialog id="tokens" title="What the model read" place="side" open={prompt !== null} onClose={onClose}>
      {prompt && <Tokens prompt={prompt} />}
    </Dialog>
  );
}

function Tokens({ prompt }: { prompt: Prompt }) {
  const [rendering, setRendering] = useState<Rendering | null>(null);
  const [problem, setProblem] = useState("");

  useEffect(() => {
    let current = true;
    prompt.read().then(
      (answer) => current && setRendering(answer),
      (error: Error) => current && setProblem(error.message),
    );
    return () => {
      current = false;
    };
  }, [prompt]);

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
