import { integer, plural } from "../numbers";

interface Props {
  /** Examples by the most tokens of a bin. */
  bins: Record<string, number>;
  /** Tokens by percentile. */
  percentiles: Record<string, number>;
}

/** How long the examples are. */
export function Histogram({ bins, percentiles }: Props) {
  const sorted = Object.entries(bins)
    .map(([most, count]) => ({ most: Number(most), count }))
    .sort((one, other) => one.most - other.most);
  const highest = Math.max(...sorted.map(({ count }) => count));
  const spoken = sorted.map(({ most, count }) => `up to ${integer(most)} tokens: ${integer(count)}`).join("; ");
  return (
    <section className="histogram">
      <h2>
        Lengths <span className="note">examples of up to so many tokens</span>
      </h2>
      <div className="columns" role="img" aria-label={`Examples by length. ${spoken}`}>
        {sorted.map(({ most, count }) => (
          <div key={most} title={`up to ${integer(most)} tokens: ${plural(count, "example")}`}>
            <span className="count">{integer(count)}</span>
            <i style={{ height: `${(100 * count) / highest}%` }} />
            <span className="most">{integer(most)}</span>
          </div>
        ))}
      </div>
      <dl className="percentiles">
        {Object.entries(percentiles).map(([percentile, tokens]) => (
          <div key={percentile}>
            <dt>{percentile === "50" ? "median" : percentile === "100" ? "longest" : `${percentile} %`}</dt>
            <dd>{integer(tokens)}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
