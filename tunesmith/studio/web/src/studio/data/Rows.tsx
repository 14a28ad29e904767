import { useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import { Segments } from "../../parts/Segments";
import { setQuery, usePlace } from "../router";
import { RowCard, type RowView } from "./RowCard";
import type { Question } from "./useReport";

type Mask = NonNullable<Schemas["RowsQuestion"]["mask"]>;

const LIMIT = 20;
const MASKS: { value: Mask; text: string }[] = [
  { value: "assistant", text: "every answer" },
  { value: "last", text: "the last answer" },
  { value: "all", text: "everything" },
];
const VIEWS: { value: RowView; text: string }[] = [
  { value: "text", text: "text" },
  { value: "tokens", text: "tokens" },
];

interface Props {
  question: Question;
  /** The source of a recipe, from 1 on. */
  number?: number;
}

/** The rows of a source, page by page. The page, the search and the mask are in the address. */
export function Rows({ question, number }: Props) {
  const { query } = usePlace();
  const offset = Number(query.get("offset")) || 0;
  const search = query.get("search") ?? "";
  const mask = (query.get("mask") as Mask | null) ?? "assistant";
  const [view, setView] = useState<RowView>("text");
  const [before, setBefore] = useState<number[]>([]);

  const isEncoded = Boolean(question.model || question.recipe);
  const body = {
    ...question,
    number,
    offset,
    limit: LIMIT,
    search,
    mask: question.model ? mask : null, // that of a recipe is its own
    download: false,
  };
  const rows = useFetched(JSON.stringify(body), (signal) => data(client.POST("/api/data/rows", { body, signal })));
  const page = rows.data?.[0];

  const restart = (changes: Record<string, string | null>) => {
    setBefore([]);
    setQuery({ ...changes, offset: null });
  };
  const next = () => {
    setBefore([...before, offset]);
    setQuery({ offset: page?.next ?? null });
  };
  const back = () => {
    setBefore(before.slice(0, -1));
    setQuery({ offset: before.at(-1) || null });
  };

  return (
    <section aria-labelledby="rows-title" aria-busy={rows.busy}>
      <div className="rows-head">
        <h2 id="rows-title">Rows</h2>
        <form
          role="search"
          onSubmit={(event) => {
            event.preventDefault();
            restart({ search: String(new FormData(event.currentTarget).get("search") ?? "") });
          }}
        >
          <input
            key={search}
            type="search"
            name="search"
            aria-label="Search rows"
            placeholder="Search, then Enter"
            defaultValue={search}
          />
        </form>
        {question.model && (
          <div className="mask">
            <span className="note">Learn</span>
            <Segments
              label="Tokens to learn"
              options={MASKS}
              value={mask}
              onChange={(value) => restart({ mask: value === "assistant" ? null : value })}
            />
          </div>
        )}
        {isEncoded && <Segments label="Rows as" options={VIEWS} value={view} onChange={setView} />}
      </div>
      {isEncoded && (
        <p className="token-legend note">
          <mark>Coloured and underlined</mark> tokens are learned. The rest is only read.
        </p>
      )}
      {rows.error && <Notice tone="bad">{rows.error}</Notice>}
      {!page && rows.busy && <p className="note">Reading the rows…</p>}
      {page && (
        <>
          <ol className={`data-rows ${rows.busy ? "old" : ""}`}>
            {page.rows.map((row) => (
              <RowCard key={row.index} row={row} view={view} />
            ))}
          </ol>
          {!page.rows.length && (
            <p className="note">{search ? `No row has “${search}”.` : "There are no rows here."}</p>
          )}
          <div className="pages">
            <Button small disabled={!offset || rows.busy} onClick={before.length ? back : () => restart({})}>
              {before.length || !offset ? "Back" : "To the beginning"}
            </Button>
            <Button small disabled={page.next === null || rows.busy} onClick={next}>
              Next
            </Button>
            {rows.busy && (
              <span className="note" role="status">
                Reading…
              </span>
            )}
          </div>
        </>
      )}
    </section>
  );
}
