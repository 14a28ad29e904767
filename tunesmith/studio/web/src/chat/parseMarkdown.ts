// What a model writes is not trusted: HTML in it is shown as text, and what marked makes of the rest goes through
// DOMPurify, which lets only the tags below through.

import DOMPurify from "dompurify";
import { Marked } from "marked";

const escape = (text: string) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const marked = new Marked(
  { gfm: true, breaks: true },
  {
    renderer: {
      html({ text, block }) {
        return block ? `<p>${escape(text.trim()).replaceAll("\n", "<br>")}</p>` : escape(text);
      },
      image({ text, href }) {
        return escape(`![${text}](${href})`); // nothing is fetched because a model says so
      },
      checkbox({ checked }) {
        return checked ? "☑ " : "☐ ";
      },
    },
  },
);

const ALLOWED_TAGS = `a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr
  ul`.split(/\s+/);

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !/^language-[\w+#.-]+$/.test(node.className)) node.removeAttribute("class");
});

/** Returns the nodes that Markdown stands for. */
export function parseMarkdown(text: string): DocumentFragment {
  return DOMPurify.sanitize(marked.parse(text, { async: false }), {
    ALLOWED_TAGS,
    ALLOWED_ATTR: ["align", "class", "href", "start"],
    ADD_URI_SAFE_ATTR: ["align", "start"], // else their values would have to be addresses
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
    ALLOW_ARIA_ATTR: false,
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}
