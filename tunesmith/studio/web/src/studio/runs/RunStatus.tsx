import type { RunRow } from "../../api/client";
import { Badge, type Tone } from "../../parts/Badge";

/** The status of a run's summary in words, and its tone. */
const STATES: Record<string, [string, Tone]> = {
  "not started": ["not started", "plain"],
  running: ["running", "accent"],
  paused: ["paused", "warning"],
  finishing: ["finishing", "accent"],
  "cut off": ["cut off", "warning"],
  done: ["finished", "good"],
  max_minutes: ["finished, time limit", "good"],
  max_tokens: ["finished, token limit", "good"],
  early_stopping: ["finished early", "good"],
  interrupted: ["stopped", "warning"],
  not_finite: ["broken: loss not finite", "bad"],
  diverged: ["diverged", "bad"],
  out_of_memory: ["out of memory", "bad"],
  error: ["failed", "bad"],
  no_room: ["waits for memory", "warning"],
};

export function statusText(run: RunRow): string {
  return STATES[run.status]?.[0] ?? run.status;
}

export function RunStatus({ run }: { run: RunRow }) {
  const [text, tone] = STATES[run.status] ?? [run.status, "plain"];
  return <Badge tone={tone}>{text}</Badge>;
}
