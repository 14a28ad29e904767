import { type ChangeEvent, type UIEvent, useRef } from "react";

import { Badge } from "../../parts/Badge";
import { Button } from "../../parts/Button";
import { CopyButton } from "../../parts/CopyButton";
import { Prose } from "../../parts/Prose";
import type { Draft, DraftState } from "./draft";

interface Props {
  draft: Draft;
  state: DraftState;
  /** Shows the field of a problem. */
  onProblem: (key: string) => void;
}

/** The recipe as YAML, with numbered lines; those with problems are marked, and say them below. */
export function YamlPane({ draft, state, onProblem }: Props) {
  const gutter = useRef<HTMLDivElement>(null);
  const marked = new Set(state.problems.map((problem) => problem.line));
  const isBegun = state.yaml.trim() !== "";
  const problems = isBegun ? [...state.problems].sort((one, other) => (one.line ?? 0) - (other.line ?? 0)) : [];
  const lines = state.yaml.split("\n").length;

  const scrolled = (event: UIEvent<HTMLTextAreaElement>) => {
    if (gutter.current) gutter.current.scrollTop = event.currentTarget.scrollTop;
  };
  return (
    <section className="pane yaml-pane" aria-labelledby="yaml-title">
      <header>
        <h2 id="yaml-title">YAML</h2>
        {!state.isReadable && <Badge tone="bad">not read yet: the form shows what was</Badge>}
        <CopyButton text={state.yaml} label="Copy the YAML" />
      </header>
      <div className="editor">
        <div className="gutter" ref={gutter} aria-hidden="true">
          {Array.from({ length: lines }, (_, at) => (
            <span key={at} className={marked.has(at + 1) ? "wrong" : ""}>
              {at + 1}
            </span>
          ))}
        </div>
        <textarea
          aria-label="The recipe as YAML"
          aria-describedby="yaml-problems"
          wrap="off"
          spellCheck={false}
          autoCapitalize="off"
          autoComplete="off"
          value={state.yaml}
          onScroll={scrolled}
          onChange={(event: ChangeEvent<HTMLTextAreaElement>) => draft.setText(event.target.value)}
        />
      </div>
      {state.withComments !== null && (
        <p className="lost">
          The form could not keep the comments of the YAML.{" "}
          <Button small look="quiet" onClick={() => draft.setText(state.withComments!)}>
            Restore the earlier text
          </Button>
        </p>
      )}
      <ul id="yaml-problems" className="yaml-problems" aria-label="Problems">
        {problems.map(({ key, message, line }) => (
          <li key={key + message}>
            <button type="button" disabled={!key} title={key && "Show the field"} onClick={() => onProblem(key)}>
              {line && <b>{line}: </b>}
              <Prose text={message} />
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
