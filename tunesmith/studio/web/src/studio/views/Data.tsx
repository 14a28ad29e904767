import { useState } from "react";

import { client, data } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Button } from "../../parts/Button";
import { Notice } from "../../parts/Notice";
import { Report } from "../data/Report";
import { Rows } from "../data/Rows";
import { DropZone } from "../files/DropZone";
import { FileList } from "../files/FileList";
import { FilePicker } from "../files/FilePicker";
import { ModelPicker } from "../files/ModelPicker";
import { go, href, setQuery, usePlace } from "../router";
import { View } from "../shell/View";

/** A file of rows, as the model will see it. */
export function Data() {
  const { query } = usePlace();
  const file = query.get("file") ?? "";
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
  const chosen = typed === model ? model : typed;
  const body = { source: file, model: model || null, recipe: null };
  const report = useFetched(JSON.stringify(body), (signal) => data(client.POST("/api/data/check", { body, signal })));
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
        <ModelPicker value={chosen} onTyped={setTyped} onChange={choose} attributes={{ id: "data-model" }} />
      </div>
      {report.error && <Notice tone="bad">{report.error}</Notice>}
      {!report.data && report.busy && <p className="note">Reading {file}…</p>}
      <div className={`stack ${report.busy ? "old" : ""}`}>
        {report.data?.map((one) => (
          <Report key={one.path} report={one} />
        ))}
        {report.data && <Rows file={file} model={model} />}
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
