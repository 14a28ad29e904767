// What stays in this browser: the settings, and a conversation for each tab. A new tab continues the conversation that
// was changed last. The API key stays only as long as the tab.

import { type ConversationStore, restored } from "./conversationStore";
import type { Settings } from "./types";

const TURNS_PLACE = "tunesmith-chat"; // of the tab's storage and, for new tabs, of the browser's
const SETTINGS_PLACE = "tunesmith-settings";
const KEY_PLACE = "tunesmith-key";

const DEFAULTS: Settings = {
  model: "",
  other: "",
  compare: false,
  system: "",
  temperature: 0.7,
  top_p: 1,
  max_tokens: 512,
  seed: "",
  markdown: true,
};

export const browserConversation: ConversationStore = {
  load: async () => restored(read("sessionStorage", TURNS_PLACE) ?? read("localStorage", TURNS_PLACE)),
  async save(turns) {
    const inTab = write("sessionStorage", TURNS_PLACE, turns);
    const inBrowser = write("localStorage", TURNS_PLACE, turns);
    if (inTab && inBrowser) return "";
    const loss = inTab ? "when this tab is closed" : "when this page is reloaded or closed";
    return `This browser has no room left. The conversation is lost ${loss}.`;
  },
};

export function loadSettings(): Settings {
  return { ...DEFAULTS, ...(read("localStorage", SETTINGS_PLACE) as Partial<Settings> | null) };
}

/** Whether the browser keeps them; it does not where storage is full or switched off. */
export function saveSettings(settings: Settings): boolean {
  return write("localStorage", SETTINGS_PLACE, settings);
}

/** An API key that the user enters. */
export interface KeyStore {
  load: () => string;
  /** Whether it is kept. */
  save: (key: string) => boolean;
}

export const tabKey: KeyStore = {
  load: () => (read("sessionStorage", KEY_PLACE) as string | null) ?? "",
  save: (key) => write("sessionStorage", KEY_PLACE, key),
};

type Place = "sessionStorage" | "localStorage";

function read(storage: Place, place: string): unknown {
  try {
    return JSON.parse(window[storage].getItem(place) ?? "null");
  } catch {
    return null;
  }
}

function write(storage: Place, place: string, value: unknown): boolean {
  try {
    window[storage].setItem(place, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
