// What the studio tells by itself. One tab of the browser, the leader, holds the connection and passes everything on to
// the others: browsers allow a page six connections, so with one for each tab the seventh would hang.

import type { Download, Machine, QueueView, RunEvents, Server } from "./client";
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
  | { kind: "servers"; value: Server[] }
  | { kind: "downloads"; value: Download[] }
  | { kind: "problems"; value: string[] }
  | { kind: "runs"; value: { changed: string[] } }
  | { kind: "conversations"; value: ChangedConversations }
  | { kind: "files"; value: { changed: string[] } }
  | { kind: "run"; value: RunEvents }
  | { kind: "ping"; value: unknown }
  | { kind: "begun"; value: null }
  | { kind: "connected"; value: boolean }
  | { kind: "hello"; value: null };

/** When each was changed, in Unix seconds; null: it is deleted. */
export type ChangedConversations = Record<string, number | null>;

export const machine = new Value<Machine | null>(null);
export const queue = new Value<QueueView | null>(null);
/** The servers of this machine, the oldest first. */
export const servers = new Value<Server[] | null>(null);
/** The downloads that are known, the newest first. */
export const downloads = new Value<Download[] | null>(null);
/** What the studio cannot read. */
export const problems = new Value<string[]>([]);
/** Null until the first attempt has ended. */
export const connected = new Value<boolean | null>(null);
/** Rises with each connection: what was fetched before is then fetched again. */
export const connection = new Value(0);
/** Rises when the list of runs changes. */
export const runsChanged = new Value(0);
/** Rises when a conversation is made, changed or deleted, here or elsewhere. */
export const conversationsChanged = new Value(0);
/** Rises when something comes into the folders of uploads and recipes, or leaves them. */
export const filesChanged = new Value(0);
export const isLeader = new Value(false);

// Pages of another machine have no locks without https. Then each tab has a connection while it is seen.
const channel = navigator.locks && "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
const offsets: Record<string, number> = {};
const runListeners = new Map<string, Set<(events: RunEvents) => void>>();
const changeListeners = new Set<(runs: string[]) => void>();
const conversationListeners = new Set<(changed: ChangedConversations) => void>();
/** What a new tab is told. */
const states = { machine, queue, servers, downloads, problems, connected };
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

/** Calls back when conversations were changed, here or elsewhere. */
export function followConversations(callback: (changed: ChangedConversations) => void): () => void {
  conversationListeners.add(callback);
  return () => conversationListeners.delete(callback);
}

/** Shows what the answer to a change says, unless the stream has said something newer meanwhile. */
export async function answered<T>(value: Value<T>, asked: () => Promise<T>): Promise<void> {
  const before = value.get();
  const answer = await asked();
  if (value.get() === before) value.set(answer);
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
  let hasBegun = false;
  wake = () => {};
  if (!channel) document.addEventListener("visibilitychange", () => document.hidden && ended.abort(), ended);
  try {
    const since = encodeURIComponent(JSON.stringify(offsets));
    const response = await send(new Request(`${base}/api/events?since=${since}`, { signal: ended.signal }));
    if (!response.ok || !response.body) return false;
    for await (const { event, data } of messages(response.body)) {
      // From its first message on the studio tells what changes. What was fetched before is fetched again.
      if (!hasBegun) publish({ kind: "begun", value: null });
      hasBegun = true;
      clearTimeout(silence);
      silence = setTimeout(() => ended.abort(), SILENCE_MS);
      publish({ kind: event, value: JSON.parse(data) } as News);
    }
    return hasBegun;
  } catch {
    return hasBegun;
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
    case "servers":
      return servers.set(news.value);
    case "downloads":
      return downloads.set(news.value);
    case "problems":
      return problems.set(news.value);
    case "runs":
      rise(runsChanged);
      return changeListeners.forEach((listener) => listener(news.value.changed));
    case "conversations":
      rise(conversationsChanged);
      return conversationListeners.forEach((listener) => listener(news.value));
    case "files":
      return rise(filesChanged);
    case "run":
      offsets[news.value.run] = news.value.next;
      return runListeners.get(news.value.run)?.forEach((listener) => listener(news.value));
    case "begun":
      rise(connection);
      return connected.set(true);
    case "connected":
      return connected.set(news.value);
    case "hello":
      return welcome();
  }
}

function rise(times: Value<number>): void {
  times.set(times.get() + 1);
}

/** Tells a new tab the present state. */
function welcome(): void {
  if (!isLeader.get()) return;
  for (const [kind, value] of Object.entries(states)) {
    if (value.get() !== null) channel?.postMessage({ kind, value: value.get() } as News);
  }
}
