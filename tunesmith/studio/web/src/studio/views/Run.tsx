import { useEffect } from "react";

import { client, data, type RunView } from "../../api/client";
import { followChanges, followRun } from "../../api/live";
import { useFetched } from "../../api/useFetched";
import { ProgressBar } from "../home/ProgressBar";
import { href, usePlace } from "../router";
import { CurvesTab } from "../run/CurvesTab";
import { DataTab } from "../run/DataTab";
import { LogTab } from "../run/LogTab";
import { PlanTab } from "../run/PlanTab";
import { RecipeTab } from "../run/RecipeTab";
import { ReportTab } from "../run/ReportTab";
import { RunActions } from "../run/RunActions";
import { SamplesTab } from "../run/SamplesTab";
import { type Tab, Tabs } from "../run/Tabs";
import { useRunProgress } from "../run/useRunProgress";
import { Verdict } from "../run/Verdict";
import { RunStatus } from "../runs/RunStatus";
import { View } from "../shell/View";

/** Events after which the rest of the view is old too. */
const CHANGING = ["start", "plan", "eval", "stop", "pause", "continue", "resume", "warning", "checkpoint", "energy"];
const SETTLE_MS = 300;

export function Run({ id }: { id: string }) {
  const { query } = usePlace();
  const {
    data: view,
    error,
    reload,
    set,
  } = useFetched(id, (signal) => data(client.GET("/api/runs/{name}", { params: { path: { name: id } }, signal })));
  const progress = useRunProgress(id, view?.progress ?? null);

  useEffect(() => {
    let timer = 0;
    const soon = () => {
      clearTimeout(timer);
      timer = window.setTimeout(reload, SETTLE_MS);
    };
    const ends = [
      followChanges((runs) => runs.includes(id) && soon()),
      followRun(id, ({ events }) => events.some(({ event }) => CHANGING.includes(event as string)) && soon()),
    ];
    return () => {
      clearTimeout(timer);
      ends.forEach((end) => end());
    };
  }, [id, reload]);

  const above = <a href={href(["runs"])}>← Runs</a>;
  if (!view) {
    return (
      <View title={id.replace(/-[0-9a-f]{8}$/, "")} above={above}>
        {error ? (
          <p className="notice bad" role="alert">
            {error}
          </p>
        ) : (
          <p className="note">Reading the run…</p>
        )}
      </View>
    );
  }
  const tabs = tabsOf(id, view);
  const tab = tabs.find(({ key }) => key === query.get("tab")) ?? tabs[0]!;
  return (
    <View title={view.row.name} above={above} aside={<RunActions view={view} onChange={set} />}>
      {error && (
        <p className="notice bad" role="alert">
          {error}
        </p>
      )}
      <div className="run-head">
        <RunStatus run={view.row} />
        <span className="note">{headline(view)}</span>
      </div>
      {progress && <ProgressBar progress={progress} label="Progress of the training" />}
      <Verdict view={view} />
      <Tabs tabs={tabs} here={tab.key} />
      <div className="tab" role="tabpanel" id="tabpanel" aria-labelledby={`tab-${tab.key}`} key={tab.key}>
        <h2 className="unseen">{tab.title}</h2>
        {tab.show()}
      </div>
    </View>
  );
}

function tabsOf(id: string, view: RunView): Tab[] {
  return [
    { key: "curves", title: "Curves", show: () => <CurvesTab id={id} /> },
    { key: "samples", title: "Samples", show: () => <SamplesTab id={id} view={view} /> },
    { key: "data", title: "Data", show: () => <DataTab id={id} view={view} /> },
    { key: "plan", title: "Plan", show: () => <PlanTab view={view} /> },
    { key: "recipe", title: "Recipe", show: () => <RecipeTab view={view} /> },
    { key: "log", title: "Log", show: () => <LogTab id={id} view={view} /> },
    { key: "report", title: "Report", show: () => <ReportTab id={id} /> },
  ];
}

function headline({ row }: RunView): string {
  const base = row.base_model?.split("/").filter(Boolean).pop();
  return [base, [row.method, row.adapter].filter(Boolean).join(" with ")].filter(Boolean).join(" · ");
}
