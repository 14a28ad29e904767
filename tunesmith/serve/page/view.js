// Turns and answers as nodes of the page; what the buttons do is given by the caller.

import { button, copyButton, make } from "./dom.js";
import { markdown } from "./markdown.js";

/** A turn's element; `does` has regenerate, keep(index) and tokens(index), `last` says whether it is the last one. */
export function turnView(turn, { name, asMarkdown, last, does }) {
  const answers = turn.answers.map((answer, index) => answerView(turn, index, { name, asMarkdown, last, does }));
  const element = make("article", { className: "turn" },
    make("div", { className: "question" }, turn.question),
    make("div", { className: answers.length > 1 ? "answers two" : "answers" }, ...answers.map(view => view.element)));
  if (last && turn.answers.every(answer => answer.state !== "running")) {
    element.append(make("div", { className: "again" }, button("Regenerate", does.regenerate)));
  }
  return { element, answers };
}

function answerView(turn, index, { name, asMarkdown, last, does }) {
  const answer = turn.answers[index];
  const body = make("div", { className: "body" });
  const thought = make("pre");
  const thoughts = make("details", { className: "thoughts" }, make("summary", {}, "Reasoning"), thought);
  const element = make("section", { className: "answer", ariaLabel: `Answer of ${answer.model}` },
    make("header", {}, make("h2", {}, ...name(answer.model)), ...keepButton(turn, index, last, does)), thoughts, body);
  const draw = () => {
    thoughts.hidden = !answer.thought;
    thought.textContent = answer.thought ?? "";
    body.className = asMarkdown ? "body markdown" : "body plain";
    body.replaceChildren(asMarkdown ? markdown(answer.text) : answer.text);
  };
  draw();
  element.ariaBusy = String(answer.state === "running");
  const tone = answer.state === "failed" ? "note failed" : "note";
  if (answer.note) element.append(make("p", { className: tone }, answer.note));
  if (answer.state !== "running") element.append(footer(turn, index, does));
  return { element, update: once(draw) };
}

/** Of a comparison's last turn: which answer the conversation goes on from. */
function keepButton(turn, index, last, does) {
  if (!last || turn.answers.length < 2 || turn.answers.some(answer => answer.state === "running")) return [];
  const kept = turn.kept === index;
  const text = kept ? "Goes on from here" : "Go on from here";
  return [button(text, () => does.keep(index), { ariaPressed: String(kept) })];
}

function footer(turn, index, does) {
  const answer = turn.answers[index];
  return make("footer", {}, make("span", { className: "figures" }, figures(turn, answer)),
    copyButton(() => answer.text, "Copy answer"), button("Tokens", () => does.tokens(index)));
}

function figures(turn, { figures: found }) {
  const said = [];
  if (found?.tokensPerSecond) said.push(`${number(found.tokensPerSecond)} tokens/s`);
  if (found?.secondsToFirst !== undefined) said.push(`first after ${number(found.secondsToFirst)} s`);
  if (found?.tokens) said.push(`${found.tokens.toLocaleString("en")} ${found.tokens === 1 ? "token" : "tokens"}`);
  return [...said, `seed ${turn.seed}`].join(" · ");
}

/** Three figures. */
function number(value) {
  return value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}

/** `draw`, at most once a frame. */
function once(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
