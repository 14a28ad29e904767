import type { Schemas } from "../../api/client";
import { Notice } from "../../parts/Notice";
import { Table } from "../../parts/Table";
import { integer, plural } from "../numbers";
import { Histogram } from "./Histogram";
import { Lost } from "./Lost";

export type DataReport = Schemas["DataReport"];

/** What a source holds: how many rows, which are dropped and why, and how long they are. */
export function Report({ report }: { report: DataReport }) {
  const dropped = Object.entries(report.dropped);
  const changed = Object.entries(report.changed);
  const unread = Object.entries(report.unread);
  return (
    <div className="data-report">
      <dl className="figures">
        <Figure name="Format" value={report.format ?? "unknown"} />
        <Figure
          name="Rows"
          value={integer(report.kept)}
          note={report.kept < report.read ? `of ${integer(report.read)}` : undefined}
        />
        <Figure name="Dropped" value={integer(sum(dropped))} bad={dropped.length > 0} />
        {report.tokens != null && <Figure name="Tokens" value={integer(report.tokens)} />}
        {report.supervised_share != null && (
          <Figure name="Learned" value={share(report.supervised_share)} note="of the tokens" />
        )}
        {report.longest && (
          <Figure name="Longest" value={`${integer(report.longest.tokens)} tokens`} note={report.longest.where} />
        )}
      </dl>
      {report.left_out.map((words) => (
        <Notice key={words} tone="warning">
          {words}
        </Notice>
      ))}
      {dropped.length > 0 && <Dropped report={report} />}
      {changed.length > 0 && (
        <p className="note">
          Changed: {changed.map(([reason, rows]) => `${words(reason)} in ${plural(rows, "row")}`).join("; ")}
        </p>
      )}
      {unread.length > 0 && (
        <p className="note">
          Columns that are not read: {unread.map(([column, rows]) => `${column} (${plural(rows, "row")})`).join(", ")}
        </p>
      )}
      {report.histogram && report.length_percentiles ? (
        <div className="lengths">
          <Histogram bins={report.histogram} percentiles={report.length_percentiles} />
          {report.lost_share && <Lost shares={report.lost_share} />}
        </div>
      ) : (
        report.kept > 0 && <p className="note">Choose a model to see lengths in tokens and what is learned.</p>
      )}
    </div>
  );
}

function Figure({ name, value, note, bad = false }: { name: string; value: string; note?: string; bad?: boolean }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd className={bad ? "over" : undefined}>{value}</dd>
      {note && <dd className="note">{note}</dd>}
    </div>
  );
}

function Dropped({ report }: { report: DataReport }) {
  const reasons = Object.entries(report.dropped).map(([reason, rows]) => `${words(reason)} (${integer(rows)})`);
  const more = sum(Object.entries(report.dropped)) - report.first_problems.length;
  return (
    <section>
      <h2>Dropped rows</h2>
      <p>{reasons.join(" · ")}</p>
      <Table
        label="Dropped rows"
        rows={report.first_problems}
        rowKey={({ where, detail }) => where + detail}
        columns={[
          { title: "Where", cell: ({ where }) => <code>{where}</code> },
          { title: "Reason", cell: ({ reason }) => words(reason) },
          { title: "Detail", cell: ({ detail }) => <span className="note">{detail}</span> },
        ]}
      />
      {more > 0 && <p className="note">and {integer(more)} more; they are marked among the rows below.</p>}
    </section>
  );
}

export function words(reason: string): string {
  return reason.replaceAll("_", " ");
}

/** A share in per cent, with a decimal where it is small. */
export function share(value: number): string {
  const text = (100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0);
  return `${text} %`;
}

function sum(entries: [string, number][]): number {
  return entries.reduce((total, [, rows]) => total + rows, 0);
}
