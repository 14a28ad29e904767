import { useState } from "react";

import { Button } from "../parts/Button";

interface Props {
  question: string;
  isLast: boolean;
  onAsk: (question: string) => void;
  onCancel: () => void;
}

/** Changes a question. Answers to the old one are lost, and so is what followed; it says so. */
export function QuestionEditor({ question, isLast, onAsk, onCancel }: Props) {
  const [text, setText] = useState(question);
  return (
    <form
      className="question-editor"
      onSubmit={(event) => {
        event.preventDefault();
        if (text.trim()) onAsk(text);
      }}
      onKeyDown={(event) => event.key === "Escape" && onCancel()}
    >
      <textarea
        aria-label="Question"
        rows={Math.min(12, text.split("\n").length + 1)}
        value={text}
        autoFocus
        onChange={(event) => setText(event.target.value)}
      />
      <div className="row">
        <span className="note">
          {isLast ? "The answers are replaced." : "The answers and all later questions are replaced."}
        </span>
        <Button small onClick={onCancel}>
          Cancel
        </Button>
        <Button type="submit" small look="main" disabled={!text.trim()}>
          Ask again
        </Button>
      </div>
    </form>
  );
}
