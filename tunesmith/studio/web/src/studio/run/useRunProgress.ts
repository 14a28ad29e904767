import { useEffect, useState } from "react";

import type { Schemas } from "../../api/client";
import { followRun } from "../../api/live";

type Progress = Schemas["Progress"];

/** How much the newest step counts for the time that is left. */
const NEWEST_SHARE = 0.1;

/** The progress that the server told, kept up to date from the run's events. */
export function useRunProgress(run: string, told: Progress | null): Progress | null {
  const [progress, setProgress] = useState(told);
  useEffect(() => setProgress(told), [told]);
  useEffect(
    () => followRun(run, ({ events }) => setProgress((before) => before && events.reduce<Progress>(after, before))),
    [run],
  );
  return progress;
}

function after(progress: Progress, event: Record<string, unknown>): Progress {
  if (event.event === "stage") return { ...progress, doing: String(event.doing) };
  if (event.event === "start") return { ...progress, steps: event.steps as number };
  if (event.event !== "step") return { ...progress, doing: "" };
  const step = event.step as number;
  const { steps, seconds_left: left } = progress;
  const remaining = steps ? Math.max(0, steps - step) : null;
  const usual = left !== null && remaining !== null ? left / (remaining + 1) : (event.seconds as number);
  const seconds = (1 - NEWEST_SHARE) * usual + NEWEST_SHARE * (event.seconds as number);
  return {
    step,
    steps,
    seconds_left: remaining === null ? null : remaining * seconds,
    loss: event.loss as number | null,
    tokens_per_second: event.tokens_per_second as number,
    doing: "",
  };
}
