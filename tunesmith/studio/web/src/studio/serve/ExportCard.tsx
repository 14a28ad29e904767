import type { Export } from "../../api/client";
import { Badge } from "../../parts/Badge";
import { CopyButton } from "../../parts/CopyButton";
import { Table } from "../../parts/Table";
import { bytes, moment } from "../numbers";
import { comparedIn, enginesIn, notCompared, type ParityLine, parityLines } from "./parity";

/** An export with the comparison to the trained model, and how it is used. */
export function ExportCard({ made }: { made: Export }) {
  const { form, bytes: size, written, passed, problem, report, commands, path } = made;
  const lines = parityLines(report);
  return (
    <li className="server">
      <div className="server-head">
        <h3>{form}</h3>
        <Badge tone={passed ? "good" : passed === null ? "warning" : "bad"}>
          {passed ? "matches the trained model" : passed === null ? "not compared" : "is not the trained model"}
        </Badge>
        <span className="note">
          {bytes(size)} · {moment(written)}
        </span>
      </div>
      {problem && passed === false && <p className="note bad">{problem}</p>}
      {lines.length > 0 && (
        <details>
          <summary>{comparedIn(report) || "Compared with the trained model"}</summary>
          <Table
            label={`Comparison of ${form}`}
            rows={lines}
            rowKey={({ what }) => what}
            columns={[
              { title: "Measure", cell: ({ what }) => what },
              ...enginesIn(report).map((engine, at) => ({
                title: `in ${engine}`,
                number: true,
                cell: ({ found }: ParityLine) => found[at],
              })),
              { title: "Bound", number: true, cell: ({ bound }) => bound },
            ]}
          />
        </details>
      )}
      {notCompared(report).map((words) => (
        <p key={words} className="note">
          {words}
        </p>
      ))}
      <p className="note facts">
        <span>
          <code>{path}</code> <CopyButton text={path} label="Copy the folder" />
        </span>
      </p>
      {commands.length > 0 && (
        <ul className="export-commands">
          {commands.map((command) => (
            <li key={command}>
              <code>{command}</code>
              <CopyButton text={command} label="Copy the command" />
            </li>
          ))}
        </ul>
      )}
    </li>
  );
}
