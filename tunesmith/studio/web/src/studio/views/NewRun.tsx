import { useState } from "react";

import { client, data, type Schemas } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import { Prose } from "../../parts/Prose";
import { Segments } from "../../parts/Segments";
import { Form, otherProblems } from "../new/Form";
import { OpenDialog, SaveDialog } from "../new/RecipeFiles";
import { PlanPane } from "../new/plan/PlanPane";
import { usePlan } from "../new/plan/usePlan";
import { QueueDialog } from "../new/QueueDialog";
import { formLevel } from "../new/level";
import { useDraft } from "../new/useDraft";
import { textOf } from "../../parts/values";
import { valueAt, withChanges } from "../new/values";
import { YamlPane } from "../new/YamlPane";
import { useValue } from "../../api/value";
import { go, setQuery, usePlace } from "../router";
import { View } from "../shell/View";
import { say } from "../toasts";

type Opened = "open" | "save" | "queue" | null;
type Pane = "form" | "plan" | "yaml";

const PANES: { value: Pane; text: string }[] = [
  { value: "form", text: "Form" },
  { value: "plan", text: "Plan" },
  { value: "yaml", text: "YAML" },
];

/** A recipe as a form and as YAML, with its plan. */
export function NewRun() {
  const schema = useFetched("schema", (signal) => data(client.GET("/api/recipe/schema", { signal })));
  if (schema.error) {
    return (
      <View title="New run">
        <Notice tone="bad">{schema.error}</Notice>
      </View>
    );
  }
  return schema.data ? <Recipe schema={schema.data} /> : <View title="New run">{null}</View>;
}

function Recipe({ schema }: { schema: Schemas["RecipeSchema"] }) {
  const { draft, state, source, run } = useDraft();
  const { query } = usePlace();
  const machine = query.get("machine") ?? "";
  const [pane, setPane] = useState<Pane>("form");
  const [opened, setOpened] = useState<Opened>(null);
  const level = useValue(formLevel);
  const missing = missingPart(state.values);
  const isValid = !state.isChecking && !state.problems.length && state.isReadable && !missing;
  const planned = usePlan(isValid ? state.values : null, machine);
  const others = missing ? [] : otherProblems(state, schema);
  const close = () => setOpened(null);

  return (
    <View
      title="New run"
      aside={
        <>
          <Button onClick={() => setOpened("open")}>Open</Button>
          <Button onClick={() => setOpened("save")} disabled={!state.yaml}>
            Save
          </Button>
          <CopyCommand command={isValid ? state.command : ""} />
          <Button look="main" disabled={!isValid} onClick={() => setOpened("queue")}>
            Queue
          </Button>
        </>
      }
    >
      <div className="draft-state">
        {run && <span className="note">Filled from the run {run}.</span>}
        {state.editedAt !== null && (
          <span className="note" role="status">
            {state.isRestored ? "Your unsaved edits are back." : "Unsaved edits are kept in this browser."}{" "}
            <Button small look="quiet" onClick={() => void draft.beginWith(source)}>
              Start afresh
            </Button>
          </span>
        )}
      </div>
      {(state.error || others.length > 0) && (
        <div className="draft-problems">
          {state.error && <Notice tone="bad">{state.error}</Notice>}
          {others.map(({ key, message }) => (
            <Notice key={key + message} tone="bad">
              <Prose text={message} />
            </Notice>
          ))}
        </div>
      )}
      <div className="pane-choice">
        <Segments label="Part of the page" options={PANES} value={pane} onChange={setPane} />
      </div>
      <div className="new-run" data-pane={pane}>
        <Form schema={schema} draft={draft} state={state} level={level} onLevel={(next) => formLevel.set(next)} />
        <div className="beside">
          <PlanPane
            planned={planned}
            missing={missing || (state.problems.length ? "Fix the problems to see the plan." : "")}
            machine={machine}
            onMachine={(next) => setQuery({ machine: next })}
            onProblem={showField}
            onRemedy={(change) => draft.setValues(withChanges(state.values, change))}
          />
          <YamlPane draft={draft} state={state} onProblem={showField} />
        </div>
      </div>
      <OpenDialog
        open={opened === "open"}
        onClose={close}
        onPick={(id) => {
          close();
          go(["new"], { recipe: id });
        }}
      />
      <SaveDialog
        open={opened === "save"}
        yaml={state.yaml}
        version={draft.version}
        name={textOf(valueAt(state.values, "name")) || "recipe"}
        onClose={close}
        onSaved={({ path, version }) => {
          close();
          draft.saved(version);
          say(`Saved as ${path}.`);
        }}
      />
      <QueueDialog
        open={opened === "queue"}
        schema={schema}
        values={state.values}
        onClose={close}
        onQueued={(jobs) => {
          close();
          draft.saved();
          say(jobs.length === 1 ? `Queued as job ${jobs[0]}.` : `Queued as jobs ${jobs.join(", ")}.`);
          go([]);
        }}
      />
    </View>
  );
}

function CopyCommand({ command }: { command: string }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(command);
      say(command.endsWith(".yaml") ? "Copied. Save the recipe as recipe.yaml beside it." : "Copied.");
    } catch {
      say(`The browser does not copy here. The command: ${command}`, "bad");
    }
  };
  return (
    <Button disabled={!command} title={command} onClick={() => void copy()}>
      Copy the command
    </Button>
  );
}

/** What a recipe lacks before anything can be planned. */
function missingPart(values: Parameters<typeof valueAt>[0]): string {
  const lacks = [
    textOf(valueAt(values, "model.path")) ? null : "a model",
    (valueAt(values, "data.train") as { path?: string }[] | undefined)?.some?.(({ path }) => path) ? null : "data",
  ].filter(Boolean);
  return lacks.length ? `Choose ${lacks.join(" and ")}: the plan then appears here.` : "";
}

function showField(key: string): void {
  formLevel.set("all");
  requestAnimationFrame(() => {
    const field = document.querySelector<HTMLElement>(`[data-key="${CSS.escape(key.replace(/\.\d+.*$/, ""))}"]`);
    field?.scrollIntoView({ block: "center" });
    field?.querySelector<HTMLElement>("input, select, textarea, button")?.focus({ preventScroll: true });
  });
}
