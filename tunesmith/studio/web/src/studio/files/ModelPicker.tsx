import { useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Badge } from "../../parts/Badge";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Notice } from "../../parts/Notice";
import { bytes, integer } from "../numbers";

type Model = Schemas["ModelRow"];

interface Props {
  value: string;
  onChange: (path: string) => void;
  /** With it, what is typed counts only after Enter or when the box is left. */
  onTyped?: (text: string) => void;
  attributes: { id: string; "aria-describedby"?: string; "aria-invalid"?: boolean };
}

/** A model: typed as a folder, a GGUF file or a hub id, or chosen among those of this machine. */
export function ModelPicker({ value, onChange, onTyped, attributes }: Props) {
  const [isOpen, setOpen] = useState(false);
  return (
    <div className="row">
      <input
        {...attributes}
        value={value}
        placeholder="Folder, GGUF file, or org/name of the hub"
        spellCheck={false}
        autoComplete="off"
        onChange={(event) => (onTyped ?? onChange)(event.target.value)}
        onBlur={onTyped && ((event) => onChange(event.target.value))}
        onKeyDown={onTyped && ((event) => event.key === "Enter" && onChange(event.currentTarget.value))}
      />
      <Button onClick={() => setOpen(true)}>Choose</Button>
      <Dialog title="Models of this machine" open={isOpen} onClose={() => setOpen(false)} place="side">
        <Models
          onPick={(path) => {
            setOpen(false);
            onChange(path);
          }}
        />
      </Dialog>
    </div>
  );
}

function Models({ onPick }: { onPick: (path: string) => void }) {
  const [search, setSearch] = useState("");
  const models = useFetched("models", (signal) => data(client.GET("/api/models", { signal })));
  const found = models.data?.filter(({ path, architecture }) =>
    `${path} ${architecture ?? ""}`.toLowerCase().includes(search.trim().toLowerCase()),
  );
  return (
    <div className="file-list">
      <input
        type="search"
        aria-label="Search models"
        placeholder="Search"
        value={search}
        onChange={(event) => setSearch(event.target.value)}
      />
      {models.error && <Notice tone="bad">{models.error}</Notice>}
      {!models.data && models.busy && <p className="note">Looking for models…</p>}
      {models.data?.length === 0 && <p className="note">No model is in the studio's folders or in the hub's cache.</p>}
      {found && (
        <ul aria-label="Models">
          {found.map((model) => (
            <li key={model.id}>
              <button
                type="button"
                className="two-lines"
                disabled={!model.is_complete}
                onClick={() => onPick(model.path)}
              >
                <span className="file-name">{model.path}</span>
                <Badge tone={model.kind === "result" ? "accent" : "plain"}>
                  {model.kind === "gguf" ? "GGUF" : model.kind}
                </Badge>
                <span className="note">{facts(model)}</span>
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

function facts({ bytes: size, architecture, context, licence, quantized, is_complete }: Model): string {
  const known = [
    bytes(size),
    architecture,
    context === null ? null : `${integer(context)} tokens`,
    quantized,
    licence,
    is_complete ? null : "has no weights",
  ];
  return known.filter(Boolean).join(" · ");
}
