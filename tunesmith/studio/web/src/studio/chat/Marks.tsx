import { useState } from "react";

import { client, type ConversationView, data, type Schemas } from "../../api/client";
import { messageOf } from "../../api/useFetched";
import { Badge } from "../../parts/Badge";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Field } from "../../parts/Field";
import { say, tried } from "../toasts";
import { LENGTH } from "./turns";

type Answer = Schemas["Answer"];
type TurnView = Schemas["TurnView"];

interface Props {
  turn: TurnView;
  answer: Answer;
  onMark: (mark: Schemas["Mark"]) => Promise<void>;
  onCorrect: () => void;
}

/** Makes training rows of an answer: it is right, it is better than the other, or it should have been another. */
export function Marks({ turn, answer, onMark, onCorrect }: Props) {
  const mark = turn.marks[answer.id];
  const isComplete = answer.state === "done" && answer.detail !== LENGTH && answer.text !== "";
  const other = turn.answers.find(({ id }) => id !== answer.id);
  const right = (rejected?: string) => void tried(() => onMark({ turn: turn.id, answer: answer.id, rejected }));
  return (
    <>
      {mark && <Badge tone="good">{mark === "right" ? "training row: right" : "training row: corrected"}</Badge>}
      {isComplete && !mark && (
        <Button look="quiet" small title="Writes the conversation up to here as a training row" onClick={() => right()}>
          This answer is right
        </Button>
      )}
      {isComplete && !mark && other?.text && other.text !== answer.text && (
        <Button look="quiet" small title="Writes a training row and a preference row" onClick={() => right(other.id)}>
          Better than the other
        </Button>
      )}
      <Button look="quiet" small title="Writes how it should have been as training rows" onClick={onCorrect}>
        Correct…
      </Button>
    </>
  );
}

const STAYS = "The conversation stays as it is.";

interface CorrectionProps {
  turn: TurnView;
  answer: Answer;
  onMark: Props["onMark"];
  onClose: () => void;
}

/** How an answer should have been. */
export function Correction({ turn, answer, onMark, onClose }: CorrectionProps) {
  const [text, setText] = useState(answer.text);
  const [problem, setProblem] = useState("");
  const write = async () => {
    try {
      await onMark({ turn: turn.id, answer: answer.id, corrected: text });
      onClose();
    } catch (error) {
      setProblem(messageOf(error));
    }
  };
  return (
    <Dialog
      title="How the answer should have been"
      place="side"
      open
      onClose={onClose}
      onSubmit={(event) => {
        event.preventDefault();
        void write();
      }}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="main" disabled={!text.trim() || text === answer.text}>
            This is how it should have been
          </Button>
        </>
      }
    >
      <p className="note">{turn.question}</p>
      <Field
        label="The right answer"
        hint={`It becomes a training row, and with the model’s answer a preference row. ${STAYS}`}
        error={problem || undefined}
      >
        {(attributes) => (
          <textarea
            {...attributes}
            rows={16}
            value={text}
            autoFocus
            onChange={(event) => setText(event.target.value)}
          />
        )}
      </Field>
    </Dialog>
  );
}

/** Writes training rows, and says where they are. */
export async function writeRows(view: ConversationView, mark: Schemas["Mark"]): Promise<void> {
  const params = { path: { name: view.id } };
  const rows = await data(client.POST("/api/conversations/{name}/rows", { params, body: mark }));
  const places = rows.map(({ file, line, is_new }) => `line ${line} of ${file}${is_new ? "" : ", there already"}`);
  say(`Written: ${places.join("; ")}.`);
}
