import { useEffect, useState } from "react";

import type { Schemas } from "../../api/client";
import { messageOf } from "../../api/useFetched";
import { LogText } from "./LogText";

const POLL_MS = 1000;

interface Props {
  label: string;
  isGrowing: boolean;
  /** Reads from an offset on; at first the end. */
  read: (offset?: number) => Promise<Schemas["Log"]>;
}

/** A log that is followed while it grows. It begins anew with another key. */
export function FollowedLog({ label, isGrowing, read }: Props) {
  const [text, setText] = useState<string | null>(null);
  const [error, setError] = useState("");

  useEffect(() => {
    let timer = 0;
    let offset: number | undefined;
    let isOver = false;
    const next = async () => {
      try {
        const part = await read(offset);
        if (isOver) return;
        const begins = offset === undefined;
        offset = part.offset;
        setText((before) => (begins ? part.text : (before ?? "") + part.text));
        setError("");
      } catch (problem) {
        if (!isOver) setError(messageOf(problem));
      }
      if (!isOver && isGrowing) timer = window.setTimeout(next, POLL_MS);
    };
    void next();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
    // The reader is a new function with each rendering; the key says when it reads something else.
  }, [isGrowing]);

  if (error) return <p className="note bad">{error}</p>;
  if (text === null) return <p className="note">Reading…</p>;
  return text ? <LogText text={text} label={label} /> : <p className="note">It has written nothing.</p>;
}
