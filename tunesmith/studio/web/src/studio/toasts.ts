import { ApiError, isAbort } from "../api/http";
import { messageOf } from "../api/useFetched";
import { Value } from "../api/value";

export interface Toast {
  id: number;
  tone: "bad" | "good";
  text: string;
}

const GOOD_MS = 5000;
let next = 1;

/** What is said at the edge of the page. Bad ones stay until they are closed. */
export const toasts = new Value<Toast[]>([]);

export function say(text: string, tone: Toast["tone"] = "good"): void {
  const id = next++;
  toasts.set([...toasts.get().filter((toast) => toast.text !== text), { id, tone, text }]);
  if (tone === "good") setTimeout(() => close(id), GOOD_MS);
}

export function close(id: number): void {
  toasts.set(toasts.get().filter((toast) => toast.id !== id));
}

/** Says what went wrong. A refused key is said by the page itself. */
export function fail(error: unknown): void {
  if (isAbort(error) || (error instanceof ApiError && error.status === 401)) return;
  say(messageOf(error), "bad");
}

/** Does something and says if it fails. Returns whether it was done. */
export async function tried(action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action();
    return true;
  } catch (error) {
    fail(error);
    return false;
  }
}
