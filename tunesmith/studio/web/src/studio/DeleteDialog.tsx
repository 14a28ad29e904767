import type { ReactNode } from "react";

import { useFetched } from "../api/useFetched";
import { Button } from "../parts/Button";
import { Dialog } from "../parts/Dialog";
import { bytes } from "./numbers";
import { say, tried } from "./toasts";

/** What the server says of a deletion, before and after it. */
export interface Deletion {
  bytes: number;
  refusal?: string;
  kept?: string[];
}

interface Props {
  name: string;
  /** Asks what it would free; a fetcher of `useFetched`. */
  look: (signal: AbortSignal) => Promise<Deletion>;
  remove: () => Promise<Deletion>;
  /** What goes, what stays, and whether it can come back. */
  children: (found: Deletion) => ReactNode;
  onDeleted: () => void;
  onClose: () => void;
}

/** Says what deleting something frees and what stays, or why it is refused; then does it. */
export function DeleteDialog({ name, look, remove, children, onDeleted, onClose }: Props) {
  const { data: found, error } = useFetched(`deletion ${name}`, look);
  const submit = async () => {
    const done = await tried(async () => {
      const freed = await remove();
      say(`${name} is deleted; ${bytes(freed.bytes)} are free again.`);
    });
    if (done) onDeleted();
  };

  return (
    <Dialog
      title={`Delete ${name}?`}
      open
      onClose={onClose}
      onSubmit={() => found && !found.refusal && void submit()}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="danger" disabled={!found || !!found.refusal}>
            Delete{found && ` ${bytes(found.bytes)}`}
          </Button>
        </>
      }
    >
      {error && <p className="note bad">{error}</p>}
      {!found && !error && <p className="note">Counting the bytes that this frees…</p>}
      {found?.refusal && <p className="notice warning">It cannot be deleted: {found.refusal}.</p>}
      {found && !found.refusal && children(found)}
    </Dialog>
  );
}
