import { Table } from "../../parts/Table";
import { integer } from "../numbers";
import { href } from "../router";
import { type DataReport, share } from "./Report";
import { type Source, together } from "./recipe";

interface Props {
  /** The recipe as the address has it. */
  recipe: string;
  sources: Source[];
  /** In the order of the sources; null until they are there. */
  reports: DataReport[] | null;
  /** The number of the source that is shown, from 1 on. */
  chosen: number;
}

interface Line {
  /** Its number; null for sums. */
  number: number | null;
  name: string;
  use: string;
  weight: number | null;
  format: string;
  counts: { read: number; kept: number; tokens?: number | null } | null;
  learned: string;
}

/** The sources of a recipe, of which one is chosen, with their counts and those of all together. */
export function SourcesTable({ recipe, sources, reports, chosen }: Props) {
  const lines = sources.map((source, at) => lineOf(source, at + 1, reports?.[at]));
  const training = reports?.filter((_, at) => !sources[at]?.isHeldOut) ?? [];
  if (training.length > 1) {
    const sums = { number: null, name: "Together", use: "training", weight: null, format: "", learned: "" };
    lines.splice(training.length, 0, { ...sums, counts: together(training) });
  }
  const hasWeights = sources.some(({ weight }) => weight !== 1);
  const count = (of: (counts: NonNullable<Line["counts"]>) => number | null | undefined) => (line: Line) => {
    const value = line.counts ? of(line.counts) : null;
    return value === null || value === undefined ? "" : integer(value);
  };
  return (
    <Table
      label="Sources of the recipe"
      rows={lines}
      rowKey={({ number }) => number ?? "together"}
      columns={[
        {
          title: "Source",
          cell: ({ number, name }) =>
            number === null ? (
              <b>{name}</b>
            ) : (
              <a
                href={href(["data"], { recipe, source: number })}
                aria-current={number === chosen ? "true" : undefined}
                className="source-name"
              >
                {name}
              </a>
            ),
        },
        { title: "Use", cell: ({ use }) => use },
        { title: "Format", cell: ({ format }) => format },
        ...(hasWeights
          ? [{ title: "Weight", number: true, cell: ({ weight }: Line) => (weight === null ? "" : String(weight)) }]
          : []),
        { title: "Rows", number: true, cell: count(({ kept }) => kept) },
        { title: "Dropped", number: true, cell: count(({ read, kept }) => read - kept) },
        { title: "Tokens", number: true, cell: count(({ tokens }) => tokens) },
        { title: "Learned", number: true, cell: ({ learned }) => learned },
      ]}
    />
  );
}

function lineOf({ path, weight, isHeldOut }: Source, number: number, report: DataReport | undefined): Line {
  return {
    number,
    name: path,
    use: isHeldOut ? "held out" : "training",
    weight: isHeldOut ? null : weight,
    format: report?.format ?? "",
    counts: report ?? null,
    learned: report?.supervised_share == null ? "" : share(report.supervised_share),
  };
}
