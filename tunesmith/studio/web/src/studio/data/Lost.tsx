import { integer } from "../numbers";
import { share } from "./Report";

/** The share of the examples that each sequence length would lose. */
export function Lost({ shares }: { shares: Record<string, number> }) {
  return (
    <section className="lost-shares">
      <h2>Lost at each sequence length</h2>
      <dl>
        {Object.entries(shares).map(([length, lost]) => (
          <div key={length}>
            <dt>{integer(Number(length))}</dt>
            <dd>
              <span className="track" aria-hidden="true">
                <i style={{ width: `${100 * lost}%` }} />
              </span>
              <span className={lost > 0 ? "over" : "note"}>{lost > 0 ? share(lost) : "nothing"}</span>
            </dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
