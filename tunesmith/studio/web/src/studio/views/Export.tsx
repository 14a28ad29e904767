import { runsChanged } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { useValue } from "../../api/value";
import { usePlace } from "../router";
import { getRuns } from "../runs/list";
import { RunExports } from "../serve/RunExports";
import { Servers } from "../serve/Servers";
import { View } from "../shell/View";

export function Export() {
  const run = usePlace().query.get("run");
  const changed = useValue(runsChanged);
  const { data: runs, error } = useFetched(`runs ${changed}`, getRuns);
  return (
    <View title="Export & serve">
      {error && (
        <p className="notice bad" role="alert">
          {error}
        </p>
      )}
      <div className="serve">
        <Servers run={run} />
        {runs && <RunExports runs={runs} chosen={run} />}
      </div>
    </View>
  );
}
