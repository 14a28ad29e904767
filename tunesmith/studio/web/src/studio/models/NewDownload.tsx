import { useState } from "react";

import { client, data } from "../../api/client";
import { messageOf } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Field } from "../../parts/Field";

/** Asks the hub for a model. Nothing is sent before the button is pressed. */
export function NewDownload({ onStarted, onClose }: { onStarted: () => void; onClose: () => void }) {
  const [model, setModel] = useState("");
  const [revision, setRevision] = useState("");
  const [file, setFile] = useState("");
  const [problem, setProblem] = useState("");

  const start = async () => {
    try {
      const body = { model: model.trim(), revision: revision.trim() || null, file: file.trim() || null };
      await data(client.POST("/api/models/download", { body }));
      onStarted();
    } catch (error) {
      setProblem(messageOf(error));
    }
  };

  return (
    <Dialog
      title="Download a model"
      open
      onClose={onClose}
      onSubmit={(event) => {
        event.preventDefault();
        void start();
      }}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="main" disabled={!model.trim()}>
            Download
          </Button>
        </>
      }
    >
      <p className="note">This asks huggingface.co for the model. Nothing else of the studio leaves this machine.</p>
      <Field label="Model" hint="Its id on the hub: org/name" error={problem || undefined}>
        {(attributes) => (
          <input
            {...attributes}
            autoFocus
            autoComplete="off"
            spellCheck={false}
            value={model}
            onChange={(event) => setModel(event.target.value)}
          />
        )}
      </Field>
      <Field label="Revision" hint="A branch, tag or commit; empty: the newest">
        {(attributes) => (
          <input {...attributes} value={revision} onChange={(event) => setRevision(event.target.value)} />
        )}
      </Field>
      <Field label="File" hint="One GGUF file; empty: the whole model, as training needs it">
        {(attributes) => <input {...attributes} value={file} onChange={(event) => setFile(event.target.value)} />}
      </Field>
    </Dialog>
  );
}
