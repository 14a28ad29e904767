import { useMemo } from "react";

import { client, data, type RunRow } from "../../api/client";
import { runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { Empty } from "../../parts/Empty";
import { CompareCurves } from "../compare/CompareCurves";
import { Differences } from "../compare/Differences";
import { Results } from "../compare/Results";
import { RunPicker } from "../compare/RunPicker";
import { usePlace } from "../router";
import { getRuns } from "../runs/list";
import { View } from "../shell/View";

export function Compare() {
  const { query } = usePlace();
  const asked = query.get("runs") ?? "";
  const ids = useMemo(() => [...new Set(asked.split(",").filter(Boolean))], [asked]);
  const changed = useValue(runsChanged);
  const { data: runs } = useFetched(`runs ${changed}`, getRuns);
  const { data: compared, error } = useFetched(ids.length > 1 ? `${ids} ${changed}` : null, (signal) =>
    data(client.GET("/api/compare", { params: { query: { runs: ids } }, signal })),
  );
  const isCurrent = compared && compared.runs.map(({ id }) => id).join() === ids.join();

  return (
    <View title="Compare">
      <RunPicker ids={ids} runs={runs ?? []} />
      {error && (
        <p className="notice bad" role="alert">
          {error}
        </p>
      )}
      {ids.length < 2 && (
        <Empty title="Choose two or more runs">
          <p>Their curves are then drawn over one another, with what differs in their recipes and what came out.</p>
        </Empty>
      )}
      {isCurrent && ids.length > 1 && (
        <div className="stack compared">
          {compared.notes.map((note) => (
            <p key={note} className="notice warning">
              {note}
            </p>
          ))}
          <Results compared={compared} />
          <CompareCurves runs={compared.runs as RunRow[]} />
          <Differences compared={compared} />
        </div>
      )}
    </View>
  );
}
