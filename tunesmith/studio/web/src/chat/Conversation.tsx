import { type ReactNode, type RefObject, useRef } from "react";

import { Notice } from "../parts/Notice";
import { Composer } from "./Composer";
import { type TurnActions, TurnView } from "./TurnView";
import type { Model, Turn } from "./types";
import { useFollowedEnd } from "./useFollowedEnd";

interface Props {
  turns: Turn[];
  models: Model[];
  asMarkdown: boolean;
  running: boolean;
  actions: TurnActions;
  /** Stands where there are no turns yet. */
  welcome: ReactNode;
  /** What the user must see above the message box. */
  notice: string;
  /** For a screen reader. */
  status: string;
  /** `section` in a page whose main part is more than the conversation. */
  landmark?: "main" | "section";
  box: RefObject<HTMLTextAreaElement | null>;
  /** Under which name a message that is not sent yet survives a reload of the page; without one it does not. */
  draft?: string;
  /** Why images cannot be added to a message; empty if they can. Undefined: this chat has none. */
  imageRefusal?: string;
  /** Says whether the message was taken; if not, it stays in the box. */
  onSend: (text: string, images: string[]) => boolean | Promise<boolean>;
  onStop: () => void;
}

/** Questions, answers, and the box for the next question. */
export function Conversation({ landmark: Pane = "main", ...props }: Props) {
  const { turns, models, running, notice } = props;
  const pane = useRef<HTMLElement>(null);
  const goToEnd = useFollowedEnd(pane, turns);

  const send = (text: string, images: string[]) => {
    goToEnd();
    return props.onSend(text, images);
  };

  return (
    <>
      <Pane ref={pane} id="conversation" aria-label="Conversation" tabIndex={0}>
        {turns.map((turn, at) => (
          <TurnView
            key={at}
            turn={turn}
            at={at}
            last={at === turns.length - 1}
            running={running}
            models={models}
            asMarkdown={props.asMarkdown}
            actions={props.actions}
          />
        ))}
        {!turns.length && props.welcome}
      </Pane>
      <p id="status" className="unseen" role="status">
        {props.status}
      </p>
      <Composer
        key={props.draft}
        box={props.box}
        running={running}
        lastQuestion={turns.at(-1)?.question}
        draft={props.draft}
        imageRefusal={props.imageRefusal}
        onSend={send}
        onStop={props.onStop}
      >
        {notice && (
          <Notice id="notice" tone="bad">
            {notice}
          </Notice>
        )}
      </Composer>
    </>
  );
}
