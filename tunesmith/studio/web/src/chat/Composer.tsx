import type { ClipboardEvent, DragEvent, KeyboardEvent, ReactNode, RefObject } from "react";
import { useEffect, useLayoutEffect, useRef, useState } from "react";

import { Button } from "../parts/Button";
import { Notice } from "../parts/Notice";
import { useDraft } from "./useDraft";

interface Props {
  box: RefObject<HTMLTextAreaElement | null>;
  running: boolean;
  /** The question that ↑ brings back. */
  lastQuestion?: string;
  /** Under which name the text survives a reload of the page; without one it does not. */
  draft?: string;
  /** Why images cannot be added; empty if they can. Undefined: this chat has none. */
  imageRefusal?: string;
  /** Says whether the message was taken; if not, it stays in the box. Images are data URLs. */
  onSend: (text: string, images: string[]) => boolean | Promise<boolean>;
  onStop: () => void;
  children?: ReactNode;
}

interface Image {
  name: string;
  url: string;
}

/** The message box. `children` stand above it. */
export function Composer({ box, running, lastQuestion, draft, imageRefusal, onSend, onStop, children }: Props) {
  const [text, setText] = useDraft(draft);
  const [images, setImages] = useState<Image[]>([]);
  const [problem, setProblem] = useState("");
  const [sending, setSending] = useState(false);
  const picker = useRef<HTMLInputElement>(null);
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

  const send = async () => {
    if (!text.trim() || running || sending) return;
    const taken = onSend(
      text,
      images.map(({ url }) => url),
    );
    if (taken instanceof Promise) setSending(true);
    if (await taken) {
      setText("");
      setImages([]);
    }
    setSending(false);
  };

  const typed = (event: KeyboardEvent) => {
    if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
      event.preventDefault();
      void send();
    } else if (event.key === "ArrowUp" && !text && lastQuestion) {
      event.preventDefault();
      setText(lastQuestion);
    }
  };

  const addDropped = (event: ClipboardEvent | DragEvent, files: FileList) => {
    if (imageRefusal === undefined || ![...files].some(isImage)) return;
    event.preventDefault();
    void add(files);
  };

  const add = async (files: FileList) => {
    setProblem(imageRefusal ?? "");
    if (imageRefusal) return;
    const added = [...files].filter(isImage);
    const read = await Promise.all(added.map(async (file) => ({ name: file.name, url: await dataUrl(file) })));
    setImages((before) => [...before, ...read]);
  };

  return (
    <form
      id="composer"
      aria-label="New message"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
      onDragOver={(event) => imageRefusal !== undefined && event.preventDefault()}
      onDrop={(event) => addDropped(event, event.dataTransfer.files)}
    >
      {children}
      {problem && <Notice tone="bad">{problem}</Notice>}
      {images.length > 0 && (
        <ul className="images" aria-label="Images">
          {images.map(({ name }, at) => (
            <li key={at}>
              {name}
              <Button
                look="quiet"
                small
                aria-label={`Remove ${name}`}
                onClick={() => setImages(images.filter((_, other) => other !== at))}
              >
                ✕
              </Button>
            </li>
          ))}
        </ul>
      )}
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
          onChange={(event) => {
            setText(event.target.value);
            setProblem("");
          }}
          onKeyDown={typed}
          onPaste={(event) => addDropped(event, event.clipboardData.files)}
        />
        {imageRefusal !== undefined && (
          <>
            <input
              ref={picker}
              type="file"
              accept="image/*"
              multiple
              hidden
              onChange={({ target }) => {
                if (target.files) void add(target.files);
                target.value = ""; // so that the same file can be chosen again
              }}
            />
            <Button
              look="quiet"
              className="attach"
              aria-label="Add an image"
              title="Add an image"
              hidden={running}
              onClick={() => (imageRefusal ? setProblem(imageRefusal) : picker.current!.click())}
            >
              +
            </Button>
          </>
        )}
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

const isImage = ({ type }: File) => type.startsWith("image/");

function dataUrl(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result as string);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function resetHeight(box: HTMLTextAreaElement): HTMLTextAreaElement {
  box.style.height = "auto";
  return box;
}

function focusIsLost(): boolean {
  const focused = document.activeElement as HTMLElement | null;
  return !focused || focused === document.body || focused.hidden;
}
