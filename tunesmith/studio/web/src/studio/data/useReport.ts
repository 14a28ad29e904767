import { useRef } from "react";

import { client, data, type Schemas } from "../../api/client";
import { type Fetched, useFetched } from "../../api/useFetched";

/** Rows to look at: those of a source, or of a recipe. */
export type Question = Pick<Schemas["DataQuestion"], "source" | "model" | "recipe">;

/** What sources hold. Nothing is downloaded until `download` is called. */
export function useReport(question: Question): Fetched<Schemas["DataReport"][]> & { download: () => void } {
  const mayDownload = useRef(false);
  const fetched = useFetched(JSON.stringify(question), (signal) => {
    const body = { ...question, download: mayDownload.current };
    mayDownload.current = false; // then it is in the cache
    return data(client.POST("/api/data/check", { body, signal }));
  });
  const download = () => {
    mayDownload.current = true;
    fetched.reload();
  };
  return { ...fetched, download };
}
