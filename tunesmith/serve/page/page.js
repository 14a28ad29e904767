// The chat page: what it holds, and what happens when something is pressed.

import { chat, listModels } from "./api.js";
import { LEFT, load, loadKey, saveKey, saveSettings, saveTurns } from "./store.js";
import { showTokens } from "./tokens.js";
import { fill, make } from "./dom.js";
import { turnView } from "./view.js";

const part = id => document.getElementById(id);
const state = load();
const { settings } = state;
let models = [];
let running = null; // the AbortController of the answers that are coming
let leaving = false; // the page is about to be left, which breaks off what is coming
const drawn = new WeakMap(); // the view of each turn, and what it depends on beside the turn

// ---- asking

function ask(question) {
  const chosen = settings.compare ? [settings.model, settings.other] : [settings.model];
  state.turns.push({ question, system: settings.system, seed: seed(), kept: 0, answers: chosen.map(begin) });
  return run();
}

function regenerate() {
  const turn = state.turns.at(-1);
  turn.system = settings.system;
  turn.seed = newSeed(turn.seed);
  turn.answers = turn.answers.map(answer => begin(answer.model));
  return run();
}

function begin(model) {
  return { model, text: "", thought: "", state: "running", note: "" };
}

/** Lets all models of the last turn answer at once. */
async function run() {
  const turn = state.turns.at(-1);
  running = new AbortController();
  const view = drawConversation();
  part("conversation").scrollTo({ top: part("conversation").scrollHeight });
  refocus("stop");
  say(`${turn.answers.map(answer => answer.model).join(" and ")} answering`);
  await Promise.all(turn.answers.map((answer, index) => receive(turn, answer, view.answers[index].update)));
  running = null;
  keepTurns();
  drawConversation();
  refocus("message");
  say(turn.answers.map(answer => `${answer.model}: ${answer.note || "done"}`).join(". "));
}

async function receive(turn, answer, update) {
  const began = performance.now();
  let first, last, usage, pieces = 0;
  try {
    const body = { model: answer.model, messages: messages(turn), ...sampling(turn) };
    for await (const piece of chat(body, running.signal)) {
      usage = piece.usage ?? usage;
      if (piece.finish === "length") answer.note = "Cut off: the answer reached the longest length.";
      if (!piece.text && !piece.thought) continue;
      last = performance.now();
      first ??= last;
      pieces += 1;
      answer.text += piece.text;
      answer.thought += piece.thought;
      followed(update);
    }
    answer.state = "done";
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.state = stopped || leaving ? "stopped" : "failed";
    answer.note = leaving ? LEFT : stopped ? "Stopped." : error.message;
  }
  if (first === undefined) return;
  const tokens = usage?.completion_tokens ?? pieces;
  const seconds = (last - first) / 1000;
  answer.figures = { tokens, secondsToFirst: (first - began) / 1000,
    tokensPerSecond: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : undefined };
}

/** The conversation up to a turn's question: the same for every model that answers it. */
function messages(turn) {
  const before = state.turns.slice(0, state.turns.indexOf(turn)).filter(one => one.answers[one.kept].text);
  return [
    ...(turn.system.trim() ? [{ role: "system", content: turn.system }] : []),
    ...before.flatMap(one => [{ role: "user", content: one.question },
      { role: "assistant", content: one.answers[one.kept].text }]),
    { role: "user", content: turn.question },
  ];
}

function sampling(turn) {
  return { temperature: settings.temperature, top_p: settings.top_p, max_tokens: settings.max_tokens, seed: turn.seed };
}

function seed() {
  return settings.seed === "" ? newSeed() : settings.seed;
}

function newSeed(old) {
  const found = Math.floor(Math.random() * 2 ** 31);
  return found === old ? newSeed(old) : found;
}

// ---- showing

/** Draws all turns; gives the view of the last one. */
function drawConversation() {
  const views = state.turns.map((turn, at) => viewOf(turn, at === state.turns.length - 1));
  fill(part("conversation"), views.length ? views.map(view => view.element) : [welcome()]);
  part("send").hidden = Boolean(running);
  part("stop").hidden = !running;
  part("clear").disabled = Boolean(running) || !state.turns.length;
  for (const id of ["model", "other", "compare"]) part(id).disabled = Boolean(running);
  if (models.length < 2) part("compare").disabled = true;
  return views.at(-1);
}

/** A turn before the last one does not change, so it is drawn once. */
function viewOf(turn, last) {
  const basis = JSON.stringify([last, settings.markdown, models]);
  const known = drawn.get(turn);
  if (!last && known?.basis === basis) return known.view;
  const view = turnView(turn, {
    name, asMarkdown: settings.markdown, last,
    does: {
      regenerate,
      keep: index => goOnFrom(turn, index),
      tokens: index => showTokens(turn.answers[index].model, messages(turn)),
    },
  });
  drawn.set(turn, { basis, view });
  return view;
}

function goOnFrom(turn, index) {
  turn.kept = index;
  keepTurns();
  drawConversation();
}

/** A model's kind and id. */
function name(id) {
  const kind = models.find(model => model.id === id)?.tunesmith?.kind;
  return kind ? [make("span", { className: `kind ${kind}` }, kind), ` ${id}`] : [id];
}

function welcome() {
  const facts = models.find(model => model.id === settings.model)?.tunesmith;
  if (!facts) return make("p", { className: "welcome" });
  const origin = facts.kind === "tuned" ? `Tuned from ${facts.base}` : "Not tuned";
  const context = `a context of ${facts.context.toLocaleString("en")} tokens`;
  const tools = `${facts.tools ? "tools" : "no tools"} in its chat template`;
  return make("div", { className: "welcome" }, make("p", {}, `Say something to ${settings.model}.`),
    make("p", { className: "note" }, `${origin}, with ${context} and ${tools}.`));
}

/** Draws, and keeps the end in sight if it was. */
function followed(update) {
  const pane = part("conversation");
  const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 80;
  update();
  if (atEnd) requestAnimationFrame(() => pane.scrollTo({ top: pane.scrollHeight }));
}

/** Gives the focus to a part if what had it is gone. */
function refocus(id) {
  const focused = document.activeElement;
  if (!focused || focused === document.body || focused.hidden) part(id).focus();
}

/** For a screen reader. */
function say(text) {
  part("status").textContent = text;
}

function keepTurns() {
  const kept = saveTurns(state.turns);
  const loss = kept.tab ? "when this tab is closed" : "when this page is reloaded or closed";
  notice(kept.tab && kept.browser ? "" : `This browser has no room left. The conversation is lost ${loss}.`);
}

function keepSettings() {
  if (!saveSettings(settings)) notice("This browser has no room left. The settings are lost when this page is closed.");
}

/** Says what must be seen above the message box; "" takes it away. */
function notice(text) {
  part("notice").textContent = text;
  part("notice").hidden = !text;
}

// ---- models and settings

async function findModels() {
  try {
    models = await listModels();
  } catch (error) {
    models = [];
    part("conversation").replaceChildren(make("p", { className: "welcome failed" }, error.message));
    return;
  }
  const ids = models.map(model => model.id);
  for (const id of ["model", "other"]) part(id).replaceChildren(...models.map(option));
  if (!ids.includes(settings.model)) settings.model = (models.find(isTuned) ?? models[0])?.id ?? "";
  choosePartner(ids);
  if (models.length < 2) settings.compare = false;
  drawChoice();
  drawConversation();
}

const isTuned = model => model.tunesmith?.kind === "tuned";

function option(model) {
  const kind = model.tunesmith?.kind;
  return make("option", { value: model.id }, kind ? `${model.id} (${kind})` : model.id);
}

/** The other model of a comparison: as chosen before, else the base of the tuned one, else any other. */
function choosePartner(ids) {
  if (ids.includes(settings.other) && settings.other !== settings.model) return;
  const base = models.find(model => model.id === settings.model)?.tunesmith?.base;
  const others = ids.filter(id => id !== settings.model);
  settings.other = others.includes(base) ? base : others[0] ?? "";
}

function drawChoice() {
  part("model").value = settings.model;
  part("other").value = settings.other;
  part("other").hidden = !settings.compare;
  part("compare").checked = settings.compare;
}

function changeChoice() {
  settings.model = part("model").value;
  settings.other = part("other").value;
  settings.compare = part("compare").checked;
  choosePartner(models.map(model => model.id));
  drawChoice();
  keepSettings();
  drawConversation();
}

function fillSettings() {
  for (const field of part("settings").querySelector("form").elements) {
    if (field.type === "checkbox") field.checked = settings[field.name];
    else if (field.name) field.value = field.name === "key" ? loadKey() : settings[field.name];
  }
}

/** A value that the form does not accept leaves the setting as it was. */
function changeSetting({ target: field }) {
  if (!field.checkValidity()) return;
  if (field.name === "key") saveKey(field.value);
  else settings[field.name] = valueOf(field);
  keepSettings();
}

function valueOf(field) {
  if (field.type === "checkbox") return field.checked;
  return field.type === "number" && field.value ? Number(field.value) : field.value;
}

async function closeSettings() {
  if (!models.length) await findModels();
  if (!running) drawConversation();
}

// ---- the message box

function send() {
  const box = part("message");
  if (!box.value.trim() || running) return;
  if (!models.length) {
    findModels(); // the server may be there by now; if not, that is said
    return;
  }
  const question = box.value;
  box.value = "";
  fit();
  ask(question);
}

function typed(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !event.target.value && state.turns.length) {
    event.preventDefault();
    event.target.value = state.turns.at(-1).question;
    fit();
  }
}

/** The box is as high as its text, up to a bound in the style sheet. */
function fit() {
  const box = part("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
}

function clear() {
  if (!confirm("Clear the conversation?")) return;
  state.turns.length = 0;
  keepTurns();
  drawConversation();
  part("message").focus();
}

/** Browsers say this before they break off requests. The page may stay after all. */
function aboutToLeave() {
  leaving = true;
  setTimeout(() => { leaving = false; }, 5000);
}

/** What has come of an answer stays. A tab that is not answering has nothing to write. */
function leave() {
  if (!running) return;
  leaving = true;
  running.abort();
  keepTurns();
}

part("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
part("message").addEventListener("keydown", typed);
part("message").addEventListener("input", fit);
part("stop").addEventListener("click", () => running?.abort());
part("clear").addEventListener("click", clear);
part("open-settings").addEventListener("click", () => { fillSettings(); part("settings").showModal(); });
part("settings").addEventListener("change", changeSetting);
part("settings").addEventListener("close", closeSettings);
for (const id of ["model", "other", "compare"]) part(id).addEventListener("change", changeChoice);
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
}
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
});
addEventListener("beforeunload", aboutToLeave);
addEventListener("pagehide", leave);
addEventListener("pageshow", () => { leaving = false; });
findModels();
