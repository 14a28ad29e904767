// What the studio tells by itself. One tab of the browser, the leader, holds the connection and passes everything on to
// the others: browsers allow a page six connections, so with one for each tab the seventh would hang.

import type { Machine, QueueView, RunEvents } from "./client";
import { base, send } from "./http";
import { messages } from "./sse";
import { onNewToken } from "./token";
import { Value } from "./value";

/** The channel and the lock are those of this studio: other ports have their own. */
const NAME = "tunesmith-live";
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
/** The studio says something every two seconds. */
const SILENCE_MS = 15_000;

type News =
  | { kind: "machine"; value: Machine }
  | { kind: "queue"; value: QueueView }
  | { kind: "runs"; value: { changed: string[] } }
  | { kind: "run"; value: RunEvents }
  | { kind: "ping"; value: unknown }
  | { kind: "connected"; value: boolean }
  | { kind: "hello"; value: null };

export const machine = new Value<Machine | null>(null);
export const queue = new Value<QueueView | null>(null);
/** Null until the first attempt has ended. */
export const connected = new Value<boolean | null>(null);
/** Rises with each connection: what was fetched before is then fetched again. */
export const connection = new Value(0);
/** Rises when the list of runs changes. */
export const runsChanged = new Value(0);
export const isLeader = new Value(false);

// Pages of another machine have no locks without https. Then each tab has a connection while it is seen.
const channel = navigator.locks && "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
const offsets: Record<string, number> = {};
const runListeners = new Map<string, Set<(events: RunEvents) => void>>();
const changeListeners = new Set<(runs: string[]) => void>();
let wake = () => {};

/** Calls back with the events of a run as they are written. Returns the function that ends that. */
export function followRun(run: string, callback: (events: RunEvents) => void): () => void {
  const listeners = runListeners.get(run) ?? new Set();
  runListeners.set(run, listeners.add(callback));
  return () => listeners.delete(callback);
}

/** Calls back with the ids of runs that began, ended, came or went. */
export function followChanges(callback: (runs: string[]) => void): () => void {
  changeListeners.add(callback);
  return () => changeListeners.delete(callback);
}

/** Begins to listen. */
export function startLive(): void {
  channel?.addEventListener("message", (message: MessageEvent<News>) => receive(message.data));
  onNewToken(() => wake());
  addEventListener("online", () => wake());
  if (!channel) return void lead();
  channel.postMessage({ kind: "hello", value: null } satisfies News);
  void navigator.locks.request(NAME, lead);
}

/** Tries at once to connect again. */
export function reconnect(): void {
  wake();
}

async function lead(): Promise<never> {
  isLeader.set(true);
  let wait = FIRST_WAIT_MS;
  for (;;) {
    if (!channel) await becomeVisible();
    if (await listen()) wait = FIRST_WAIT_MS;
    if (!channel && document.hidden) continue;
    publish({ kind: "connected", value: false });
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, wait);
      wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }
}

/** Follows one connection to its end. Returns whether there was one. */
async function listen(): Promise<boolean> {
  const ended = new AbortController();
  let silence = setTimeout(() => ended.abort(), SILENCE_MS);
  wake = () => {};
  if (!channel) document.addEventListener("visibilitychange", () => document.hidden && ended.abort(), ended);
  try {
    const since = encodeURIComponent(JSON.stringify(offsets));
    const response = await send(new Request(`${base}/api/events?since=${since}`, { signal: ended.signal }));
    if (!response.ok || !response.body) return false;
    publish({ kind: "connected", value: true });
    for await (const { event, data } of messages(response.body)) {
      clearTimeout(silence);
      silence = setTimeout(() => ended.abort(), SILENCE_MS);
      publish({ kind: event, value: JSON.parse(data) } as News);
    }
    return true;
  } catch {
    return connected.get() === true;
  } finally {
    clearTimeout(silence);
    ended.abort();
  }
}

function becomeVisible(): Promise<void> {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", () => resolve(), { once: true }));
}

function publish(news: News): void {
  channel?.postMessage(news);
  receive(news);
}

function receive(news: News): void {
  switch (news.kind) {
    case "machine":
      return machine.set(news.value);
    case "queue":
      return queue.set(news.value);
    case "runs":
      runsChanged.set(runsChanged.get() + 1);
      return changeListeners.forEach((listener) => listener(news.value.changed));
    case "run":
      offsets[news.value.run] = news.value.next;
      return runListeners.get(news.value.run)?.forEach((listener) => listener(news.value));
    case "connected":
      if (news.value && connected.get() !== true) connection.set(connection.get() + 1);
      return connected.set(news.value);
    case "hello":
      return welcome();
  }
}

/** Tells a new tab the present state. */
function welcome(): void {
  if (!isLeader.get()) return;
  const known: News[] = [];
  if (machine.get()) known.push({ kind: "machine", value: machine.get()! });
  if (queue.get()) known.push({ kind: "queue", value: queue.get()! });
  if (connected.get() !== null) known.push({ kind: "connected", value: connected.get()! });
  for (const news of known) channel?.postMessage(news);
}
