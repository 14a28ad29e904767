import { client, data, type Schemas } from "../../api/client";
import { answered, queue } from "../../api/live";
import { tried } from "../toasts";

export type Verb = "pause" | "resume" | "hold" | "release" | "cancel" | "retry" | "move";
type Values = Partial<Schemas["Change"]>;

/** Asks something of a job, and shows the queue as it is then. */
export function askJob(number: number, verb: Verb, values: Values = {}): Promise<boolean> {
  const body = { now: false, before: null, priority: null, ...values };
  const params = { path: { number, verb } };
  return tried(() => answered(queue, () => data(client.POST("/api/jobs/{number}/{verb}", { params, body }))));
}

export function askQueue(verb: "pause" | "resume"): Promise<boolean> {
  const url = verb === "pause" ? "/api/queue/pause" : "/api/queue/resume";
  return tried(() => answered(queue, () => data(client.POST(url))));
}

export function setAfterRestart(after_restart: boolean): Promise<boolean> {
  const before = queue.get();
  if (before) queue.set({ ...before, after_restart }); // shown at once; the answer says how it is
  return tried(() => answered(queue, () => data(client.POST("/api/queue/settings", { body: { after_restart } }))));
}
