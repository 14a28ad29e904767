import { type KeyboardEvent, type ReactNode, useRef } from "react";

import { setQuery } from "../router";

export interface Tab {
  key: string;
  title: string;
  show: () => ReactNode;
}

/** Tabs as screen readers expect them: one stop of the Tab key, arrows between them. */
export function Tabs({ tabs, here }: { tabs: Tab[]; here: string }) {
  const list = useRef<HTMLDivElement>(null);
  const move = (event: KeyboardEvent) => {
    const now = tabs.findIndex(({ key }) => key === here);
    const places: Record<string, number> = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tabs.length - 1 };
    const next = places[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const at = (next + tabs.length) % tabs.length;
    open(tabs[at]!.key);
    list.current?.querySelectorAll<HTMLElement>("[role=tab]")[at]?.focus();
  };
  return (
    <div className="tabs" role="tablist" aria-label="Parts of the run" ref={list} onKeyDown={move}>
      {tabs.map(({ key, title }) => (
        <button
          key={key}
          type="button"
          role="tab"
          id={`tab-${key}`}
          aria-selected={key === here}
          aria-controls={key === here ? "tabpanel" : undefined}
          tabIndex={key === here ? 0 : -1}
          onClick={() => open(key)}
        >
          {title}
        </button>
      ))}
    </div>
  );
}

const open = (tab: string) => setQuery({ tab: tab === "curves" ? null : tab });
