import { memo } from "react";

import { Button } from "../parts/Button";
import { AnswerView } from "./AnswerView";
import type { Model, Turn } from "./types";

interface Props {
  turn: Turn;
  /** Its place in the conversation. */
  at: number;
  last: boolean;
  models: Model[];
  asMarkdown: boolean;
  onRegenerate: () => void;
  onKeep: (answer: number) => void;
  onTokens: (turn: number, answer: number) => void;
}

/** A question and its answers. A turn before the last one does not change, so it is drawn once. */
export const TurnView = memo(function TurnView({
  turn,
  at,
  last,
  models,
  asMarkdown,
  onRegenerate,
  onKeep,
  onTokens,
}: Props) {
  const { answers } = turn;
  const complete = last && answers.every((answer) => answer.state !== "running");
  const choosable = complete && answers.length > 1;
  return (
    <article className="turn">
      <div className="question">{turn.question}</div>
      <div className={answers.length > 1 ? "answers two" : "answers"}>
        {answers.map((answer, index) => (
          <AnswerView
            key={index}
            answer={answer}
            seed={turn.seed}
            models={models}
            asMarkdown={asMarkdown}
            kept={choosable ? turn.kept === index : undefined}
            onKeep={() => onKeep(index)}
            onTokens={() => onTokens(at, index)}
          />
        ))}
      </div>
      {complete && (
        <div className="again">
          <Button small onClick={onRegenerate}>
            Regenerate
          </Button>
        </div>
      )}
    </article>
  );
});
