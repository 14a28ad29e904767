import { memo, type ReactNode, useState } from "react";

import { Button } from "../parts/Button";
import { AnswerView } from "./AnswerView";
import { QuestionEditor } from "./QuestionEditor";
import { type Answer, type Model, nameOf, type Turn } from "./types";

/** What can be done with turns, by their place in the conversation and the place of the answer in them. */
export interface TurnActions {
  /** Lets the models answer the last question again. */
  regenerate: () => void;
  showTokens: (turn: number, answer: number) => void;
  /** Chooses the answer that the conversation goes on from. Without it there is no such choice. */
  keep?: (answer: number) => void;
  /** Continues an answer of the last question from where it ends. */
  resume: (answer: number) => void;
  /** Asks a changed question, which removes all later turns. Without it none can be changed. */
  edit?: (turn: number, question: string) => void;
  /** Further buttons below an answer. */
  further?: (turn: number, answer: number) => ReactNode;
}

interface Props {
  turn: Turn;
  /** Its place in the conversation. */
  at: number;
  last: boolean;
  /** Whether an answer is being written somewhere in the conversation. */
  running: boolean;
  models: Model[];
  asMarkdown: boolean;
  /** Must stay the same object, as must `turn`, for turns not to be drawn again. */
  actions: TurnActions;
}

/** A question and its answers. A turn before the last one does not change, so it is drawn once. */
export const TurnView = memo(function TurnView({ turn, at, last, running, models, asMarkdown, actions }: Props) {
  const { answers, kept, question, seed } = turn;
  const { regenerate, keep, resume, edit, further, showTokens } = actions;
  const [edits, setEdits] = useState(false);
  const complete = last && answers.every((answer) => answer.state !== "running");
  const choosable = keep && complete && answers.length > 1;
  const canContinue = ({ model, text, isCutOff }: Answer) =>
    last && isCutOff && text !== "" && models.some((one) => nameOf(one) === model);
  return (
    <article className="turn">
      {edits && edit ? (
        <QuestionEditor
          question={question}
          isLast={last}
          onAsk={(changed) => {
            setEdits(false);
            edit(at, changed);
          }}
          onCancel={() => setEdits(false)}
        />
      ) : (
        <div className="asked">
          {edit && !running && (
            <Button look="quiet" small aria-label="Edit the question" onClick={() => setEdits(true)}>
              Edit
            </Button>
          )}
          <div className="question">
            {question}
            {turn.images?.map((url, number) => (
              <img key={number} src={url} alt={`Image ${number + 1} of the question`} />
            ))}
          </div>
        </div>
      )}
      <div className={answers.length > 1 ? "answers two" : "answers"}>
        {answers.map((answer, index) => (
          <AnswerView
            key={index}
            answer={answer}
            seed={seed}
            models={models}
            asMarkdown={asMarkdown}
            kept={choosable ? kept === index : undefined}
            onKeep={() => keep?.(index)}
            onTokens={() => showTokens(at, index)}
            onContinue={canContinue(answer) ? () => resume(index) : undefined}
            actions={further?.(at, index)}
          />
        ))}
      </div>
      {complete && (
        <div className="again">
          <Button small onClick={regenerate}>
            Regenerate
          </Button>
        </div>
      )}
    </article>
  );
});
