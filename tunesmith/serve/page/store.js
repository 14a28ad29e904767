// What stays in this browser: the settings, and a conversation for each tab. A new tab continues the conversation
// that was changed last. The API key stays only as long as the tab.
//
// A turn is {question, system, seed, kept, answers}; the conversation goes on from the answer with the index `kept`.
// An answer is {model, text, thought, state, note, figures}; `state` is "running", "done", "stopped" or "failed".

const TURNS_PLACE = "tunesmith-chat"; // of the tab's storage and, for new tabs, of the browser's
const SETTINGS_PLACE = "tunesmith-settings";
const KEY_PLACE = "tunesmith-key";

export const LEFT = "Stopped: the page was left.";

const DEFAULTS = {
  model: "", other: "", compare: false, system: "", temperature: 0.7, top_p: 1, max_tokens: 512, seed: "",
  markdown: true,
};

export function load() {
  const kept = read(sessionStorage, TURNS_PLACE) ?? read(localStorage, TURNS_PLACE);
  const turns = (Array.isArray(kept) ? kept : []).filter(turn => turn?.answers?.[turn.kept]);
  for (const answer of turns.flatMap(turn => turn.answers)) {
    if (answer.state !== "running") continue;
    answer.state = "stopped";
    answer.note = LEFT;
  }
  return { settings: { ...DEFAULTS, ...read(localStorage, SETTINGS_PLACE) }, turns };
}

/** Whether the tab and the browser keep them; they do not where storage is full or switched off. */
export function saveTurns(turns) {
  return { tab: write(sessionStorage, TURNS_PLACE, turns), browser: write(localStorage, TURNS_PLACE, turns) };
}

export function saveSettings(settings) {
  return write(localStorage, SETTINGS_PLACE, settings);
}

export function loadKey() {
  return read(sessionStorage, KEY_PLACE) ?? "";
}

export function saveKey(key) {
  return write(sessionStorage, KEY_PLACE, key);
}

function read(storage, place) {
  try {
    return JSON.parse(storage.getItem(place));
  } catch {
    return null;
  }
}

function write(storage, place, value) {
  try {
    storage.setItem(place, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
