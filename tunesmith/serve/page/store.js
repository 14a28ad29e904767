// What stays in this browser: the conversation and the settings. The API key stays only as long as the tab.
//
// A turn is {question, system, seed, kept, answers}; the conversation goes on from the answer with the index `kept`.
// An answer is {model, text, thought, state, note, figures}; `state` is "running", "done", "stopped" or "failed".

const PLACE = "tunesmith-chat";
const KEY_PLACE = "tunesmith-key";

const DEFAULTS = {
  model: "", other: "", compare: false, system: "", temperature: 0.7, top_p: 1, max_tokens: 512, seed: "",
  markdown: true,
};

export function load() {
  const kept = read(localStorage, PLACE) ?? {};
  const turns = (Array.isArray(kept.turns) ? kept.turns : []).filter(turn => turn?.answers?.[turn.kept]);
  for (const answer of turns.flatMap(turn => turn.answers)) {
    if (answer.state === "running") answer.state = "stopped"; // the page was left while it came
  }
  return { settings: { ...DEFAULTS, ...kept.settings }, turns };
}

/** Whether the browser keeps it; it does not where storage is full or switched off. */
export function save(state) {
  return write(localStorage, PLACE, state);
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
