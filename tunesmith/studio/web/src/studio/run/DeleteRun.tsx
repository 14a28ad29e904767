import { client, data, type RunView } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { bytes } from "../numbers";
import { go } from "../router";
import { say, tried } from "../toasts";

/** Says what deleting a run frees and what stays, then does it. */
export function DeleteRun({ view, onClose }: { view: RunView; onClose: () => void }) {
  const { id, name, folder } = view.row;
  const params = { path: { name: id } };
  const { data: found, error } = useFetched(`deletion ${id}`, (signal) =>
    data(client.GET("/api/runs/{name}/deletion", { params, signal })),
  );
  const remove = async () => {
    const done = await tried(async () => {
      const freed = await data(client.DELETE("/api/runs/{name}", { params }));
      say(`${name} is deleted; ${bytes(freed.bytes)} are free again.`);
    });
    if (done) go(["runs"]);
  };

  return (
    <Dialog
      title={`Delete ${name}?`}
      open
      onClose={onClose}
      onSubmit={() => found && !found.refusal && void remove()}
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
    </Dialog>
  );
}
