import type { Schemas } from "../../api/client";
import { Badge } from "../../parts/Badge";
import { integer } from "../numbers";
import { words } from "./Report";
import { Tokens } from "./Tokens";

type Row = Schemas["RowView"];
type Example = Schemas["ExampleView"];

/** Learned stretches of text, or token by token. */
export type RowView = "text" | "tokens";

interface Props {
  row: Row;
  view: RowView;
}

/** One row: as the model sees it, or as the file has it if there is no model. */
export function RowCard({ row, view }: Props) {
  return (
    <li className={`data-row ${row.problem ? "dropped" : ""}`}>
      <header>
        <code>{row.where}</code>
        {row.problem && <Badge tone="bad">dropped: {words(row.problem)}</Badge>}
        {row.examples.map((example, at) => (
          <span key={at} className="note">
            {integer(example.tokens)} tokens, {integer(example.learned)} learned
          </span>
        ))}
      </header>
      {row.detail && <p className="note">{row.detail}</p>}
      {row.examples.length
        ? row.examples.map((example, at) => (
            <div key={at}>
              {example.changes.map((change) => (
                <p key={change} className="note">
                  {change}
                </p>
              ))}
              {view === "text" ? (
                <Text example={example} />
              ) : (
                <Tokens example={example} label={`Tokens of ${row.where}`} />
              )}
              {example.is_cut && <p className="note">… the rest is not shown</p>}
            </div>
          ))
        : row.turns.map(({ role, text }, at) => (
            <div key={at} className="turn-text">
              {role && <span className="role">{role}</span>}
              <p>{text}</p>
            </div>
          ))}
    </li>
  );
}

function Text({ example }: { example: Example }) {
  return (
    <p className="tokens">
      {example.segments.map((segment, at) =>
        segment.learned ? <mark key={at}>{segment.text}</mark> : <span key={at}>{segment.text}</span>,
      )}
    </p>
  );
}
