import { machine } from "../../api/live";
import { useValue } from "../../api/value";
import { Devices } from "../home/Devices";
import { Queue } from "../home/Queue";
import { RecentRuns } from "../home/RecentRuns";
import { View } from "../shell/View";

export function Home() {
  const state = useValue(machine);
  return (
    <View title="Home">
      <div className="home">
        <div>
          <Queue />
          <RecentRuns />
        </div>
        {state && <Devices machine={state} />}
      </div>
    </View>
  );
}
