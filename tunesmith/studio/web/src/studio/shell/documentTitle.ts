import { useEffect } from "react";

import { queue } from "../../api/live";
import { useValue, Value } from "../../api/value";
import { percent } from "../numbers";

export const pageTitle = new Value("");

/** The title of the window: how far the job at work is, then the view. */
export function useDocumentTitle(): void {
  const title = useValue(pageTitle);
  const view = useValue(queue);
  const job = view?.jobs.find(({ progress }) => progress?.steps);
  const progress = job?.progress?.steps ? `${percent(job.progress.step / job.progress.steps)} · ${job.name} · ` : "";

  useEffect(() => {
    document.title = `${progress}${title} · Tunesmith`;
  }, [progress, title]);
}
