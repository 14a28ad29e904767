import { useEffect } from "react";

/** Escape does something, unless it closes a dialog. */
export function useEscape(action: (() => void) | null): void {
  useEffect(() => {
    if (!action) return;
    const listener = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) action();
    };
    document.addEventListener("keydown", listener);
    return () => document.removeEventListener("keydown", listener);
  });
}
