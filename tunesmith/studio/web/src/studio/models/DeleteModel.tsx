import { client, data, type ModelRow } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { bytes } from "../numbers";
import { say, tried } from "../toasts";

interface Props {
  model: ModelRow;
  onDeleted: () => void;
  onClose: () => void;
}

/** Says what deleting a model frees and what stays, or why it is refused. */
export function DeleteModel({ model: { id, name, path, kind }, onDeleted, onClose }: Props) {
  const params = { path: { id } };
  const { data: found, error } = useFetched(`deletion ${id}`, (signal) =>
    data(client.GET("/api/models/{id}/deletion", { params, signal })),
  );
  const remove = () =>
    void tried(async () => {
      const freed = await data(client.DELETE("/api/models/{id}", { params }));
      say(`${name} is deleted; ${bytes(freed.bytes)} are free again.`);
      onDeleted();
    });

  return (
    <Dialog
      title={`Delete ${name}?`}
      open
      onClose={onClose}
      onSubmit={() => found && !found.refusal && remove()}
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
      {!found && !error && <p className="note">Looking what that frees…</p>}
      {found?.refusal && <p className="notice warning">It cannot be deleted: {found.refusal}.</p>}
      {found && !found.refusal && (
        <>
          <p>
            This frees {bytes(found.bytes)}.{" "}
            {kind === "hub" ? "It can be downloaded again from the hub." : "It cannot be undone."}
          </p>
          <p className="note">{path}</p>
          {!!found.kept?.length && (
            <p className="note">These files are not the model’s, and stay: {found.kept.join(", ")}.</p>
          )}
        </>
      )}
    </Dialog>
  );
}
