import { useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Check } from "../../parts/Field";
import { Notice } from "../../parts/Notice";
import { Segments } from "../../parts/Segments";
import { setQuery, usePlace } from "../router";
import { RowCard } from "./RowCard";

type Mask = NonNullable<Schemas["RowsQuestion"]["mask"]>;

const LIMIT = 20;
const MASKS: { value: Mask; text: string }[] = [
  { value: "assistant", text: "every answer" },
  { value: "last", text: "the last answer" },
  { value: "all", text: "everything" },
];

interface Props {
  file: string;
  model: string;
}

/** The rows of a file, page by page. The page, the search and the mask are in the address. */
export function Rows({ file, model }: Props) {
  const { query } = usePlace();
  const offset = Number(query.get("offset")) || 0;
  const search = query.get("search") ?? "";
  const mask = (query.get("mask") as Mask | null) ?? "assistant";
  const [withIds, setWithIds] = useState(false);
  const [before, setBefore] = useState<number[]>([]);

  const body = {
    source: file,
    model: model || null,
    recipe: null,
    offset,
    limit: LIMIT,
    search,
    mask: model ? mask : null,
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
        {model && (
          <>
            <div className="mask">
              <span className="note">Learn</span>
              <Segments
                label="Tokens to learn"
                options={MASKS}
                value={mask}
                onChange={(value) => restart({ mask: value === "assistant" ? null : value })}
              />
            </div>
            <Check label="Token ids" checked={withIds} onChange={() => setWithIds(!withIds)} />
          </>
        )}
      </div>
      {model && (
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
              <RowCard key={row.index} row={row} withIds={withIds && !!model} />
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
