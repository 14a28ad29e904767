import type { KeyboardEvent, ReactNode, RefObject } from "react";
import { useEffect, useLayoutEffect, useRef, useState } from "react";

import { Button } from "../parts/Button";

interface Props {
  box: RefObject<HTMLTextAreaElement | null>;
  running: boolean;
  /** The question that ↑ brings back. */
  lastQuestion?: string;
  /** Returns whether the text was taken; if not, it stays in the box. */
  onSend: (text: string) => boolean;
  onStop: () => void;
  children?: ReactNode;
}

/** The message box. `children` stand above it. */
export function Composer({ box, running, lastQuestion, onSend, onStop, children }: Props) {
  const [text, setText] = useState("");
  const stop = useRef<HTMLButtonElement>(null);
  const wasRunning = useRef(running);

  // The box is as high as its text, up to a bound in the style sheet.
  useLayoutEffect(() => {
    const { style, scrollHeight, offsetHeight, clientHeight } = resetHeight(box.current!);
    style.height = `${scrollHeight + offsetHeight - clientHeight}px`;
  }, [box, text]);

  // A button that had the focus may be gone now.
  useEffect(() => {
    if (running !== wasRunning.current && focusIsLost()) (running ? stop : box).current!.focus();
    wasRunning.current = running;
  }, [box, running]);

  const send = () => {
    if (text.trim() && !running && onSend(text)) setText("");
  };

  const typed = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !text && lastQuestion) {
      event.preventDefault();
      setText(lastQuestion);
    }
  };

  return (
    <form
      id="composer"
      aria-label="New message"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      {children}
      <div className="box">
        <textarea
          ref={box}
          id="message"
          rows={1}
          aria-label="Message"
          placeholder="Message"
          autoComplete="off"
          autoFocus
          value={text}
          onChange={(event) => setText(event.target.value)}
          onKeyDown={typed}
        />
        <Button type="submit" id="send" look="main" hidden={running}>
          Send
        </Button>
        <Button ref={stop} id="stop" look="main" hidden={!running} onClick={onStop}>
          Stop
        </Button>
      </div>
      <p className="hint">
        <kbd>Enter</kbd> sends, <kbd>Shift+Enter</kbd> makes a new line, <kbd>Esc</kbd> stops, <kbd>↑</kbd> brings the
        last message back.
      </p>
    </form>
  );
}

function resetHeight(box: HTMLTextAreaElement): HTMLTextAreaElement {
  box.style.height = "auto";
  return box;
}

function focusIsLost(): boolean {
  const focused = document.activeElement as HTMLElement | null;
  return !focused || focused === document.body || focused.hidden;
}
