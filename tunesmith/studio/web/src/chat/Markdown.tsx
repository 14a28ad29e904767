import { createElement, memo, type ReactNode } from "react";

import { CopyButton } from "../parts/CopyButton";
import { Scroller } from "../parts/Scroller";
import "./markdown.css";
import { parseMarkdown } from "./parseMarkdown";

const LONG_CELL = 24; // characters; such a cell keeps room for a few words in a line, and the table is scrolled

/** A model's Markdown. As React elements, so that a selection stays while more text comes. */
export const Markdown = memo(function Markdown({ text }: { text: string }) {
  return children(parseMarkdown(text));
});

function children(parent: Node): ReactNode[] {
  return [...parent.childNodes].map((node, key) => {
    if (node instanceof Element) return element(node, key);
    return node.textContent;
  });
}

function element(node: Element, key: number): ReactNode {
  switch (node.localName) {
    case "pre":
      return <CodeBlock key={key} node={node} />;
    case "table":
      return (
        <Scroller key={key} label="Table">
          <table>{children(node)}</table>
        </Scroller>
      );
    case "a":
      return (
        <a key={key} href={node.getAttribute("href") ?? undefined} target="_blank" rel="noopener noreferrer nofollow">
          {children(node)}
        </a>
      );
    case "ol":
      return (
        <ol key={key} start={Number(node.getAttribute("start") ?? 1)}>
          {children(node)}
        </ol>
      );
    case "td":
    case "th":
      return createElement(
        node.localName,
        { key, align: node.getAttribute("align") ?? undefined, className: cellClass(node) },
        ...children(node),
      );
    default: // DOMPurify has let no other attribute through that counts
      return createElement(node.localName, { key }, ...children(node));
  }
}

function cellClass(cell: Element): string | undefined {
  return cell.textContent!.length > LONG_CELL ? "long" : undefined;
}

function CodeBlock({ node }: { node: Element }) {
  const language = node.querySelector("code")?.className.replace("language-", "") ?? "";
  const code = node.textContent!.replace(/\n$/, "");
  return (
    <div className="code">
      <div className="code-bar">
        <span>{language}</span>
        <CopyButton text={code} label="Copy code" />
      </div>
      {/* The keyboard can reach it, to scroll it. */}
      <pre tabIndex={0}>
        <code>{code}</code>
      </pre>
    </div>
  );
}
