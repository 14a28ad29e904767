import { useMemo, useState } from "react";

import { client, data, type ModelRow } from "../../api/client";
import { runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { usePolled } from "../../api/usePolled";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Empty } from "../../parts/Empty";
import { Notice } from "../../parts/Notice";
import { COLUMNS, KINDS } from "../models/columns";
import { DeleteModel } from "../models/DeleteModel";
import { Downloads } from "../models/Downloads";
import { ModelsTable } from "../models/ModelsTable";
import { NewDownload } from "../models/NewDownload";
import { bytes, plural } from "../numbers";
import { setQuery, usePlace } from "../router";
import { View } from "../shell/View";
import { sortedBy, sortOf } from "../sorting";

const RUNNING_MS = 1000;
const STEADY_MS = 10_000;

export function Models() {
  const { query } = usePlace();
  const changed = useValue(runsChanged);
  const downloads = usePolled(
    "downloads",
    (signal) => data(client.GET("/api/models/downloads", { signal })),
    (found) => (found?.some(({ state }) => state === "running") ? RUNNING_MS : STEADY_MS),
  );
  const done = downloads.data?.filter(({ state }) => state === "done").length;
  const {
    data: models,
    error,
    reload,
  } = useFetched(`models ${changed} ${done}`, (signal) => data(client.GET("/api/models", { signal })));
  const [deleted, setDeleted] = useState<ModelRow | null>(null);
  const [downloading, setDownloading] = useState(false);
  const search = query.get("q") ?? "";
  const kind = query.get("kind") ?? "";
  const sort = sortOf(query.get("sort") ?? "name");
  const shown = useMemo(
    () => sortedBy(filtered(models ?? [], search, kind), COLUMNS, sort),
    [models, search, kind, sort.key, sort.down],
  );
  const total = shown.reduce((sum, row) => sum + row.bytes, 0);

  return (
    <View title="Models" aside={<Button onClick={() => setDownloading(true)}>Download a model</Button>}>
      {error && <Notice tone="bad">{error}</Notice>}
      {!!downloads.data?.length && <Downloads downloads={downloads.data} onChange={downloads.reload} />}
      {models?.length === 0 && (
        <Empty title="No models yet">
          <p>
            Models in the hub’s cache, model folders and GGUF files below the studio’s folder, results of runs and their
            exports appear here.
          </p>
        </Empty>
      )}
      {!models && !error && <p className="note">Looking for models…</p>}
      {!!models?.length && (
        <>
          <div className="filters">
            <input
              type="search"
              aria-label="Search by name, architecture, licence or base"
              placeholder="Search"
              value={search}
              onChange={(event) => setQuery({ q: event.target.value })}
            />
            <select aria-label="Kind" value={kind} onChange={(event) => setQuery({ kind: event.target.value })}>
              <option value="">All kinds</option>
              {[...new Set(models.map((row) => row.kind))].map((one) => (
                <option key={one} value={one}>
                  {KINDS[one]}
                </option>
              ))}
            </select>
            <span className="note" role="status">
              {plural(shown.length, "model")}, {bytes(total)}
            </span>
          </div>
          <ModelsTable models={shown} sort={sort} onDelete={setDeleted} />
        </>
      )}
      {deleted && (
        <DeleteModel
          model={deleted}
          onDeleted={() => {
            setDeleted(null);
            reload();
          }}
          onClose={() => setDeleted(null)}
        />
      )}
      {downloading && (
        <NewDownload
          onStarted={() => {
            setDownloading(false);
            downloads.reload();
          }}
          onClose={() => setDownloading(false)}
        />
      )}
    </View>
  );
}

function filtered(models: ModelRow[], search: string, kind: string): ModelRow[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return models.filter((row) => {
    if (kind && row.kind !== kind) return false;
    const text = [row.name, row.path, row.architecture, row.licence, row.base].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}
