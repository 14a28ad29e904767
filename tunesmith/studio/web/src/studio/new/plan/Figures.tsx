import { decimal, duration, energy, integer } from "../../numbers";
import type { Prediction } from "./types";

interface Figure {
  name: string;
  value: string;
  note?: string;
}

const BOUND: Record<string, string> = {
  compute: "limited by computing",
  launches: "limited by launching kernels",
  link: "limited by copies from and to host memory",
  "host memory": "limited by reading host memory",
};

/** Speed, time, energy and price of the run. */
export function Figures({ found }: { found: Prediction }) {
  const { speed, cost, training } = found;
  const figures = [speedOf(found), timeOf(found), cost && energyOf(found)].filter((one): one is Figure => one !== null);
  return (
    <section aria-label="Time and energy">
      <dl className="figures">
        {figures.map(({ name, value, note }) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
            {note && <dd className="note">{note}</dd>}
          </div>
        ))}
        {training && (
          <div>
            <dt>Steps</dt>
            <dd>
              {training.is_estimate && "about "}
              {integer(training.steps)}
            </dd>
            <dd className="note">{integer(Math.round(training.tokens))} tokens</dd>
          </div>
        )}
      </dl>
      {!speed && (
        <p className="note small">
          The speed of this machine is not known. <code>tunesmith doctor --measure</code> measures it.
        </p>
      )}
      {speed && found.rates_from === "estimated" && (
        <p className="note small">Estimated from published rates, not measured on this machine.</p>
      )}
      {speed && !cost && found.no_training && <p className="note small">Time unknown: {found.no_training}</p>}
      {cost && found.not_beside && (
        <p className="note small">Without evaluation, answers and checkpoints: {found.not_beside}</p>
      )}
    </section>
  );
}

function speedOf({ speed }: Prediction): Figure | null {
  if (!speed) return null;
  return { name: "Tokens/s", value: integer(Number(speed.tokens_per_second.toPrecision(3))), note: BOUND[speed.bound] };
}

function timeOf({ cost }: Prediction): Figure | null {
  if (!cost) return null;
  const beside = cost.seconds - (cost.parts.training ?? 0);
  return {
    name: "Time",
    value: duration(cost.seconds),
    note: beside > 0.01 * cost.seconds ? `${duration(beside)} of it beside training` : undefined,
  };
}

function energyOf({ cost }: Prediction): Figure | null {
  if (cost?.kwh === null || cost?.kwh === undefined) return null;
  return {
    name: "Energy",
    value: energy(cost.kwh),
    note: cost.price === null ? "at full power" : `costs ${decimal(cost.price, 3)}`,
  };
}
