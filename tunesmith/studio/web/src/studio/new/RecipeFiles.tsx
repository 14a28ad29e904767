import { type FormEvent, useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { ApiError } from "../../api/http";
import { filesChanged } from "../../api/live";
import { messageOf, useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { Field } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { moment } from "../numbers";

interface OpenProps {
  open: boolean;
  /** Gets the id of a recipe. */
  onPick: (id: string) => void;
  onClose: () => void;
}

/** Opens a recipe of the studio's folders. */
export function OpenDialog({ open, onPick, onClose }: OpenProps) {
  const changed = useValue(filesChanged);
  const recipes = useFetched(open ? `recipes ${changed}` : null, (signal) =>
    data(client.GET("/api/recipes", { signal })),
  );
  return (
    <Dialog title="Open a recipe" open={open} onClose={onClose} place="side">
      <div className="file-list">
        {recipes.error && <Notice tone="bad">{recipes.error}</Notice>}
        {recipes.data?.length === 0 && <p className="note">The studio's folders have no recipe yet.</p>}
        {!!recipes.data?.length && (
          <ul aria-label="Recipes">
            {recipes.data.map(({ id, path, modified }) => (
              <li key={id}>
                <button type="button" className="two-lines" onClick={() => onPick(id)}>
                  <span className="file-name">{path}</span>
                  <span className="note">{moment(modified)}</span>
                </button>
              </li>
            ))}
          </ul>
        )}
      </div>
    </Dialog>
  );
}

interface SaveProps {
  open: boolean;
  yaml: string;
  /** Of the file that the recipe was last read from or saved in. */
  version: string;
  name: string;
  onSaved: (file: Schemas["RecipeFile"]) => void;
  onClose: () => void;
}

/** Saves the recipe's text in the studio's folder of recipes. */
export function SaveDialog({ open, yaml, version, name, onSaved, onClose }: SaveProps) {
  const [typed, setTyped] = useState<string | null>(null);
  const [error, setError] = useState("");
  const [isOther, setOther] = useState(false);
  const save = async (replace: boolean) => {
    setError("");
    setOther(false);
    try {
      onSaved(await data(client.POST("/api/recipes", { body: { name: typed ?? name, yaml, version, replace } })));
    } catch (problem) {
      setError(messageOf(problem));
      setOther(problem instanceof ApiError && problem.status === 409);
    }
  };
  const rename = (next: string) => {
    setTyped(next);
    setError("");
    setOther(false);
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    void save(false);
  };
  return (
    <Dialog
      title="Save the recipe"
      open={open}
      onClose={onClose}
      onSubmit={submit}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          {isOther && (
            <Button look="danger" onClick={() => void save(true)}>
              Save over it
            </Button>
          )}
          <Button type="submit" look="main">
            Save
          </Button>
        </>
      }
    >
      <Field label="Name" hint="Saved as recipes/NAME.yaml" error={error || undefined}>
        {(attributes) => (
          <input {...attributes} value={typed ?? name} onChange={(event) => rename(event.target.value)} />
        )}
      </Field>
    </Dialog>
  );
}
