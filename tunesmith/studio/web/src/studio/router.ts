// The address after # is the state of the page: #/runs/ID?tab=data&x=tokens.

import { type MouseEvent, useMemo, useSyncExternalStore } from "react";

export interface Place {
  /** The parts between the slashes, decoded. */
  parts: string[];
  query: URLSearchParams;
}

/** Values of the query; null removes one. */
export type Query = Record<string, string | number | null | undefined>;

const readHash = () => location.hash;

function subscribe(listener: () => void): () => void {
  addEventListener("hashchange", listener);
  return () => removeEventListener("hashchange", listener);
}

export function placeOf(hash: string): Place {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { parts: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query) };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function usePlace(): Place {
  const hash = useSyncExternalStore(subscribe, readHash);
  return useMemo(() => placeOf(hash), [hash]);
}

/** The address of a view. */
export function href(parts: string[], query: Query = {}): string {
  return `#/${parts.map(encodeURIComponent).join("/")}${textOf(query)}`;
}

function textOf(query: Query | URLSearchParams): string {
  const values = query instanceof URLSearchParams ? query : new URLSearchParams(present(query));
  const text = values.toString().replaceAll("%2C", ",");
  return text && `?${text}`;
}

function present(query: Query): Record<string, string> {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return Object.fromEntries(kept.map(([name, value]) => [name, String(value)]));
}

export function go(parts: string[], query: Query = {}): void {
  location.hash = href(parts, query);
}

/** Changes values of the query where the page is. No new entry in the history, so that "back" leaves the view. */
export function setQuery(changes: Query): void {
  const { parts, query } = placeOf(location.hash);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") query.delete(name);
    else query.set(name, String(value));
  }
  history.replaceState(null, "", `#/${parts.map(encodeURIComponent).join("/")}${textOf(query)}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** Whether a click on a link opens it here, and not in a new tab. */
export function opensHere(event: MouseEvent): boolean {
  return event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
}
