// The drawer that shows what a model read before it answered: the rendered template, and each token with its id.

import { render } from "./api.js";
import { make } from "./dom.js";

const part = id => document.getElementById(id);
let latest = 0;

export async function showTokens(model, messages) {
  const own = ++latest; // an answer that comes after another drawer was opened is not shown in it
  fill("Asking the server …", "", []);
  part("tokens").showModal();
  try {
    const { text, ids, tokens } = await render(model, messages);
    const summary = `${model}: ${ids.length.toLocaleString("en")} tokens`;
    if (own === latest) fill(summary, text, ids.map((id, at) => token(id, tokens[at])));
  } catch (error) {
    if (own === latest) fill(error.message, "", []);
  }
}

function fill(summary, text, items) {
  part("tokens-summary").textContent = summary;
  part("rendered").textContent = text;
  part("token-list").replaceChildren(...items);
}

function token(id, text) {
  const seen = text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return make("li", {}, make("span", {}, seen), make("small", {}, String(id)));
}
