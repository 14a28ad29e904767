import { useCallback, useEffect, useRef, useState } from "react";

import { Dialog } from "../../parts/Dialog";
import { go } from "../router";
import { ROUTES } from "../routes";

/** How long g waits for the key of a view. */
const SECOND_KEY_MS = 1500;

interface Shortcuts {
  open: boolean;
  show: () => void;
  hide: () => void;
}

/** Keys that work wherever no text is entered: g and the key of a view, / for its search, ? for help. */
export function useShortcuts(): Shortcuts {
  const [open, setOpen] = useState(false);
  const pressedG = useRef(-Infinity);

  useEffect(() => {
    const listener = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || entersText(event.target)) return;
      if (document.querySelector("dialog[open]")) return;
      const route = ROUTES.find(({ key }) => key === event.key);
      if (route && event.timeStamp - pressedG.current < SECOND_KEY_MS) {
        go(route.path ? [route.path] : []);
      } else if (event.key === "?") {
        setOpen(true);
      } else if (event.key === "/") {
        const search = document.querySelector<HTMLElement>("input[type=search]");
        if (!search) return;
        event.preventDefault();
        search.focus();
      }
      pressedG.current = event.key === "g" ? event.timeStamp : -Infinity;
    };
    addEventListener("keydown", listener);
    return () => removeEventListener("keydown", listener);
  }, []);

  return { open, show: useCallback(() => setOpen(true), []), hide: useCallback(() => setOpen(false), []) };
}

function entersText(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
  );
}

export function ShortcutsHelp({ open, onClose }: { open: boolean; onClose: () => void }) {
  return (
    <Dialog title="Keyboard shortcuts" open={open} onClose={onClose}>
      <dl className="keys">
        {ROUTES.map(({ key, title }) => (
          <div key={key}>
            <dt>
              <kbd>g</kbd> <kbd>{key}</kbd>
            </dt>
            <dd>{title}</dd>
          </div>
        ))}
        <div>
          <dt>
            <kbd>/</kbd>
          </dt>
          <dd>Search in this view</dd>
        </div>
        <div>
          <dt>
            <kbd>?</kbd>
          </dt>
          <dd>This help</dd>
        </div>
        <div>
          <dt>
            <kbd>Esc</kbd>
          </dt>
          <dd>Close a dialog</dd>
        </div>
      </dl>
    </Dialog>
  );
}
