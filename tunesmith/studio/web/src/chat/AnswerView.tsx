import type { ReactNode } from "react";

import { Button } from "../parts/Button";
import { CopyButton } from "../parts/CopyButton";
import { Markdown } from "./Markdown";
import { ModelName } from "./ModelName";
import type { Answer, Model } from "./types";

interface Props {
  answer: Answer;
  seed: number;
  models: Model[];
  asMarkdown: boolean;
  /** Whether the conversation goes on from this answer; undefined where there is no choice. */
  kept?: boolean;
  onKeep: () => void;
  onTokens: () => void;
  /** Continues the answer from where it ends; undefined where that cannot be. */
  onContinue?: () => void;
  /** Further buttons below the answer. */
  actions?: ReactNode;
}

export function AnswerView({ answer, seed, models, asMarkdown, kept, onKeep, onTokens, onContinue, actions }: Props) {
  const running = answer.state === "running";
  return (
    <div role="group" className="answer" aria-label={`Answer of ${answer.model}`} aria-busy={running}>
      <header>
        <h2>
          <ModelName name={answer.model} models={models} />
        </h2>
        {kept !== undefined && (
          <Button look="quiet" small aria-pressed={kept} onClick={onKeep}>
            {kept ? "Goes on from here" : "Go on from here"}
          </Button>
        )}
      </header>
      {answer.thought && (
        <details className="thoughts">
          <summary>Reasoning</summary>
          <pre>{answer.thought}</pre>
        </details>
      )}
      <div className={asMarkdown ? "body markdown" : "body plain"}>
        {asMarkdown ? <Markdown text={answer.text} /> : answer.text}
      </div>
      {answer.note && <p className={answer.state === "failed" ? "note bad failed" : "note"}>{answer.note}</p>}
      {!running && (
        <footer>
          <span className="answer-figures">{figures(answer, seed)}</span>
          <div className="actions">
            {onContinue && (
              <Button look="quiet" small title="From where it ends" onClick={onContinue}>
                Continue
              </Button>
            )}
            {actions}
            <CopyButton text={answer.text} label="Copy answer" />
            <Button look="quiet" small onClick={onTokens}>
              Tokens
            </Button>
          </div>
        </footer>
      )}
    </div>
  );
}

function figures({ figures: measured }: Answer, seed: number): string {
  const parts = [];
  if (measured?.tokensPerSecond) parts.push(`${threeDigits(measured.tokensPerSecond)} tokens/s`);
  if (measured?.secondsToFirst !== undefined) parts.push(`first after ${threeDigits(measured.secondsToFirst)} s`);
  if (measured?.tokens) {
    const inSeconds = !measured.seconds ? "" : ` in ${threeDigits(measured.seconds)} s`;
    parts.push(counted(measured.tokens, "token") + inSeconds);
  }
  return [...parts, `seed ${seed}`].join(" · ");
}

function counted(count: number, noun: string): string {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

function threeDigits(value: number): string {
  return value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}
