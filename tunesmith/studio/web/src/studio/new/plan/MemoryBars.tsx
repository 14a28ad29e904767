import { bytes } from "../../numbers";
import type { Need } from "./types";

const COLOURS = 6;
/** The longest bar leaves some room behind its end. */
const ROOM = 1.04;

const STAGES: Record<string, string> = {
  "before the layers": "in the embedding",
  "forward of layer": "in the forward pass of a layer",
  loss: "in the output layer and the loss",
  "backward of the loss": "in the backward pass of the loss or the last layer",
  "backward of layer": "in the backward pass of a layer",
  "backward before the layers": "in the backward pass of the embedding",
  update: "in the optimizer step",
  "": "by the sizes of weights",
};

/** The memory of each GPU, or of the host, by part, with the line that it may not cross. All have the same scale. */
export function MemoryBars({ needs, hostBytes }: { needs: Need[]; hostBytes: number }) {
  const names = [...new Set(needs.flatMap(({ parts }) => Object.keys(parts)))].filter((name) =>
    needs.some(({ parts }) => parts[name]),
  );
  const whole = ROOM * Math.max(...needs.map(({ place, needed_bytes }) => Math.max(place.free_bytes, needed_bytes)));
  const tightest = needs.reduce((one, other) => (share(other) > share(one) ? other : one));
  const width = (size: number) => ({ width: `${(100 * size) / whole}%` });
  return (
    <section aria-label="Memory">
      <h3>Memory</h3>
      {needs.map((need, at) => (
        <div key={at} className="memory-bar">
          <p>
            <span>{need.place.name}</span>
            <span className={need.fits ? "note" : "over"}>
              {bytes(need.needed_bytes)} of {bytes(need.limit_bytes)}
              {!need.fits && ", does not fit"}
            </span>
          </p>
          <div className="memory-line" role="img" aria-label={spoken(need)}>
            <i className="room" style={width(need.place.free_bytes)} />
            <span className="used">
              {names.map((name, part) => (
                <i
                  key={name}
                  className={`part-${(part % COLOURS) + 1}`}
                  title={`${name}: ${bytes(need.parts[name] ?? 0)}`}
                  style={width(need.parts[name] ?? 0)}
                />
              ))}
            </span>
            <i
              className="limit"
              title={`Limit: ${bytes(need.limit_bytes)}`}
              style={{ left: `${(100 * need.limit_bytes) / whole}%` }}
            />
          </div>
        </div>
      ))}
      <dl className="memory-parts">
        {names.map((name, part) => (
          <div key={name}>
            <dt>
              <i className={`part-${(part % COLOURS) + 1}`} />
              {name}
            </dt>
            <dd>{bytes(tightest.parts[name] ?? 0)}</dd>
          </div>
        ))}
      </dl>
      <p className="note small">
        {needs.length > 1 && <>Parts of the {tightest.place.name}. </>}
        The most is needed {STAGES[tightest.stage] ?? tightest.stage}. The line is the limit: a tenth of the free memory
        is left alone.
        {hostBytes > 0 && <> Layers in host memory: {bytes(hostBytes)}.</>}
      </p>
    </section>
  );
}

function share({ needed_bytes, limit_bytes }: Need): number {
  return needed_bytes / Math.max(1, limit_bytes);
}

function spoken({ place, needed_bytes, limit_bytes, parts }: Need): string {
  const list = Object.entries(parts).map(([name, size]) => `${name} ${bytes(size)}`);
  return `${place.name}: ${bytes(needed_bytes)} needed, the limit is ${bytes(limit_bytes)}; ${list.join(", ")}`;
}
