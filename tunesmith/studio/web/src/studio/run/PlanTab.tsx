import type { RunView, Schemas } from "../../api/client";
import { Table } from "../../parts/Table";
import { bytes, decimal, duration, energy, integer, percent } from "../numbers";
import { MemoryParts, type Need } from "./MemoryParts";

type Comparison = Schemas["Comparison"];

const ROWS: Record<Comparison["name"], { title: string; text: (value: number) => string }> = {
  tokens_per_second: { title: "Tokens per second", text: (value) => decimal(value, 3) },
  memory_bytes: { title: "Peak memory", text: bytes },
  seconds: { title: "Time", text: duration },
  kwh: { title: "Energy", text: energy },
};

/** Shown on their own, or not for people. */
const NOT_LISTED = ["predicted", "reasons", "ledger", "left_out", "system_prompts", "stop_ids", "template_kwargs"];

/** What was decided before the run, and how right it was. */
export function PlanTab({ view }: { view: RunView }) {
  const { plan, compared } = view;
  if (!plan) return <p className="note">There is no plan yet. It is made when the run starts.</p>;
  const predicted = plan.predicted as { needs?: Need[]; rates_from?: string };
  const reasons = (plan.reasons ?? {}) as Record<string, string>;
  const known = compared.filter(({ predicted: before, measured }) => before !== null || measured !== null);
  const decisions = Object.entries(plan).filter(([key, value]) => !NOT_LISTED.includes(key) && isShown(value));
  return (
    <div className="stack">
      {known.length > 0 && (
        <section>
          <h2>Predicted and measured</h2>
          <Table
            label="Predicted and measured"
            rows={known}
            rowKey={({ name }) => name}
            columns={[
              { title: "Quantity", cell: ({ name }) => ROWS[name].title },
              {
                title: "Predicted",
                cell: ({ name, predicted: value }) => orDash(value, ROWS[name].text),
                number: true,
              },
              { title: "Measured", cell: ({ name, measured }) => orDash(measured, ROWS[name].text), number: true },
              { title: "Difference", cell: difference, number: true },
            ]}
          />
          {predicted.rates_from && <p className="note">The speed was predicted from: {predicted.rates_from}.</p>}
        </section>
      )}
      {!!predicted.needs?.length && <MemoryParts needs={predicted.needs} />}
      <section>
        <h2>Decisions</h2>
        <Table
          label="Decisions"
          rows={decisions}
          rowKey={([key]) => key}
          columns={[
            { title: "Setting", cell: ([key]) => key.replaceAll("_", " ") },
            { title: "Value", cell: ([, value]) => valueText(value) },
            { title: "Why", cell: ([key]) => <span className="note">{reasons[key] ?? ""}</span> },
          ]}
        />
      </section>
    </div>
  );
}

function orDash(value: number | null, text: (value: number) => string): string {
  return value === null ? "–" : text(value);
}

function difference({ predicted, measured }: Comparison): string {
  if (predicted === null || measured === null || predicted === 0) return "";
  const share = measured / predicted - 1;
  return `${share < 0 ? "−" : "+"}${percent(Math.abs(share))}`;
}

function isShown(value: unknown): boolean {
  return value !== null && value !== "" && !(Array.isArray(value) && !value.length);
}

function valueText(value: unknown): string {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? integer(value) : decimal(value);
  if (Array.isArray(value)) return value.map(valueText).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
