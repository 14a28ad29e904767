import { useMemo, useState } from "react";

import { client, data, type ModelRow } from "../../api/client";
import { downloads, runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { Empty } from "../../parts/Empty";
import { Notice } from "../../parts/Notice";
import { COLUMNS, KINDS } from "../models/columns";
import { DeleteModel } from "../models/DeleteModel";
import { Downloads, lookAtDownloads } from "../models/Downloads";
import { ModelsTable } from "../models/ModelsTable";
import { NewDownload } from "../models/NewDownload";
import { bytes, plural } from "../numbers";
import { setQuery, usePlace } from "../router";
import { View } from "../shell/View";
import { sortedBy, sortOf } from "../sorting";
import { tried } from "../toasts";

export function Models() {
  const { query } = usePlace();
  const changed = useValue(runsChanged);
  const shownDownloads = useValue(downloads);
  const done = shownDownloads?.filter(({ state }) => state === "done").length ?? 0;
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
      {!!shownDownloads?.length && <Downloads shown={shownDownloads} />}
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
            void tried(lookAtDownloads);
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
