import { client, data, type ModelRow } from "../../api/client";
import { DeleteDialog } from "../DeleteDialog";
import { bytes } from "../numbers";

interface Props {
  model: ModelRow;
  onDeleted: () => void;
  onClose: () => void;
}

/** Deletes a model's files after a question. */
export function DeleteModel({ model: { id, name, path, kind }, onDeleted, onClose }: Props) {
  const params = { path: { id } };
  return (
    <DeleteDialog
      name={name}
      look={(signal) => data(client.GET("/api/models/{id}/deletion", { params, signal }))}
      remove={() => data(client.DELETE("/api/models/{id}", { params }))}
      onDeleted={onDeleted}
      onClose={onClose}
    >
      {(found) => (
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
    </DeleteDialog>
  );
}
