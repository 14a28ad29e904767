import { client, data, type RunView } from "../../api/client";
import { DeleteDialog } from "../DeleteDialog";
import { bytes } from "../numbers";
import { go } from "../router";

/** Deletes a run after a question. */
export function DeleteRun({ view, onClose }: { view: RunView; onClose: () => void }) {
  const { id, name, folder } = view.row;
  const params = { path: { name: id } };
  return (
    <DeleteDialog
      name={name}
      look={(signal) => data(client.GET("/api/runs/{name}/deletion", { params, signal }))}
      remove={() => data(client.DELETE("/api/runs/{name}", { params }))}
      onDeleted={() => go(["runs"])}
      onClose={onClose}
    >
      {(found) => (
        <>
          <p>
            This frees {bytes(found.bytes)}: its checkpoints, result, exports, events and report. It cannot be undone.
          </p>
          <p className="note">The base model and the data stay.</p>
          {!!found.kept?.length && (
            <p className="note">
              In <span className="path">{folder}</span> these stay, as Tunesmith did not write them:{" "}
              {found.kept.join(", ")}.
            </p>
          )}
        </>
      )}
    </DeleteDialog>
  );
}
