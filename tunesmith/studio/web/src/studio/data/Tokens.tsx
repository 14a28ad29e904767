import { type KeyboardEvent, type MouseEvent, useState } from "react";

import type { Schemas } from "../../api/client";
import { Button } from "../../parts/Button";
import { integer, plural } from "../numbers";

type Example = Schemas["ExampleView"];

interface Token {
  text: string;
  learned: boolean;
  ids: number[];
}

const FIRST = 300; // more would make a page of long rows slow
const MORE = 2000;
const STEPS: Record<string, number> = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };

/** An example token by token. What is known of one is below: of that under the pointer, or chosen with arrow keys. */
export function Tokens({ example, label }: { example: Example; label: string }) {
  const [most, setMost] = useState(FIRST);
  const [chosen, setChosen] = useState<number | null>(null);
  const tokens = tokensOf(example);
  const shown = tokens.slice(0, most);

  const look = ({ target }: MouseEvent) => {
    const at = (target as HTMLElement).closest<HTMLElement>("[data-at]")?.dataset.at;
    if (at !== undefined) setChosen(Number(at));
  };
  const move = (event: KeyboardEvent) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    setChosen((now) => Math.min(shown.length - 1, Math.max(0, now === null ? 0 : now + step)));
  };

  const known = chosen === null ? undefined : tokens[chosen];
  return (
    <>
      <p
        className="tokens single"
        role="group"
        aria-label={label}
        tabIndex={0}
        onMouseOver={look}
        onClick={look}
        onKeyDown={move}
        onFocus={() => setChosen((now) => now ?? 0)}
      >
        {shown.map(({ text, learned }, at) => {
          const Mark = learned ? "mark" : "span";
          return (
            <Mark key={at} data-at={at} className={at === chosen ? "chosen" : undefined}>
              {seen(text)}
            </Mark>
          );
        })}
      </p>
      <p className="token-facts note" role="status">
        {known
          ? `Token ${integer(chosen! + 1)}: id ${known.ids.join(", ")}, ${known.learned ? "learned" : "only read"}`
          : "Point at a token, or use the arrow keys, for its id."}
      </p>
      {tokens.length > most && (
        <div className="row">
          <Button small onClick={() => setMost(most + MORE)}>
            Show more
          </Button>
          <span className="note">{plural(tokens.length - most, "token")} more</span>
        </div>
      )}
    </>
  );
}

/** Where the text of single tokens is not known, a segment is one. */
function tokensOf({ segments }: Example): Token[] {
  return segments.flatMap(({ text, learned, ids, pieces }) =>
    pieces.length
      ? pieces.map((piece, at) => ({ text: piece, learned, ids: ids.slice(at, at + 1) }))
      : [{ text, learned, ids }],
  );
}

/** A token's text with line ends that are seen. One that is a part of a character has none of its own. */
function seen(text: string): string {
  return text ? text.replaceAll("\n", "↵\n") : "▯";
}
