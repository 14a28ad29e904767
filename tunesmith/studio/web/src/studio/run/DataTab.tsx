import { useState } from "react";

import { client, data, type RunView } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Table } from "../../parts/Table";
import { integer } from "../numbers";

const PAGE = 200;

interface Summary {
  read: number;
  kept: number;
  dropped: Record<string, number>;
  changed: Record<string, number>;
  shortened: Record<string, number>;
  unread: Record<string, number>;
}

interface Entry {
  file: string;
  line: number | null;
  action: string;
  reason: string;
  detail: string;
}

/** The ledger: which rows were left out, changed or shortened, and why. */
export function DataTab({ id, view }: { id: string; view: RunView }) {
  const [offset, setOffset] = useState(0);
  const { data: part, error } = useFetched(`ledger ${id} ${offset}`, (signal) =>
    data(client.GET("/api/runs/{name}/ledger", { params: { path: { name: id }, query: { offset } }, signal })),
  );
  const summary = view.plan?.ledger as Summary | undefined;
  if (error)
    return (
      <p className="notice bad" role="alert">
        {error}
      </p>
    );
  if (!part) return <p className="note">Reading the ledger…</p>;
  return (
    <>
      {summary?.read !== undefined && (
        <p>
          <b>{integer(summary.kept)}</b> of {integer(summary.read)} rows were used.
        </p>
      )}
      {summary && <Counts summary={summary} />}
      {part.total === 0 ? (
        <p className="note">No row was left out, changed or shortened.</p>
      ) : (
        <Table
          label="Ledger"
          rows={part.rows as unknown as Entry[]}
          rowKey={(row) => `${row.file} ${row.line} ${row.action} ${row.reason}`}
          columns={[
            {
              title: "Row",
              cell: (row) => <span className="path">{`${row.file}${row.line === null ? "" : `:${row.line}`}`}</span>,
            },
            { title: "What", cell: (row) => row.action },
            { title: "Why", cell: (row) => row.reason.replaceAll("_", " ") },
            { title: "Details", cell: (row) => row.detail },
          ]}
        />
      )}
      {part.total > PAGE && (
        <div className="pages">
          <Button small disabled={!offset} onClick={() => setOffset(offset - PAGE)}>
            Earlier
          </Button>
          <span className="note">
            {integer(offset + 1)}–{integer(Math.min(offset + PAGE, part.total))} of {integer(part.total)}
          </span>
          <Button small disabled={offset + PAGE >= part.total} onClick={() => setOffset(offset + PAGE)}>
            Later
          </Button>
        </div>
      )}
    </>
  );
}

function Counts({ summary }: { summary: Summary }) {
  const rows = (["dropped", "changed", "shortened"] as const).flatMap((action) =>
    Object.entries(summary[action] ?? {}).map(([reason, count]) => ({ action, reason, count })),
  );
  const unread = Object.entries(summary.unread ?? {});
  return (
    <>
      {rows.length > 0 && (
        <Table
          label="Rows by reason"
          rows={rows}
          rowKey={({ action, reason }) => `${action} ${reason}`}
          columns={[
            { title: "What", cell: ({ action }) => action },
            { title: "Why", cell: ({ reason }) => reason.replaceAll("_", " ") },
            { title: "Rows", cell: ({ count }) => integer(count), number: true },
          ]}
        />
      )}
      {unread.length > 0 && (
        <p className="note">
          Keys that the format does not read:{" "}
          {unread.map(([key, count]) => `${key} (${integer(count)} rows)`).join(", ")}.
        </p>
      )}
    </>
  );
}
