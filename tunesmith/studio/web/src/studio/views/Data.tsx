import { useMemo, useState } from "react";

import { Button } from "../../parts/Button";
import { Reading } from "../data/Reading";
import { recipeIn, sourcesOf } from "../data/recipe";
import { Report } from "../data/Report";
import { Rows } from "../data/Rows";
import { SourcesTable } from "../data/SourcesTable";
import { useReport } from "../data/useReport";
import { DropZone } from "../files/DropZone";
import { FileList } from "../files/FileList";
import { FilePicker } from "../files/FilePicker";
import { ModelPicker } from "../files/ModelPicker";
import { go, href, setQuery, usePlace } from "../router";
import { View } from "../shell/View";

/** A file of rows, or the sources of a recipe, as the model will see them. */
export function Data() {
  const { query } = usePlace();
  const file = query.get("file") ?? "";
  const recipe = query.get("recipe");
  if (recipe) return <OfRecipe key={recipe} text={recipe} number={Number(query.get("source")) || 1} />;
  return file ? <Opened key={file} file={file} model={query.get("model") ?? ""} /> : <Choose />;
}

function Choose() {
  const [path, setPath] = useState("");
  const open = (file: string) => go(["data"], { file });
  return (
    <View title="Data">
      <div className="choose-data">
        <DropZone onUploaded={open} />
        <section aria-labelledby="on-disk">
          <h2 id="on-disk">On the studio's disk</h2>
          <FileList kinds={["data", "text"]} onPick={open} />
        </section>
        <form
          className="row"
          onSubmit={(event) => {
            event.preventDefault();
            if (path.trim()) open(path.trim());
          }}
        >
          <input
            aria-label="Path"
            placeholder="A path, a pattern such as rows/*.jsonl, or hub:org/name"
            value={path}
            spellCheck={false}
            onChange={(event) => setPath(event.target.value)}
          />
          <Button type="submit">Open</Button>
        </form>
      </div>
    </View>
  );
}

function Opened({ file, model }: { file: string; model: string }) {
  const [isPicking, setPicking] = useState(false);
  const [typed, setTyped] = useState(model);
  const question = { source: file, model: model || null, recipe: null };
  const report = useReport(question);
  const choose = (path: string) => {
    setTyped(path);
    setQuery({ model: path.trim() });
  };
  return (
    <View
      title={file.split("/").pop() ?? file}
      above={<a href={href(["data"])}>Data</a>}
      aside={
        <>
          <Button onClick={() => setPicking(true)}>Another file</Button>
          <a className="button main" href={href(["new"], { data: file, model: model || null })}>
            Use in a new run
          </a>
        </>
      }
    >
      <div className="data-model">
        <label htmlFor="data-model">As this model sees it</label>
        <ModelPicker value={typed} onTyped={setTyped} onChange={choose} attributes={{ id: "data-model" }} />
      </div>
      <Reading report={report} paths={[file]} />
      <div className={`stack ${report.busy ? "old" : ""}`}>
        {report.data?.map((one) => (
          <Report key={one.path} report={one} />
        ))}
        {report.data && <Rows question={question} />}
      </div>
      <FilePicker
        title="Data"
        open={isPicking}
        kinds={["data", "text"]}
        onClose={() => setPicking(false)}
        onPick={(path) => {
          setPicking(false);
          go(["data"], { file: path, model: model || null });
        }}
      />
    </View>
  );
}

/** The data of a recipe that is being written: all its sources, and one of them in detail. */
function OfRecipe({ text, number }: { text: string; number: number }) {
  const recipe = useMemo(() => recipeIn(text), [text]);
  const sources = recipe ? sourcesOf(recipe) : [];
  const question = { source: null, model: null, recipe };
  const report = useReport(question);
  const shown = report.data?.[number - 1];
  return (
    <View title="Data of a recipe" above={<a href={href(["data"])}>Data</a>}>
      <Reading report={report} paths={sources.map(({ path }) => path)} />
      <div className={`stack ${report.busy ? "old" : ""}`}>
        <SourcesTable recipe={text} sources={sources} reports={report.data} chosen={number} />
        <section aria-label={sources[number - 1]?.path} className="stack">
          <h2 className="path">{sources[number - 1]?.path}</h2>
          {shown && <Report report={shown} />}
          {(report.data || report.error) && <Rows key={number} question={question} number={number} />}
        </section>
      </div>
    </View>
  );
}
