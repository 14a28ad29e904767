import { useState } from "react";

import { client, data } from "../../api/client";
import { Button } from "../../parts/Button";
import { Confirm } from "../../parts/Confirm";
import { Dialog } from "../../parts/Dialog";
import { Field } from "../../parts/Field";
import { tried } from "../toasts";
import { type ConversationRow, noteChange, titleOf } from "./ConversationList";

interface Props {
  row: ConversationRow;
  onClose: () => void;
  onDone: () => void;
}

export function RenameConversation({ row, onClose, onDone }: Props) {
  const [title, setTitle] = useState(titleOf(row));
  const rename = () =>
    void tried(async () => {
      const params = { path: { name: row.id } };
      await data(client.POST("/api/conversations/{name}", { params, body: { title: title.trim() } }));
      noteChange();
      onDone();
    });
  return (
    <Dialog
      title="Rename the conversation"
      open
      onClose={onClose}
      onSubmit={rename}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="main" disabled={!title.trim()}>
            Rename
          </Button>
        </>
      }
    >
      <Field label="Title">
        {(attributes) => (
          <input
            {...attributes}
            maxLength={200}
            value={title}
            autoFocus
            onChange={(event) => setTitle(event.target.value)}
          />
        )}
      </Field>
    </Dialog>
  );
}

export function DeleteConversation({ row, onClose, onDone }: Props) {
  const remove = () =>
    void tried(async () => {
      await data(client.DELETE("/api/conversations/{name}", { params: { path: { name: row.id } } }));
      noteChange();
      onDone();
    });
  return (
    <Confirm
      title={`Delete “${titleOf(row)}”?`}
      text="Its questions and answers are deleted from this machine. Training rows that were made from it stay."
      verb="Delete"
      open
      onConfirm={remove}
      onClose={onClose}
    />
  );
}
