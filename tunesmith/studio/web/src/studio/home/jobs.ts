import { client, data, type Schemas } from "../../api/client";
import { queue } from "../../api/live";
import { tried } from "../toasts";

export type Verb = "pause" | "resume" | "hold" | "release" | "cancel" | "retry" | "move";
type Values = Partial<Schemas["Change"]>;

/** Asks something of a job, and shows the queue as it is then. */
export function askJob(number: number, verb: Verb, values: Values = {}): Promise<boolean> {
  const body = { now: false, before: null, priority: null, ...values };
  return tried(async () =>
    queue.set(await data(client.POST("/api/jobs/{number}/{verb}", { params: { path: { number, verb } }, body }))),
  );
}

export function askQueue(verb: "pause" | "resume"): Promise<boolean> {
  return tried(async () =>
    queue.set(await data(verb === "pause" ? client.POST("/api/queue/pause") : client.POST("/api/queue/resume"))),
  );
}

export function setAfterRestart(after_restart: boolean): Promise<boolean> {
  const before = queue.get();
  if (before) queue.set({ ...before, after_restart }); // shown at once; the answer says how it is
  return tried(async () => queue.set(await data(client.POST("/api/queue/settings", { body: { after_restart } }))));
}
