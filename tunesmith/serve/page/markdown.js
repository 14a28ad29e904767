// A model's Markdown as nodes of the page. What a model writes is not trusted: HTML in it is shown as text, and what
// marked makes of the rest goes through DOMPurify, which lets only the tags below through.

import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { copyButton, make } from "./dom.js";

const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);

const marked = new Marked({ gfm: true, breaks: true }, {
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text)),
    image: ({ text, href }) => escape(`![${text}](${href})`), // nothing is fetched because a model says so
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol",
    "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["align", "class", "href", "start"],
  ADD_URI_SAFE_ATTR: ["align", "start"], // else their values would have to be addresses
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", node => {
  if (node.hasAttribute?.("class") && !/^language-[\w+#.-]+$/.test(node.className)) node.removeAttribute("class");
  if (node.nodeName === "A") {
    node.target = "_blank";
    node.rel = "noopener noreferrer nofollow";
  }
});

const LONG_CELL = 24; // characters; such a cell keeps room for a few words in a line, and the table is scrolled

/** A DocumentFragment. */
export function markdown(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const pre of fragment.querySelectorAll("pre")) frame(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = make("div", { className: "scroller", tabIndex: 0, role: "region", ariaLabel: "Table" });
    for (const cell of table.querySelectorAll("th, td")) {
      cell.classList.toggle("long", cell.textContent.length > LONG_CELL);
    }
    table.replaceWith(scroller);
    scroller.append(table);
  }
  return fragment;
}

/** A code block with its language and a button that copies it. */
function frame(pre) {
  const code = pre.textContent.replace(/\n$/, "");
  const language = pre.querySelector("code")?.className.replace("language-", "") ?? "";
  const block = make("div", { className: "code" });
  pre.replaceWith(block);
  pre.tabIndex = 0; // so that the keyboard can scroll it
  block.append(make("div", { className: "bar" }, make("span", {}, language), copyButton(() => code, "Copy code")), pre);
}
