import { Badge, type Tone } from "../../parts/Badge";

const TONES: Record<string, Tone> = {
  running: "accent",
  starting: "accent",
  paused: "warning",
  stopping: "warning",
  interrupted: "warning",
  failed: "bad",
  finished: "good",
};

export function JobState({ state }: { state: string }) {
  return <Badge tone={TONES[state] ?? "plain"}>{state}</Badge>;
}

export const AT_WORK = ["starting", "running", "paused", "stopping"];
export const WAITING = ["waiting", "held"];
