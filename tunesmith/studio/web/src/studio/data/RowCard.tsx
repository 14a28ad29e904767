import type { Schemas } from "../../api/client";
import { Badge } from "../../parts/Badge";
import { integer } from "../numbers";
import { words } from "./Report";

type Row = Schemas["RowView"];
type Example = Schemas["ExampleView"];

interface Props {
  row: Row;
  /** Whether the ids of the tokens are shown. */
  withIds: boolean;
}

/** One row: as the model sees it, or as the file has it if there is no model. */
export function RowCard({ row, withIds }: Props) {
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
        ? row.examples.map((example, at) => <Tokens key={at} example={example} withIds={withIds} />)
        : row.turns.map(({ role, text }, at) => (
            <div key={at} className="turn-text">
              {role && <span className="role">{role}</span>}
              <p>{text}</p>
            </div>
          ))}
    </li>
  );
}

function Tokens({ example, withIds }: { example: Example; withIds: boolean }) {
  return (
    <>
      {example.changes.map((change) => (
        <p key={change} className="note">
          {change}
        </p>
      ))}
      <p className="tokens">
        {example.segments.map((segment, at) =>
          segment.learned ? <mark key={at}>{segment.text}</mark> : <span key={at}>{segment.text}</span>,
        )}
        {example.is_cut && <span className="note"> … the rest is not shown</span>}
      </p>
      {withIds && (
        <p className="ids" aria-label="Token ids">
          {example.segments.map((segment, at) =>
            segment.learned ? (
              <mark key={at}>{segment.ids.join(" ")} </mark>
            ) : (
              <span key={at}>{segment.ids.join(" ")} </span>
            ),
          )}
        </p>
      )}
    </>
  );
}
