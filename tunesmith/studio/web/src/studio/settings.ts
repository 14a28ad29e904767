// Settings of this browser.

import { Value } from "../api/value";

export function kept<T extends string>(key: string, initial: T): Value<T> {
  const name = `tunesmith.${key}`;
  let first = initial;
  try {
    first = (localStorage.getItem(name) as T | null) ?? initial;
  } catch {
    // The browser keeps nothing.
  }
  const value = new Value<T>(first);
  value.subscribe(() => {
    try {
      localStorage.setItem(name, value.get());
    } catch {
      // The setting then lasts until the page is closed.
    }
  });
  addEventListener("storage", (event) => event.key === name && value.set((event.newValue as T | null) ?? initial));
  return value;
}

export type Theme = "system" | "light" | "dark";

export const theme = kept<Theme>("theme", "system");
export const notifies = kept<"yes" | "no">("notify", "no");

/** Applies the theme, now and whenever it changes. */
export function followTheme(): void {
  const apply = () => {
    document.documentElement.dataset.theme = theme.get();
  };
  theme.subscribe(apply);
  apply();
}
