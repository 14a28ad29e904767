import { type DragEvent, type ReactNode, useEffect, useId, useRef, useState } from "react";

import { isAbort } from "../../api/http";
import { messageOf } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import { bytes, percent } from "../numbers";
import { upload, type Upload } from "./upload";

interface Props {
  /** Gets the path by which recipes name the file. */
  onUploaded: (path: string) => void;
  children?: ReactNode;
}

interface Running {
  name: string;
  size: number;
  share: number;
}

/** Takes a file of the browser's machine, dropped or chosen, and sends it to the studio's disk. */
export function DropZone({ onUploaded, children }: Props) {
  const [isOver, setOver] = useState(false);
  const [running, setRunning] = useState<Running | null>(null);
  const [error, setError] = useState("");
  const current = useRef<Upload | null>(null);
  const input = useId();
  useEffect(() => () => current.current?.stop(), []);

  const send = async (file: File | undefined) => {
    if (!file || running) return;
    setError("");
    setRunning({ name: file.name, size: file.size, share: 0 });
    current.current = upload(file, (share) => setRunning({ name: file.name, size: file.size, share }));
    try {
      onUploaded((await current.current.done).path);
    } catch (problem) {
      if (!isAbort(problem)) setError(messageOf(problem));
    } finally {
      setRunning(null);
    }
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    void send(event.dataTransfer.files[0]);
  };

  return (
    <div
      className={`drop ${isOver ? "over" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      {running ? (
        <div className="sending">
          <p>
            <b>{running.name}</b>{" "}
            <span className="note">
              {bytes(running.size)}, {percent(running.share)} sent
            </span>
          </p>
          <progress aria-label={`Upload of ${running.name}`} max={1} value={running.share} />
          <Button small onClick={() => current.current?.stop()}>
            Stop
          </Button>
        </div>
      ) : (
        <p className="note">
          Drop a file of this computer here, or{" "}
          <label htmlFor={input} className="link">
            choose one
          </label>
          <input id={input} type="file" className="unseen" onChange={(event) => void send(event.target.files?.[0])} />.
          It is copied to <code>uploads/</code> on the studio's disk.
        </p>
      )}
      {error && <Notice tone="bad">{error}</Notice>}
      {children}
    </div>
  );
}
