import { useState } from "react";

/** Text that survives a reload of the page, in this tab, under a name. Without a name it does not. */
export function useDraft(name?: string): [string, (text: string) => void] {
  const place = name === undefined ? null : `tunesmith.draft.${name}`;
  const [text, setText] = useState(() => (place ? read(place) : ""));
  return [
    text,
    (next) => {
      setText(next);
      if (place) write(place, next);
    },
  ];
}

function read(place: string): string {
  try {
    return sessionStorage.getItem(place) ?? "";
  } catch {
    return "";
  }
}

function write(place: string, text: string): void {
  try {
    if (text) sessionStorage.setItem(place, text);
    else sessionStorage.removeItem(place);
  } catch {
    // The browser keeps nothing.
  }
}
