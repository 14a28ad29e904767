// Browser notifications when a job ends or fails. Only the tab that leads shows them, so that each comes once.

import { isLeader, queue } from "../api/live";
import type { JobView } from "../api/client";
import { notifies } from "./settings";

const SAID: Record<string, string> = {
  finished: "has finished",
  failed: "failed",
  interrupted: "was interrupted",
};

export const canNotify = "Notification" in window && isSecureContext;

export function followNotifications(): void {
  let before: Map<number, string> | null = null;
  queue.subscribe(() => {
    const jobs = queue.get()?.jobs ?? [];
    for (const job of jobs) {
      // It may have ended so soon that it was never seen at work.
      if (before && job.state in SAID && !((before.get(job.id) ?? "") in SAID)) notify(job);
    }
    before = new Map(jobs.map((job) => [job.id, job.state]));
  });
}

function notify(job: JobView): void {
  if (notifies.get() !== "yes" || !isLeader.get() || !canNotify || Notification.permission !== "granted") return;
  try {
    const title = `${job.name} ${SAID[job.state]}`;
    const shown = new Notification(title, { body: job.detail, tag: `tunesmith-job-${job.id}`, icon: "./icon.svg" });
    shown.onclick = () => {
      window.focus();
      if (job.run) location.hash = `#/runs/${encodeURIComponent(job.run)}`;
    };
  } catch {
    // Some browsers on phones have the class but refuse to make one.
  }
}

/** Switches notifications on, if the user allows them. Returns whether they are on. */
export async function askToNotify(): Promise<boolean> {
  const answer = await Notification.requestPermission();
  notifies.set(answer === "granted" ? "yes" : "no");
  return answer === "granted";
}
