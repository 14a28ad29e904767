import { useEffect, useMemo } from "react";

import { client, data } from "../../api/client";
import { useValue } from "../../api/value";
import { usePlace } from "../router";
import { Draft } from "./draft";

/** The draft of the recipe that the address names: of a run, of a recipe's file, or a new one. Data and a model in the
 *  address are put in. */
export function useDraft() {
  const { query } = usePlace();
  const [run, recipe, file, model] = ["from", "recipe", "data", "model"].map((name) => query.get(name) ?? "");
  const origin = run ? `run ${run}` : recipe ? `recipe ${recipe}` : file || model ? `data ${file} ${model}` : "";
  const draft = useMemo(() => new Draft(origin), [origin]);

  const source = async (): Promise<string | null> => {
    if (run) {
      const found = await data(client.GET("/api/runs/{name}/again", { params: { path: { name: run } } }));
      return found.yaml;
    }
    if (recipe) {
      const found = await data(client.GET("/api/recipes/{id}", { params: { path: { id: recipe } } }));
      draft.version = found.version;
      return found.yaml;
    }
    if (!file && !model) return null;
    const values = { ...(model && { model: { path: model } }), ...(file && { data: { train: [{ path: file }] } }) };
    return (await data(client.POST("/api/recipe/check", { body: { yaml: null, values } }))).yaml;
  };

  useEffect(() => {
    void draft.begin(source);
    return () => draft.leave();
    // A draft has one source.
  }, [draft]);

  return { draft, state: useValue(draft.state), source, run };
}
