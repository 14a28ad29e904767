import { useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { filesChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Badge } from "../../parts/Badge";
import { Notice } from "../../parts/Notice";
import { bytes, moment } from "../numbers";

export type Entry = Schemas["Entry"];
export type EntryKind = Entry["kind"];

interface Props {
  /** The kinds that can be picked. Folders are opened. */
  kinds: EntryKind[];
  onPick: (path: string) => void;
}

const OPENED: EntryKind[] = ["folder", "run", "model", "adapter"];
const NAMES: Partial<Record<EntryKind, string>> = { gguf: "GGUF" };

/** The folders of the studio's disk. */
export function FileList({ kinds, onPick }: Props) {
  const [path, setPath] = useState("");
  const changed = useValue(filesChanged);
  const listing = useFetched(`${changed} ${path || "."}`, (signal) =>
    data(client.GET("/api/files", { params: { query: { path: path || "." } }, signal })),
  );
  const found = listing.data;
  return (
    <div className="file-list">
      {found && (
        <div className="where">
          <code>{found.path === "." ? "the studio's folder" : found.path}</code>
          {found.roots.length > 1 && (
            <select
              aria-label="Root folder"
              value={found.roots.includes(found.path) ? found.path : ""}
              onChange={(event) => setPath(event.target.value)}
            >
              <option value="" disabled>
                Go to…
              </option>
              {found.roots.map((root) => (
                <option key={root} value={root}>
                  {root === "." ? "the studio's folder" : root}
                </option>
              ))}
            </select>
          )}
        </div>
      )}
      {listing.error && <Notice tone="bad">{listing.error}</Notice>}
      {found && (
        <ul aria-label="Files" aria-busy={listing.busy}>
          {found.parent !== null && (
            <li>
              <button type="button" onClick={() => setPath(found.parent ?? ".")}>
                <span className="file-name">↑ Up</span>
              </button>
            </li>
          )}
          {found.entries.map((entry) => (
            <li key={entry.path}>
              <Line entry={entry} kinds={kinds} onOpen={() => setPath(entry.path)} onPick={() => onPick(entry.path)} />
            </li>
          ))}
          {!found.entries.length && <li className="note">Nothing is here.</li>}
        </ul>
      )}
      {found?.is_cut && <p className="note">There are more files than are listed. Type the path instead.</p>}
    </div>
  );
}

function Line({
  entry,
  kinds,
  onOpen,
  onPick,
}: {
  entry: Entry;
  kinds: EntryKind[];
  onOpen: () => void;
  onPick: () => void;
}) {
  const canPick = kinds.includes(entry.kind);
  const canOpen = OPENED.includes(entry.kind);
  return (
    <button type="button" disabled={!canPick && !canOpen} onClick={canPick ? onPick : onOpen}>
      <span className="file-name">
        {entry.name}
        {canOpen && "/"}
      </span>
      {!["folder", "other"].includes(entry.kind) && (
        <Badge tone={canPick ? "accent" : "plain"}>{NAMES[entry.kind] ?? entry.kind}</Badge>
      )}
      <span className="note">{entry.bytes === null ? "" : bytes(entry.bytes)}</span>
      <span className="note when">{moment(entry.modified)}</span>
    </button>
  );
}
