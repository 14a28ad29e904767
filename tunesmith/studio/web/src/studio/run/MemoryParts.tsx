import { bytes } from "../numbers";

export interface Need {
  name: string;
  bytes: number;
  free_bytes: number;
  parts: Record<string, number>;
}

const COLOURS = 6;

/** The memory that each process was predicted to need, by part, against what was free. */
export function MemoryParts({ needs }: { needs: Need[] }) {
  const names = [...new Set(needs.flatMap(({ parts }) => Object.keys(parts)))];
  return (
    <section>
      <h2>Memory by part, as predicted</h2>
      <ul className="legend">
        {names.map((name, at) => (
          <li key={name}>
            <i className={`part-${(at % COLOURS) + 1}`} />
            {name}
          </li>
        ))}
      </ul>
      {needs.map((need, at) => (
        <div key={at} className="memory">
          <p>
            <b>{need.name}</b>{" "}
            <span className="note">
              {bytes(need.bytes)} of {bytes(need.free_bytes)} free
            </span>
          </p>
          <div className="parts" role="img" aria-label={need.name + ": " + listOf(need)}>
            {names.map((name, part) => (
              <span
                key={name}
                className={`part-${(part % COLOURS) + 1}`}
                title={`${name}: ${bytes(need.parts[name] ?? 0)}`}
                style={{ width: `${(100 * (need.parts[name] ?? 0)) / Math.max(need.free_bytes, need.bytes)}%` }}
              />
            ))}
          </div>
        </div>
      ))}
    </section>
  );
}

function listOf({ parts }: Need): string {
  return Object.entries(parts)
    .map(([name, size]) => `${name} ${bytes(size)}`)
    .join(", ");
}
